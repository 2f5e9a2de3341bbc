//! `guise boot`: a machine straight from files, with its serial port on this terminal.

mod control;
mod debugger;
pub mod descriptors;
mod devices;
mod drive;
pub mod network;
mod ports;
mod share;
mod sockets;

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use guise_engine::{CpuModel, MAX_VCPUS};
use guise_machine::console::Console;
use guise_machine::{BoardKind, BootSource, Ending, Machine, MachineConfig, MachineError, Stopper};
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};

use self::control::Control;
use crate::Failure;
use crate::engine::{Chosen, EngineChoice};

/// A machine straight from files, without the daemon. Its serial port is this
/// terminal; Ctrl-A X leaves.
#[derive(Args)]
#[command(after_help = "Exit codes: 0 power-off, 10 reset with --no-reboot, 11 guest panic, \
    12 triple fault, 13 engine error, 124 --timeout ran out, 1 failure, 2 usage.")]
pub struct Arguments {
    /// Kernel: a bzImage, or an ELF file (PVH, multiboot, vmlinux)
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial RAM disk, or the only module of a multiboot kernel
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0", allow_hyphen_values = true)]
    append: String,
    /// Memory, with K, M, G or T; without a letter it is mebibytes
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_size)]
    memory: u64,
    /// Up to how much memory the machine can have; the control socket says how much it has
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory_max: Option<u64>,
    /// Number of vCPUs, 1 to 8
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    #[arg(long, value_enum, default_value_t = BoardName::Microvm)]
    board: BoardName,
    /// What executes the guest's instructions
    #[arg(long, value_enum, default_value_t = EngineChoice::Auto)]
    engine: EngineChoice,
    /// Go on with another engine: ENGINE[,at=2s|50ms|0xADDRESS|exits:N|failure], in the
    /// order given
    #[arg(long, value_name = "HANDOVER")]
    handover: Vec<drive::HandOver>,
    /// Let gdb have the machine through a Unix socket; with `,wait` the machine waits for it
    #[arg(long, value_name = "SOCKET[,wait]", conflicts_with = "handover")]
    gdb: Option<debugger::Address>,
    /// CPU model: baseline, x86-64-v2, x86-64-v3, host
    #[arg(long, value_name = "MODEL", default_value_t = CpuModel::Host)]
    cpu: CpuModel,
    /// End with code 124 after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout)]
    timeout: Option<Duration>,
    /// End with code 10 on a reset, instead of starting again
    #[arg(long)]
    no_reboot: bool,
    /// Write JSON on exit: host CPU seconds, wall seconds, exits, engine counters
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// Take commands from this Unix socket: JSON, a line each
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    #[command(flatten)]
    devices: devices::DeviceArguments,
    /// Put an IOMMU (Intel VT-d) between PCI devices and memory and interrupts
    #[arg(long)]
    iommu: bool,
    /// Add the devices that test programs end through and drive (kvm-unit-tests, for
    /// instance), and the IOMMU
    #[arg(long)]
    testdev: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum BoardName {
    Microvm,
    Pc,
}

