//! Machines that change engines while their guests run: nobody inside notices.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use guise_engine::{CpuModel, Engine, EngineError};
use guise_engine_kvm::probe;
use guise_engine_soft::{SoftEngine, Tier};
use guise_machine::{BoardKind, BootSource, Ending, Machine, MachineConfig, MachineError};
use guise_testkit::assets::Kernel;
use guise_testkit::baremetal::Program;
use guise_testkit::initramfs;

use crate::support::{Boot, PATIENCE, alone, have, kvm};

/// What the debug-exit port makes of 0.
const GOOD: u32 = 1;
/// How often machines move in a test, at the least.
const MOVES: usize = 500;

/// The guests, and on how many vCPUs they run.
const GUESTS: [(Program, u32); 8] = [
    (Program::Modes, 1),
    (Program::Pvh, 1),
    (Program::Interrupts, 1),
    (Program::ApicTimer, 1),
    (Program::Ports, 1),
    (Program::Paging, 1),
    (Program::Iommu, 1),
    (Program::Smp, 4),
];

/// Keeps what a guest prints.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("nobody panics").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Output {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("nobody panics")).into_owned()
    }
}

/// A guest, compiled.
struct Guest {
    program: Program,
    vcpus: u32,
    model: CpuModel,
    kernel: PathBuf,
}

fn config(vcpus: u32, model: CpuModel) -> MachineConfig {
    let board = BoardKind::Microvm;
    let (memory, addable_memory) = (64 << 20, 0);
    MachineConfig { memory, addable_memory, vcpus, board, model, iommu: true, test_devices: true }
}

/// The baseline, unless an engine lacks something of it on this host: a KVM that is a guest
/// itself may. All of them then have what the host has.
fn common_model(engines: &[&dyn Engine]) -> CpuModel {
    let lacks = |engine: &&dyn Engine| {
        let machine = Machine::new(*engine, &config(1, CpuModel::Baseline), Box::new(Vec::new()));
        matches!(machine, Err(MachineError::Engine(EngineError::Model { .. })))
    };
    if engines.iter().any(lacks) { CpuModel::Host } else { CpuModel::Baseline }
}

fn boot(guest: &Guest, engine: &dyn Engine) -> (Machine, Output) {
    let config = config(guest.vcpus, guest.model);
    let output = Output::default();
    let machine = Machine::new(engine, &config, Box::new(output.clone())).expect("a machine");
    let source = BootSource {
        kernel: guest.kernel.clone(),
        initrd: None,
        command_line: "one two".to_owned(),
    };
    machine.boot(&source).expect("the guest is loaded");
    (machine, output)
}

/// Runs a guest on one engine and returns what it printed.
fn unmoved(guest: &Guest, engine: &dyn Engine) -> String {
    let (machine, output) = boot(guest, engine);
    machine.resume();
    let ending = machine.wait(Some(PATIENCE));
    assert!(matches!(ending, Some(Ending::Exit(GOOD))), "{:?}: {ending:?}", guest.program);
    machine.pause().expect("it stops");
    output.text()
}

/// Runs a guest that goes to the next engine every few milliseconds, and returns what
/// it printed and how often it moved. An engine that cannot go on, where this is to be
/// expected, is left earlier.
fn moved(
    guest: &Guest,
    engines: &[&dyn Engine],
    start: usize,
    may_fail: impl Fn(&dyn Engine) -> bool,
) -> (String, usize) {
    let mut current = start % engines.len();
    let Guest { program, vcpus, .. } = *guest;
    let (machine, output) = boot(guest, engines[current]);
    let deadline = Instant::now() + PATIENCE;
    let mut moves = 0;
    loop {
        // Some guests are through in a millisecond; others wait for timers, or for vCPUs
        // that have to share the host's processors. On a busy host a turn can be over before
        // a vCPU's thread was scheduled once, so turns grow until the guest gets on.
        let slice = Duration::from_micros(300 + 900 * ((moves + start) as u64 % 4)) * vcpus;
        let slice = slice * (1 + moves as u32 / 50).min(20);
        machine.resume();
        match machine.wait(Some(slice)) {
            None => assert!(Instant::now() < deadline, "{program:?}: {}", output.text()),
            Some(Ending::Exit(GOOD)) => break,
            Some(Ending::Engine(error)) if may_fail(engines[current]) => {
                eprintln!("{program:?}: {error}");
            }
            Some(other) => panic!("{program:?} after {moves} moves: {other:?}\n{}", output.text()),
        }
        machine.pause().expect("it stops");
        current = (current + 1) % engines.len();
        let next = engines[current];
        machine
            .hand_over(next)
            .unwrap_or_else(|error| panic!("{program:?} to {}: {error}", next.name()));
        moves += 1;
    }
    machine.pause().expect("it stops");
    (output.text(), moves)
}

