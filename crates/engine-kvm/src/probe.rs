//! Whether an engine can run a stock kernel: a small guest tries what kernels need.
//!
//! That /dev/kvm opens says little. Some nested and paravirtual hosts emulate a part
//! of the instruction set in software and stop at the rest. The guest here (it is in
//! `probe/guest.s`) goes through [`STAGES`] and says a letter after each; which letter
//! is missing tells what this host cannot do. A loop between two letters tells how
//! fast it is. It takes a millisecond on a processor and some tens where KVM emulates.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use guise_engine::memory::vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};
use guise_engine::state::SegmentState;
use guise_engine::{
    CpuModel, Engine, EngineError, Exit, GuestRegion, MemorySlot, Platform, Vcpu, VcpuHandle, Vm,
    VmConfig,
};

use crate::KvmEngine;

/// What the guest tries, in this order, with the letter that it says afterwards.
pub const STAGES: [(u8, &str); 12] = [
    (b'r', "real mode"),
    (b'p', "protected mode"),
    (b'l', "long mode"),
    (b'v', "a loop"),
    (b'm', "MSRs and SWAPGS"),
    (b'c', "CMPXCHG16B"),
    (b'b', "INT3"),
    (b's', "SSE arithmetic"),
    (b'x', "XSAVE and XRSTOR"),
    (b't', "a switch of page tables"),
    (b'i', "a timer interrupt"),
    (b'z', "an orderly end"),
];

/// Below this many million instructions a second, the software engine is faster.
const USEFUL_SPEED: f64 = 200.0;
/// Instructions of the guest's loop: two for each of its 10,000 turns.
const LOOP_INSTRUCTIONS: f64 = 20_000.0;
const PATIENCE: Duration = Duration::from_secs(3);

const MEMORY: usize = 1 << 20;
const CODE: u64 = 0x8000;
const STACK: u64 = 0x7000;

std::arch::global_asm!(include_str!("probe/guest.s"), options(att_syntax));

unsafe extern "C" {
    static guise_probe_start: u8;
    static guise_probe_on_int3: u8;
    static guise_probe_on_timer: u8;
    static guise_probe_end: u8;
}

/// A KVM that runs what kernels consist of, at a useful speed. Where there is one that does
/// not, what to tell the user, who expects it to be used.
pub fn usable_engine() -> Result<KvmEngine, Option<String>> {
    let engine = KvmEngine::new().map_err(|_| None)?;
    let reason = match run(&engine) {
        Ok(verdict) if verdict.usable() => return Ok(engine),
        // How it fails is for `guise doctor`: whoever starts a guest is told this each time.
        Ok(verdict) => {
            verdict.reason().unwrap_or_default().split(": ").next().unwrap_or_default().to_owned()
        }
        Err(error) => error.to_string(),
    };
    // The advice of an error is for those who insist on KVM; here it is taken already.
    let reason = reason.split("; use --engine").next().unwrap_or_default();
    Err(Some(format!("the software engine runs this guest; this host's KVM cannot: {reason}")))
}

/// What the guest found.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// How many of [`STAGES`] it went through.
    pub passed: usize,
    /// Why it did not go on, where it did not.
    pub failure: Option<String>,
    /// Million instructions a second, where it came that far.
    pub speed: Option<f64>,
}

impl Verdict {
    /// Whether `auto` takes this engine.
    pub fn usable(&self) -> bool {
        self.passed == STAGES.len() && self.speed.is_some_and(|speed| speed >= USEFUL_SPEED)
    }

    /// Why not, in a few words.
    pub fn reason(&self) -> Option<String> {
        match (&self.failure, self.speed) {
            (Some(failure), _) => {
                let stage = STAGES.get(self.passed).map_or("nothing", |stage| stage.1);
                Some(format!("it fails at {stage}: {failure}"))
            }
            (None, Some(speed)) if speed < USEFUL_SPEED => {
                Some(format!("it runs {speed:.0} million instructions a second"))
            }
            _ => None,
        }
    }
}

/// Runs the guest on an engine.
pub fn run(engine: &dyn Engine) -> Result<Verdict, EngineError> {
    let config = VmConfig { vcpus: 1, model: CpuModel::Host, tsc_khz: None };
    let vm = engine.create_vm(&config)?;
    let region = Arc::new(guest_memory()?);
    let slot =
        MemorySlot { guest_address: 0, region, offset: 0, size: MEMORY as u64, read_only: false };
    vm.map_memory(0, slot)?;
    let mut vcpu = vm.create_vcpu(0)?;
    start_at_code(vcpu.as_mut())?;

    let board = Board::new(vcpu.handle());
    let watchdog = Watchdog::start(vcpu.handle());
    let end = vcpu.run(&board);
    let timed_out = watchdog.stop();
    drop(vcpu);
    drop::<Arc<dyn Vm>>(vm);

    let said = board.said.into_inner().unwrap();
    let passed = said.iter().zip(STAGES).take_while(|(said, stage)| **said == stage.0).count();
    let failure = match end {
        _ if passed == STAGES.len() => None,
        Ok(Exit::Interrupted) if timed_out => {
            Some(format!("no progress for {} s", PATIENCE.as_secs()))
        }
        Ok(Exit::Interrupted) => Some("wrong result".to_owned()),
        Ok(Exit::Shutdown) => Some("triple fault".to_owned()),
        Ok(other) => Some(format!("{other:?}")),
        Err(EngineError::Stuck { reason, .. }) => Some(reason),
        Err(error) => return Err(error),
    };
    let speed = board
        .loop_time
        .into_inner()
        .unwrap()
        .map(|time| LOOP_INSTRUCTIONS / time.as_secs_f64().max(1e-9) / 1e6);
    Ok(Verdict { passed, failure, speed })
}

