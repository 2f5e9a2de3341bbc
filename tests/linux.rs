//! Debian's kernels, as packaged, on the real binary.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{Boot, Ended, Running, alone, have, lines};
use guise_testkit::assets::Kernel;
use guise_testkit::{initramfs, torture};

fn boot(kernel: Kernel, cpus: &str) -> Boot {
    boot_with("soft", kernel, cpus)
}

fn boot_with(engine: &str, kernel: Kernel, cpus: &str) -> Boot {
    Boot::kernel(&have(kernel.image())).args(["--engine", engine, "--cpus", cpus])
}

/// To a shell, a command typed into it, and off.
fn reaches_a_shell(kernel: Kernel) {
    let _turn = alone();
    for cpus in ["1", "2", "4"] {
        let mut guest = boot(kernel, cpus).initrd(&have(initramfs::shell())).start();
        guest.wait_for("guest# ");
        // The answer differs from the question, which the terminal echoes.
        guest.type_line("echo $(($(nproc) * 1000)) processors");
        guest.wait_for(&format!("{cpus}000 processors"));
        guest.wait_for("guest# ");
        guest.type_line("exit");
        let ended = guest.finish();
        ended.expect_code(0).expect_clean_log();
        assert!(ended.output.contains("Linux version 6."), "{}", ended.output);
    }
}

#[test]
fn debian_12_cloud_reaches_a_shell() {
    reaches_a_shell(Kernel::Debian12Cloud);
}

#[test]
fn debian_12_reaches_a_shell() {
    reaches_a_shell(Kernel::Debian12);
}

#[test]
fn debian_13_cloud_reaches_a_shell() {
    reaches_a_shell(Kernel::Debian13Cloud);
}

/// Runs one command as the guest's job.
fn command(kernel: Kernel, cpus: &str, text: &str, arguments: &[&str]) -> Ended {
    let line = format!("console=ttyS0 -- \"{text}\"");
    boot(kernel, cpus)
        .initrd(&have(initramfs::with_torture()))
        .args(["--append", &line])
        .args(arguments)
        .run()
}

/// Every region on both tiers, from the first instruction on.
#[test]
fn the_two_tiers_agree_in_lockstep() {
    let _turn = alone();
    let ended = boot_with("lockstep", Kernel::Debian12Cloud, "1")
        .initrd(&have(initramfs::with_torture()))
        .args(["--append", "console=ttyS0 -- \"/bin/torture && /bin/torture32\""])
        .run();
    ended.expect_code(0);
    assert!(ended.output.contains("torture: done"), "{}", ended.output);
}

#[test]
fn the_interpreter_boots_alone() {
    let _turn = alone();
    let ended = boot_with("interp", Kernel::Debian12Cloud, "2")
        .initrd(&have(initramfs::with_torture()))
        .args(["--append", "console=ttyS0 -- \"true\""])
        .run();
    ended.expect_code(0).expect_clean_log();
}

#[test]
fn a_reboot_is_10() {
    let _turn = alone();
    command(Kernel::Debian12Cloud, "1", "reboot -f", &["--no-reboot"]).expect_code(10);
}

/// The kernel tells of its panic through pvpanic, whose driver is a module.
#[test]
fn a_panic_is_11() {
    let _turn = alone();
    let text = "insmod /lib/pvpanic.ko; insmod /lib/pvpanic-mmio.ko; echo c > /proc/sysrq-trigger";
    let ended = boot(Kernel::Debian12Cloud, "1")
        .initrd(&have(initramfs::with_pvpanic(Kernel::Debian12Cloud)))
        .args(["--append", &format!("console=ttyS0 -- \"{text}\"")])
        .run();
    assert!(ended.expect_code(11).errors.contains("panicked"), "{}", ended.errors);
    assert!(ended.output.contains("Kernel panic - not syncing: sysrq triggered crash"));
}

#[test]
fn the_pc_board_boots_too() {
    let _turn = alone();
    let ended = command(Kernel::Debian12Cloud, "2", "ls /sys/bus/pci/devices", &["--board", "pc"]);
    ended.expect_code(0).expect_clean_log();
    assert!(ended.output.contains("0000:00:00.0"), "{}", ended.output);
}