pub fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let started = Instant::now();
    let deadline = arguments.timeout.and_then(|limit| started.checked_add(limit));
    if !(1..=MAX_VCPUS).contains(&arguments.cpus) {
        let (wanted, most) = (arguments.cpus, MAX_VCPUS);
        return Err(Failure::usage(format!("--cpus {wanted}: a machine has 1 to {most} vCPUs")));
    }
    refuse_what_lockstep_cannot_compare(&arguments)?;
    let Chosen { engine, mut remark } = crate::engine::choose(arguments.engine)?;
    let config = MachineConfig {
        memory: arguments.memory,
        addable_memory: addable_memory(&arguments)?,
        vcpus: arguments.cpus,
        board: match arguments.board {
            BoardName::Microvm => BoardKind::Microvm,
            BoardName::Pc => BoardKind::Pc,
        },
        model: arguments.cpu,
        iommu: arguments.iommu || arguments.testdev,
        test_devices: arguments.testdev,
    };
    let source = BootSource {
        kernel: arguments.kernel.clone(),
        initrd: arguments.initrd.clone(),
        command_line: arguments.append.clone(),
    };
    let statistics = arguments.stats.as_ref().map(File::create).transpose();
    let statistics = statistics.map_err(|error| {
        let path = arguments.stats.as_deref().unwrap_or(std::path::Path::new(""));
        Failure::failed(format!("cannot write {}: {error}", path.display()))
    })?;

    let mut debugger = arguments.gdb.as_ref().map(debugger::Socket::open).transpose()?;
    let backends = Arc::new(devices::Backends::open(&arguments.devices, arguments.cpus)?);
    let control = arguments.control.as_deref();
    let control = control.map(|path| Control::open(path, backends.clone())).transpose()?;

    if control.is_none() && backends.may_wait_for_space() {
        return Err(Failure::usage("full=pause needs --control, through which it is resumed"));
    }

    let outside = Outside::default();
    outside.watch_signals(Arc::downgrade(&backends))?;
    let mut console = None;
    let mut totals = Totals::default();
    let ending = loop {
        let machine = Machine::new(&*engine, &config, Box::new(std::io::stdout()))
            .map(Arc::new)
            .map_err(machine_failure)?;
        let input = backends.attach(&machine).map_err(machine_failure)?;
        machine.boot(&source).map_err(machine_failure)?;
        // Not before: an error above is to be one line.
        if let Some(remark) = remark.take() {
            eprintln!("guise: {remark}");
        }
        outside.set(machine.stopper());
        if console.is_none() {
            // Only now: an error above must find the terminal as it was.
            let outside = outside.clone();
            console = Some(Console::open(move || outside.leave()).map_err(machine_failure)?);
        }
        if let Some(console) = &console {
            console.connect(input);
        }
        if let Some(control) = &control {
            control.attach(machine.clone());
        }
        let ending = match &mut debugger {
            Some(debugger) => debugger.run(&machine, deadline)?,
            None => drive::drive(&machine, &arguments.handover, deadline)?,
        };
        if let Some(control) = &control {
            control.detach();
        }
        let stopped = machine.pause();
        totals.add(&machine);
        if let Err(error) = stopped {
            // Its thread cannot be joined; it ends with the process.
            std::mem::forget(machine);
            eprintln!("guise: {error}");
            break ending;
        }
        match ending {
            // A machine that resets is made anew; nothing of the old one stays.
            Some(Ending::Reset) if !arguments.no_reboot => continue,
            ending => break ending,
        }
    };
    drop(console);
    totals.devices = backends.list();
    backends.close()?;
    let (code, name, message) = conclude(ending, outside.signal());
    if let Some(file) = statistics {
        totals.write(file, started, name).map_err(|error| {
            Failure::failed(format!("the statistics cannot be written: {error}"))
        })?;
    }
    if let Some(message) = message {
        eprintln!("guise: {message}");
    }
    Ok(ExitCode::from(code))
}

/// What `--memory-max` leaves above `--memory`.
fn addable_memory(arguments: &Arguments) -> Result<u64, Failure> {
    let Some(most) = arguments.memory_max else { return Ok(0) };
    most.checked_sub(arguments.memory)
        .ok_or_else(|| Failure::usage("--memory-max is less than --memory"))
}

/// Comparing runs everything twice: what another vCPU or a device writes meanwhile would be
/// a difference.
fn refuse_what_lockstep_cannot_compare(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.engine != EngineChoice::Lockstep {
        return Ok(());
    }
    let reason = if arguments.cpus > 1 {
        "more than one vCPU"
    } else if arguments.devices.write_memory()
        || arguments.control.is_some()
        || arguments.memory_max.is_some()
    {
        "devices that write memory (--disk, --net, --rng, --balloon, --console, --port, \
         --memory-max, --control)"
    } else {
        return Ok(());
    };
    Err(Failure::usage(format!(
        "--engine lockstep cannot compare a machine with {reason}; use --engine soft"
    )))
}

/// Exit code, name in the statistics, and what to tell the user.
fn conclude(ending: Option<Ending>, signal: i32) -> (u8, &'static str, Option<String>) {
    match ending {
        Some(Ending::PowerOff) => (0, "power-off", None),
        Some(Ending::Reset) => (10, "reset", None),
        Some(Ending::Panicked) => {
            (11, "panic", Some("the guest's kernel panicked; see its last lines above".to_owned()))
        }
        Some(Ending::TripleFault { vcpu }) => {
            (12, "triple-fault", Some(format!("vCPU {vcpu} ended in a triple fault")))
        }
        Some(Ending::Engine(error)) => (13, "engine-error", Some(error.to_string())),
        Some(Ending::Exit(code)) => (code as u8, "test-exit", None),
        Some(Ending::Left) if signal != 0 => (128 + signal as u8, "signal", None),
        // Nobody but a hand-over asks for the last two, and it goes on after them.
        Some(Ending::Left | Ending::Reached | Ending::Stopped { .. }) => (0, "left", None),
        None => (124, "timeout", Some("the time given with --timeout ran out".to_owned())),
    }
}

