//! Bare-metal guests on the real binary: what they print, and how they end.

use crate::support::{Boot, Ended, alone, have, kvm, lines, not_run};
use guise_engine_kvm::probe;
use guise_testkit::baremetal::Program;

/// The debug-exit port's value 0 as an exit code.
const GOOD: i32 = 1;

fn run(program: Program, arguments: &[&str]) -> Ended {
    let _turn = alone();
    Boot::kernel(&have(program.image()))
        .args(["--memory", "64M", "--testdev", "--timeout", "120"])
        .args(arguments)
        .run()
}

/// All engines print the same.
fn prints_what_it_should(program: Program, arguments: &[&str]) {
    let expected = program.expected().expect("this program ends through the port");
    for engine in engines() {
        let ended = run(program, &[arguments, &["--engine", engine]].concat());
        if engine == "kvm" && gave_up(&ended) {
            // What it printed before is right all the same.
            let (printed, expected) = (lines(&ended.output), lines(expected));
            assert!(expected.starts_with(&printed), "{printed:?} is not of {expected:?}");
            not_run(&format!("the rest of {program:?} on kvm"), ended.errors.trim());
            continue;
        }
        assert_eq!(lines(&ended.output), lines(expected), "{engine}: {}", ended.errors);
        ended.expect_code(GOOD);
    }
}

/// Those that there are on this host.
fn engines() -> Vec<&'static str> {
    let kvm = kvm().map(|_| "kvm");
    ["interp", "soft"].into_iter().chain(kvm).collect()
}

/// Whether KVM met an instruction that it cannot emulate, on a host where that is to be
/// expected: one whose KVM executes in software what a processor should.
fn gave_up(ended: &Ended) -> bool {
    ended.code == Some(13)
        && ended.errors.contains("KVM cannot emulate this instruction")
        && kvm().is_some_and(|kvm| !probe::run(&kvm).is_ok_and(|verdict| verdict.usable()))
}

#[test]
fn modes() {
    prints_what_it_should(Program::Modes, &[]);
}

#[test]
fn pvh() {
    prints_what_it_should(Program::Pvh, &["--append", "one two"]);
}

#[test]
fn interrupts() {
    prints_what_it_should(Program::Interrupts, &[]);
    prints_what_it_should(Program::Interrupts, &["--board", "pc"]);
}

#[test]
fn apic_timer() {
    prints_what_it_should(Program::ApicTimer, &[]);
}

#[test]
fn ports() {
    prints_what_it_should(Program::Ports, &[]);
}

#[test]
fn paging() {
    prints_what_it_should(Program::Paging, &[]);
}

#[test]
fn smp() {
    prints_what_it_should(Program::Smp, &["--cpus", "4"]);
}

#[test]
fn msi() {
    prints_what_it_should(Program::Msi, &["--rng"]);
}

#[test]
fn iommu() {
    prints_what_it_should(Program::Iommu, &[]);
}

/// What breaks translators: the tiers of the software engine print what a processor does.
fn breaks_no_tier(program: Program, engines: &[&str], arguments: &[&str]) {
    let expected = program.expected().expect("this program ends through the port");
    for engine in engines {
        let ended = run(program, &[arguments, &["--engine", engine]].concat());
        assert_eq!(lines(&ended.output), lines(expected), "{engine}: {}", ended.errors);
        ended.expect_code(GOOD);
    }
}

const TIERS: [&str; 2] = ["interp", "soft"];
/// Those, and both of them compared in each step: for one vCPU.
const TIERS_AND_LOCKSTEP: [&str; 3] = ["interp", "soft", "lockstep"];

#[test]
fn code_that_changes() {
    breaks_no_tier(Program::CodeChanges, &TIERS, &["--cpus", "2", "--rng"]);
}

#[test]
fn translations_that_change() {
    breaks_no_tier(Program::Translations, &TIERS_AND_LOCKSTEP, &[]);
}

#[test]
fn faults_in_the_middle_of_instructions() {
    breaks_no_tier(Program::Faults, &TIERS_AND_LOCKSTEP, &[]);
}

#[test]
fn what_happens_between_instructions() {
    breaks_no_tier(Program::Interruptions, &TIERS_AND_LOCKSTEP, &[]);
}

#[test]
fn the_order_of_memory() {
    breaks_no_tier(Program::Litmus, &TIERS, &["--cpus", "4"]);
}