/// Memory above the hole for devices, which is not touched and so costs nothing.
#[test]
fn large_memory_is_seen_in_full() {
    let _turn = alone();
    let ended = command(Kernel::Debian12Cloud, "1", "free -m", &["--memory", "5G"]);
    ended.expect_code(0).expect_clean_log();
    let line = ended.output.lines().find(|line| line.starts_with("Mem:"));
    let total = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    assert!(total.is_some_and(|total| (4800..=5120).contains(&total)), "{}", ended.output);
}

#[test]
fn every_cpu_model_boots() {
    let _turn = alone();
    for model in ["baseline", "x86-64-v2", "x86-64-v3"] {
        let ended = command(Kernel::Debian12Cloud, "1", "true", &["--cpu", model]);
        ended.expect_code(0).expect_clean_log();
    }
}

/// Seconds that the guest's clock says have passed in about 20 of the host's.
#[test]
fn clocks_keep_time_and_an_idle_guest_is_cheap() {
    let _turn = alone();
    let mut guest = boot(Kernel::Debian12Cloud, "2").initrd(&have(initramfs::shell())).start();
    guest.wait_for("guest# ");
    let (first, begin) = uptime(&mut guest);
    let cpu_before = cpu_seconds(guest.id());
    std::thread::sleep(Duration::from_secs(20));
    let idle = cpu_seconds(guest.id()) - cpu_before;
    let (second, end) = uptime(&mut guest);
    let host = (end - begin).as_secs_f64();
    let off = (second - first) / host - 1.0;
    guest.type_line("exit");
    guest.finish().expect_code(0);
    // The two readings of the clock may each be late on a loaded machine; what counts
    // is a clock that runs wrong.
    assert!(off.abs() < 0.01, "the guest's clock is off by {:.2} %", off * 100.0);
    assert!(idle < 20.0 * 0.05, "an idle guest used {idle} of 20 s");
}

/// The guest's clock, and when the answer came.
fn uptime(guest: &mut Running) -> (f64, Instant) {
    guest.type_line("echo clock $(cut -d' ' -f1 /proc/uptime) end");
    // The first time it is the terminal's echo.
    guest.wait_for("clock $");
    guest.wait_for("clock ");
    let start = guest.output.rfind("clock ").map_or(0, |at| at + 6);
    guest.wait_for(" end");
    let now = Instant::now();
    let seconds = guest.output[start..].split(' ').next().and_then(|text| text.parse().ok());
    (seconds.expect("the guest prints its uptime"), now)
}

/// What a process of the host has used of its processors.
fn cpu_seconds(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    let ticks: u64 =
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// The same program, the same lines: on the host, and in guests.
#[test]
fn torture_ends_with_the_hosts_checksums() {
    let _turn = alone();
    let of_host = [have(torture::program()), have(torture::program_32())]
        .map(|program| Command::new(program).output().expect("the program runs on the host"));
    let expected: Vec<String> = of_host
        .iter()
        .flat_map(|output| {
            assert!(output.status.success(), "torture fails on the host: {output:?}");
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    for (kernel, cpus) in [(Kernel::Debian12, "1"), (Kernel::Debian12Cloud, "2")] {
        let ended = command(kernel, cpus, "/bin/torture && /bin/torture32", &[]);
        ended.expect_code(0);
        let of_guest: Vec<&str> =
            lines(&ended.output).into_iter().filter(|line| line.starts_with("torture")).collect();
        assert_eq!(of_guest, expected, "{}", ended.output);
        let log = Ended { code: None, output: kernel_log(&ended.output), errors: String::new() };
        log.expect_clean_log();
    }
}

/// What the kernel said; that programs are killed by signals is what they wanted.
fn kernel_log(output: &str) -> String {
    let said = output.lines().filter(|line| line.starts_with('['));
    said.filter(|line| !line.contains("torture")).collect::<Vec<_>>().join("\n")
}
