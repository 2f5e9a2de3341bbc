//! Machines that change engines while their guests run: nobody inside notices.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use guise_engine::{CpuModel, Engine};
use guise_engine_kvm::probe;
use guise_engine_soft::{SoftEngine, Tier};
use guise_machine::{BoardKind, BootSource, Ending, Machine, MachineConfig};
use guise_testkit::assets::Kernel;
use guise_testkit::baremetal::Program;
use guise_testkit::initramfs;

use crate::support::{Boot, PATIENCE, alone, have, kvm, not_run};

/// What the debug-exit port makes of 0.
const GOOD: u32 = 1;
/// How often machines move in a test, at the least.
const MOVES: usize = 500;

/// The guests, and on how many vCPUs they run.
const GUESTS: [(Program, u32); 7] = [
    (Program::Modes, 1),
    (Program::Pvh, 1),
    (Program::Interrupts, 1),
    (Program::ApicTimer, 1),
    (Program::Ports, 1),
    (Program::Paging, 1),
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

fn boot(program: Program, vcpus: u32, engine: &dyn Engine) -> (Machine, Output) {
    let config = MachineConfig {
        memory: 64 << 20,
        vcpus,
        board: BoardKind::Microvm,
        model: CpuModel::Baseline,
        test_devices: true,
    };
    let output = Output::default();
    let machine = Machine::new(engine, &config, Box::new(output.clone())).expect("a machine");
    let kernel = have(program.image());
    let source = BootSource { kernel, initrd: None, command_line: "one two".to_owned() };
    machine.boot(&source).expect("the guest is loaded");
    (machine, output)
}

/// Runs a guest on one engine and returns what it printed.
fn unmoved(program: Program, vcpus: u32, engine: &dyn Engine) -> String {
    let (machine, output) = boot(program, vcpus, engine);
    machine.resume();
    let ending = machine.wait(Some(PATIENCE));
    assert!(matches!(ending, Some(Ending::Exit(GOOD))), "{program:?}: {ending:?}");
    machine.pause().expect("it stops");
    output.text()
}

/// Runs a guest that goes to the next engine every few milliseconds, and returns what
/// it printed and how often it moved. An engine that cannot go on, where this is to be
/// expected, is left earlier.
fn moved(
    program: Program,
    vcpus: u32,
    engines: &[&dyn Engine],
    start: usize,
    may_fail: impl Fn(&dyn Engine) -> bool,
) -> (String, usize) {
    let mut current = start % engines.len();
    let (machine, output) = boot(program, vcpus, engines[current]);
    let deadline = Instant::now() + PATIENCE;
    let mut moves = 0;
    loop {
        // Not the same instant of each round.
        let slice = Duration::from_micros(700 + 900 * ((moves + start) as u64 % 4));
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

fn ping_pong(engines: &[&dyn Engine], may_fail: impl Fn(&dyn Engine) -> bool) {
    let interpreter = SoftEngine::new(Tier::Interpreter);
    let expected = GUESTS.map(|(program, vcpus)| unmoved(program, vcpus, &interpreter));
    let mut moves = 0;
    for round in 0.. {
        assert!(round < 200, "the guests are too quick: {moves} moves only");
        for ((program, vcpus), expected) in GUESTS.into_iter().zip(&expected) {
            let begin = Instant::now();
            let (printed, times) = moved(program, vcpus, engines, round, &may_fail);
            println!("{program:?}: {times} moves in {:?}", begin.elapsed());
            assert_eq!(printed, *expected, "{program:?} after {times} moves");
            moves += times;
        }
        if moves >= MOVES {
            break;
        }
    }
}

#[test]
fn ping_pong_between_the_tiers_of_the_software_engine() {
    let _turn = alone();
    let engines = [Tier::Interpreter, Tier::Translator].map(SoftEngine::new);
    ping_pong(&[&engines[0], &engines[1]], |_| false);
}

#[test]
fn ping_pong_between_kvm_and_the_interpreter() {
    let _turn = alone();
    let Some(kvm) = kvm() else { return };
    let usable = probe::run(&kvm).is_ok_and(|verdict| verdict.usable());
    let interpreter = SoftEngine::new(Tier::Interpreter);
    ping_pong(&[&kvm, &interpreter], |engine| engine.name() == "kvm" && !usable);
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
    // A KVM that emulates what a processor should do would unpack a bzImage for minutes.
    let kernel =
        if usable { Kernel::Debian12Cloud.image() } else { Kernel::unpacked_cloud() };
    let mut guest = Boot::kernel(&have(kernel))
        .initrd(&have(initramfs::shell()))
        .args(["--engine", "kvm", "--handover", "soft,at=failure", "--cpu", "baseline"])
        .start();
    guest.wait_for("guest# ");
    guest.type_line("echo $((6 * 7)) is the answer");
    guest.wait_for("42 is the answer");
    guest.wait_for("guest# ");
    guest.type_line("exit");
    let ended = guest.finish();
    ended.expect_code(0).expect_clean_log();
    let moved = ended.errors.contains("the machine goes on with");
    if usable {
        assert!(!moved, "{}", ended.errors);
    } else if !moved {
        not_run("a hand-over at a failure: KVM ran all of the kernel", "the probe says otherwise");
    }
}