#[test]
fn tlb_shootdowns_and_dirty_bits() {
    breaks_no_tier(Program::Shootdown, &TIERS, &["--cpus", "4"]);
}

#[test]
fn kicks_that_come_before_the_halt() {
    breaks_no_tier(Program::Kicks, &TIERS, &["--cpus", "2"]);
}

#[test]
fn lockstep_refuses_what_it_cannot_compare() {
    let kernel = have(Program::Modes.image());
    for wrong in [&["--cpus", "2"][..], &["--rng"], &["--console", "virtio"], &["--net", "user"]] {
        let ended = Boot::kernel(&kernel).args(["--engine", "lockstep"]).args(wrong).run();
        ended.expect_code(2);
        let says = "--engine lockstep cannot compare a machine with";
        assert!(ended.errors.contains(says), "{wrong:?}: {}", ended.errors);
        assert_eq!(ended.errors.lines().count(), 1, "{}", ended.errors);
    }
}

#[test]
fn virtio() {
    let scratch = tempfile::tempdir().expect("a directory");
    let path = |name: &str| scratch.path().join(name).display().to_string();
    std::fs::write(path("disk"), vec![0; 1 << 20]).expect("written");
    let disk = format!("{},format=raw", path("disk"));
    let share = format!("{},tag=t", scratch.path().display());
    let port = format!("{},name=org.guise.test", path("port"));
    prints_what_it_should(
        Program::Virtio,
        &[
            ["--disk", &disk],
            ["--share", &share],
            ["--net", "user"],
            ["--vsock", &path("socket")],
            ["--console", "virtio"],
            ["--port", &port],
            ["--memory-max", "192M"],
            ["--rng", "--balloon"],
        ]
        .concat(),
    );
}

#[test]
fn power_off_is_0() {
    let ended = run(Program::PowerOff, &["--engine", "soft"]);
    assert_eq!(ended.expect_code(0).errors, "");
}

#[test]
fn reset_is_10_where_no_reboot_is_wanted() {
    run(Program::Reset, &["--no-reboot"]).expect_code(10);
    run(Program::KeyboardReset, &["--no-reboot", "--board", "pc"]).expect_code(10);
}

#[test]
fn the_microvm_board_has_no_keyboard_controller_to_reset_it() {
    let _turn = alone();
    let ended = Boot::kernel(&have(Program::KeyboardReset.image()))
        .args(["--memory", "64M", "--no-reboot", "--timeout", "3"])
        .run();
    assert!(ended.expect_code(124).output.contains("reset"));
}

#[test]
fn a_reset_starts_the_machine_again() {
    let _turn = alone();
    let mut running = Boot::kernel(&have(Program::Reset.image())).args(["--memory", "64M"]).start();
    for _ in 0..3 {
        running.wait_for("reset");
    }
}

#[test]
fn panic_is_11() {
    let ended = run(Program::Panic, &[]);
    assert!(ended.expect_code(11).errors.contains("panicked"));
}

#[test]
fn triple_fault_is_12() {
    let ended = run(Program::TripleFault, &[]);
    assert!(ended.expect_code(12).errors.contains("triple fault"));
}

#[test]
fn timeout_is_124() {
    let _turn = alone();
    let ended = Boot::kernel(&have(Program::Spin.image())).args(["--timeout", "2"]).run();
    assert!(ended.expect_code(124).output.contains("spinning"));
}

#[test]
fn a_signal_ends_in_good_order() {
    let _turn = alone();
    let mut running = Boot::kernel(&have(Program::Spin.image())).start();
    running.wait_for("spinning");
    let id = rustix::process::Pid::from_raw(running.id() as i32).expect("a process");
    rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("it runs");
    running.finish().expect_code(128 + 15);
}

#[test]
fn statistics_are_written_as_json() {
    let file = std::env::temp_dir().join(format!("guise-stats-{}", std::process::id()));
    run(Program::PowerOff, &["--stats", file.to_str().expect("a plain path")]).expect_code(0);
    let text = std::fs::read(&file).expect("they were written");
    std::fs::remove_file(&file).expect("they were written");
    let statistics: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(statistics["ended_by"], "power-off");
    assert!(statistics["cpu_seconds"].as_f64() > Some(0.0));
    assert!(statistics["exits"]["port_write"].as_u64() > Some(0), "{statistics}");
}