/// Address in the guest of a symbol of its code.
fn guest_address(symbol: *const u8) -> u64 {
    CODE + (symbol as u64 - &raw const guise_probe_start as u64)
}

/// Code, page tables and interrupt table, as `probe/guest.s` expects them.
fn guest_memory() -> Result<GuestRegion, EngineError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 0x80;
    const UNCACHED: u64 = 0x18;
    const INTERRUPT_GATE: u64 = 0x8e00_0018_0000;
    let no_memory = |error: &dyn std::fmt::Display| EngineError::Unavailable {
        engine: "kvm",
        reason: format!("no memory for the test guest: {error}"),
    };
    let region = GuestRegion::from_range(GuestAddress(0), MEMORY, None)
        .map_err(|error| no_memory(&error))?;
    let put = |address: u64, value: u64| {
        region.write_obj(value, MemoryRegionAddress(address)).expect("inside of 1 MiB");
    };
    // SAFETY: the assembler placed the bytes from start to end in this order, in
    // read-only data.
    let code = unsafe {
        let start = &raw const guise_probe_start;
        let end = &raw const guise_probe_end;
        std::slice::from_raw_parts(start, end as usize - start as usize)
    };
    region.write_slice(code, MemoryRegionAddress(CODE)).expect("inside of 1 MiB");
    // Two address spaces, at 0x10000 and 0x14000: the first 2 MiB, the local APIC, and
    // at 4 MiB one page that differs, as do its contents.
    for (space, page) in [(0x10000, 0x20000), (0x14000, 0x21000)] {
        put(space, (space + 0x1000) | PRESENT_WRITABLE);
        put(space + 0x1000, (space + 0x2000) | PRESENT_WRITABLE);
        put(space + 0x2000, LARGE | PRESENT_WRITABLE);
        put(space + 0x1000 + 3 * 8, 0x18000 | PRESENT_WRITABLE);
        put(space + 0x2000 + 2 * 8, (space + 0x3000) | PRESENT_WRITABLE);
        put(space + 0x3000, page | PRESENT_WRITABLE);
        put(page, page);
    }
    put(0x18000 + 0x1f7 * 8, 0xfee0_0000 | UNCACHED | LARGE | PRESENT_WRITABLE);
    // What LIDT reads: limit and base.
    put(0x1a800, 0x1a000 << 16 | 0xfff);
    for (vector, handler) in
        [(3, &raw const guise_probe_on_int3), (0x40, &raw const guise_probe_on_timer)]
    {
        put(0x1a000 + vector * 16, guest_address(handler) | INTERRUPT_GATE);
    }
    Ok(region)
}

/// Real mode, flat, at the guest's first byte.
fn start_at_code(vcpu: &mut dyn Vcpu) -> Result<(), EngineError> {
    let mut state = vcpu.state()?;
    let code = SegmentState { selector: 0, base: 0, ..state.system.cs };
    state.system.cs = code;
    state.registers.rip = CODE;
    state.registers.gpr[4] = STACK;
    vcpu.set_state(&state)
}

/// Port 0xe9 takes letters, port 0xf4 ends the guest.
struct Board {
    vcpu: Arc<dyn VcpuHandle>,
    said: Mutex<Vec<u8>>,
    loop_began: Mutex<Option<Instant>>,
    loop_time: Mutex<Option<Duration>>,
}

impl Board {
    fn new(vcpu: Arc<dyn VcpuHandle>) -> Board {
        Board {
            vcpu,
            said: Mutex::default(),
            loop_began: Mutex::default(),
            loop_time: Mutex::default(),
        }
    }
}

impl Platform for Board {
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        if port != 0xe9 || data[0] == b'z' {
            self.vcpu.kick();
        }
        if port == 0xe9 {
            match data[0] {
                b'l' => *self.loop_began.lock().unwrap() = Some(Instant::now()),
                b'v' => {
                    let began = *self.loop_began.lock().unwrap();
                    *self.loop_time.lock().unwrap() = began.map(|began| began.elapsed());
                }
                _ => {}
            }
            let mut said = self.said.lock().unwrap();
            if said.len() < STAGES.len() {
                said.push(data[0]);
            }
        }
    }

    fn memory_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn memory_write(&self, _: u64, _: &[u8]) {}

    fn acknowledge_interrupt(&self) -> Option<u8> {
        None
    }

    fn end_of_interrupt(&self, _: u8) {}
}

/// Ends a guest that does not end by itself.
struct Watchdog {
    stop: Arc<(Mutex<bool>, Condvar)>,
    fired: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Watchdog {
    fn start(vcpu: Arc<dyn VcpuHandle>) -> Watchdog {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let fired = Arc::new(AtomicBool::new(false));
        let (their_stop, their_fired) = (stop.clone(), fired.clone());
        let thread = std::thread::spawn(move || {
            let (stopped, changed) = &*their_stop;
            let guard = stopped.lock().unwrap();
            let (guard, _) =
                changed.wait_timeout_while(guard, PATIENCE, |stopped| !*stopped).unwrap();
            if !*guard {
                their_fired.store(true, Ordering::SeqCst);
                vcpu.kick();
            }
        });
        Watchdog { stop, fired, thread }
    }

    /// Whether it had to end the guest.
    fn stop(self) -> bool {
        *self.stop.0.lock().unwrap() = true;
        self.stop.1.notify_all();
        self.thread.join().expect("the watchdog does not panic");
        self.fired.load(Ordering::SeqCst)
    }
}