fn machine_failure(error: MachineError) -> Failure {
    match error {
        MachineError::MemorySize { .. } => Failure::usage(format!("--memory: {error}")),
        other => Failure::failed(other),
    }
}

/// Ways to end that come from outside of the machine: signals, Ctrl-A X.
#[derive(Clone, Default)]
struct Outside {
    machine: Arc<Mutex<Option<Stopper>>>,
    signal: Arc<AtomicI32>,
}

impl Outside {
    /// Signals end the machine in good order, so that the terminal is given back, or say
    /// that the terminal's window has another size. The devices' backends end, and take
    /// their sockets away, with the machine, and not with the thread that waits here.
    fn watch_signals(&self, backends: Weak<devices::Backends>) -> Result<(), Failure> {
        let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP, SIGWINCH])
            .map_err(|error| Failure::failed(format!("signals cannot be watched: {error}")))?;
        let outside = self.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for signal in signals.forever() {
                    if signal == SIGWINCH {
                        if let Some(backends) = backends.upgrade() {
                            backends.tell_window_size();
                        }
                        continue;
                    }
                    outside.signal.store(signal, Ordering::SeqCst);
                    outside.leave();
                }
            })
            .map_err(|error| Failure::failed(format!("a thread cannot be started: {error}")))?;
        Ok(())
    }

    fn set(&self, stopper: Stopper) {
        *self.machine.lock().unwrap_or_else(PoisonError::into_inner) = Some(stopper);
        // A signal that came before there was a machine.
        if self.signal() != 0 {
            self.leave();
        }
    }

    fn leave(&self) {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(machine) = &*machine {
            machine.leave();
        }
    }

    fn signal(&self) -> i32 {
        self.signal.load(Ordering::SeqCst)
    }
}

/// Counters of all machines of this run: there are several when the guest resets.
#[derive(Default)]
struct Totals {
    exits: std::collections::BTreeMap<String, u64>,
    engine: std::collections::BTreeMap<String, u64>,
    machines: u64,
    /// As they were at the end.
    devices: serde_json::Value,
}

#[derive(Serialize)]
struct Statistics<'a> {
    ended_by: &'a str,
    wall_seconds: f64,
    cpu_seconds: f64,
    machines: u64,
    exits: &'a std::collections::BTreeMap<String, u64>,
    engine: &'a std::collections::BTreeMap<String, u64>,
    devices: &'a serde_json::Value,
}

impl Totals {
    fn add(&mut self, machine: &Machine) {
        self.machines += 1;
        for (name, count) in machine.exits() {
            *self.exits.entry(name).or_default() += count;
        }
        for (name, count) in machine.engine_statistics() {
            *self.engine.entry(name).or_default() += count;
        }
    }

    fn write(&self, file: File, started: Instant, ended_by: &str) -> std::io::Result<()> {
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let statistics = Statistics {
            ended_by,
            wall_seconds: started.elapsed().as_secs_f64(),
            cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
            machines: self.machines,
            exits: &self.exits,
            engine: &self.engine,
            devices: &self.devices,
        };
        serde_json::to_writer_pretty(&file, &statistics)?;
        std::io::Write::write_all(&mut &file, b"\n")
    }
}

/// `512`, `512M`, `1.5G`: a size, in mebibytes where it has no letter.
fn parse_size(text: &str) -> Result<u64, String> {
    parse_scaled(text, 20)
}

/// The same, in bytes where it has no letter.
fn parse_bytes(text: &str) -> Result<u64, String> {
    parse_scaled(text, 0)
}

fn parse_scaled(text: &str, default_shift: u32) -> Result<u64, String> {
    let upper = text.trim().to_ascii_uppercase();
    let upper = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
    let (number, shift) = match upper.as_bytes().last() {
        Some(b'K') => (&upper[..upper.len() - 1], 10),
        Some(b'M') => (&upper[..upper.len() - 1], 20),
        Some(b'G') => (&upper[..upper.len() - 1], 30),
        Some(b'T') => (&upper[..upper.len() - 1], 40),
        _ => (upper, default_shift),
    };
    let number: f64 = number.parse().map_err(|_| "that is not a size".to_owned())?;
    let bytes = number * (1u64 << shift) as f64;
    if !(0.0..9e18).contains(&bytes) {
        return Err("that is not a size".to_owned());
    }
    Ok(bytes as u64)
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "that is not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "that is not a number of seconds".to_owned())
}