fn ping_pong(
    guests: &[(Program, u32)],
    engines: &[&dyn Engine],
    may_fail: impl Fn(&dyn Engine) -> bool,
) {
    let interpreter = SoftEngine::new(Tier::Interpreter);
    let model = common_model(engines);
    let compiled = |&(program, vcpus): &(Program, u32)| Guest {
        program,
        vcpus,
        model,
        kernel: have(program.image()),
    };
    let guests: Vec<Guest> = guests.iter().map(compiled).collect();
    let expected: Vec<String> = guests.iter().map(|guest| unmoved(guest, &interpreter)).collect();
    let mut moves = 0;
    for round in 0.. {
        assert!(round < 200, "the guests are too quick: {moves} moves only");
        for (guest, expected) in guests.iter().zip(&expected) {
            let (printed, times) = moved(guest, engines, round, &may_fail);
            assert_eq!(printed, *expected, "{:?} after {times} moves", guest.program);
            moves += times;
        }
        if moves >= MOVES {
            println!("{moves} moves in {} rounds", round + 1);
            break;
        }
    }
}

#[test]
fn ping_pong_between_the_tiers_of_the_software_engine() {
    let _turn = alone();
    let engines = [Tier::Interpreter, Tier::Translator].map(SoftEngine::new);
    ping_pong(&GUESTS, &[&engines[0], &engines[1]], |_| false);
}

#[test]
fn ping_pong_between_kvm_and_the_interpreter() {
    let _turn = alone();
    let Some(kvm) = kvm() else { return };
    let usable = probe::run(&kvm).is_ok_and(|verdict| verdict.usable());
    let interpreter = SoftEngine::new(Tier::Interpreter);
    ping_pong(&GUESTS, &[&kvm, &interpreter], |engine| engine.name() == "kvm" && !usable);
}

/// The real binary, with each way to say when.
#[test]
fn hand_overs_on_the_command_line() {
    let _turn = alone();
    let expected = Program::Interrupts.expected().expect("it ends through the port");
    for arguments in [
        vec!["--engine", "interp", "--handover", "soft,at=5ms", "--handover", "interp,at=5ms"],
        vec!["--engine", "soft", "--handover", "interp,at=exits:300"],
        vec!["--engine", "soft", "--handover", "interp"],
        vec!["--engine", "soft", "--handover", "interp,at=failure"],
    ] {
        let ended = Boot::kernel(&have(Program::Interrupts.image()))
            .args(["--memory", "64M", "--testdev", "--timeout", "120"])
            .args(&arguments)
            .run();
        ended.expect_code(GOOD as i32);
        assert_eq!(ended.output.replace('\r', ""), expected, "{arguments:?}");
    }
}

#[test]
fn hand_overs_that_cannot_be_are_refused() {
    for (handover, says) in [("qemu", "the engine is kvm, soft or interp"), ("soft,at=x", "at=")] {
        let ended = Boot::kernel("none".as_ref()).args(["--handover", handover]).run();
        let ended = ended.expect_code(2);
        assert!(ended.errors.contains(says), "{}", ended.errors);
    }
}

/// What KVM cannot execute on this host, the software engine does: from the first such
/// instruction on. Where KVM can execute all, it does.
#[test]
fn a_kernel_that_kvm_cannot_run_goes_on_in_the_software_engine() {
    let _turn = alone();
    let Some(kvm) = kvm() else { return };
    let usable = probe::run(&kvm).is_ok_and(|verdict| verdict.usable());
    // A KVM that does in software what a processor should takes a minute or two to come to
    // the first instruction that it cannot do, and would take many more to unpack a bzImage.
    let kernel = if usable { Kernel::Debian12Cloud.image() } else { Kernel::unpacked_cloud() };
    // Such a KVM may also leave CPUID to the processor, whatever it was told: the guest
    // then knows all of the host. The software engine lacks MPX (bit 302), and such a KVM
    // PCIDs (bit 145). The rest of the line spares it work.
    let (model, command_line) = match usable {
        true => ("baseline", "console=ttyS0"),
        false => ("host", "console=ttyS0 clearcpuid=145,302 init_on_alloc=0 lpj=5000000"),
    };
    let mut guest = Boot::kernel(&have(kernel))
        .initrd(&have(initramfs::shell()))
        .args(["--engine", "kvm", "--handover", "soft,at=failure", "--memory", "128M"])
        .args(["--cpu", model, "--append", command_line])
        .start()
        .with_patience(if usable { PATIENCE } else { 5 * PATIENCE });
    guest.wait_for("guest# ");
    guest.type_line("echo $((6 * 7)) is the answer");
    guest.wait_for("42 is the answer");
    guest.wait_for("guest# ");
    guest.type_line("exit");
    let ended = guest.finish();
    ended.expect_code(0).expect_clean_log();
    let moved = ended.errors.contains("the machine goes on with");
    assert_eq!(moved, !usable, "{}", ended.errors);
}
