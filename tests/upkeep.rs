//! What devices cost the host, and what they keep for it: wake-ups, memory, data.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{Boot, PATIENCE, Running, alone, have};
use guise_testkit::assets::Kernel;
use guise_testkit::initramfs;

/// A guest's shell, with all drivers.
fn shell(cpus: &str) -> Boot {
    let kernel = Kernel::Debian12Cloud;
    Boot::kernel(&have(kernel.image()))
        .initrd(&have(initramfs::with_virtio(kernel)))
        .args(["--cpus", cpus])
}

/// Whether there is time for what takes long.
fn long_run() -> bool {
    std::env::var_os("GUISE_DEVICE_SOAK").is_some()
}

/// How often each of the devices' threads has gone to sleep and come back.
fn wake_ups(process: u32) -> BTreeMap<String, u64> {
    const DEVICES: [&str; 6] = ["disk ", "net", "vsock", "share ", "balloon ", "console"];
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let mut counts = BTreeMap::new();
    for task in tasks.map(|task| task.expect("a thread").path()) {
        let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
        let status = fs::read_to_string(task.join("status")).unwrap_or_default();
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        if DEVICES.iter().any(|device| name.starts_with(device)) {
            let count = count.and_then(|count| count.trim().parse().ok());
            counts.insert(format!("{} {}", name.trim(), task.display()), count.expect("a count"));
        }
    }
    counts
}

#[test]
fn idle_devices_do_not_wake_up() {
    let _turn = alone();
    let scratch = tempfile::tempdir().expect("a directory");
    let disk = scratch.path().join("disk");
    fs::write(&disk, vec![0; 1 << 20]).expect("written");
    let mut guest = shell("1")
        .args(["--disk", &format!("{},format=raw", disk.display()), "--net", "user", "--balloon"])
        .args(["--vsock", &scratch.path().join("socket").display().to_string()])
        .args(["--share", &format!("{},tag=t", scratch.path().display())])
        .start();
    guest.wait_for("guest# ");
    guest.type_line("mount -t virtiofs t /mnt; head -c 9 /dev/vda; echo $((6 * 7)).");
    guest.wait_for("42.");
    // What is still under way ends.
    std::thread::sleep(Duration::from_secs(3));
    let before = wake_ups(guest.id());
    assert!(before.len() >= 8, "{before:?}");
    std::thread::sleep(Duration::from_secs(4));
    let after = wake_ups(guest.id());
    for (thread, count) in &after {
        let woken = count - before.get(thread).copied().unwrap_or(0);
        // A kernel may have something to do, but nothing that comes every second.
        assert!(woken <= 2, "{thread} woke up {woken} times in 4 s");
    }
    guest.type_line("poweroff -f");
    guest.finish().expect_code(0).expect_clean_log();
}

/// What is resident of a process, in MiB. Translated code is mapped twice and counts twice.
fn resident(process: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).expect("it runs");
    let line = maps.lines().find_map(|line| line.strip_prefix("Rss:")).expect("a size");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib >> 10
}

/// What a machine that has nothing to do may keep, of which 90 are the guest's own.
const IDLE: u64 = 150;

#[test]
fn freed_memory_returns_to_the_host() {
    let _turn = alone();
    let mut guest = shell("1").args(["--memory", "512M", "--balloon"]).start();
    guest.wait_for("guest# ");
    let before = resident(guest.id());
    guest.type_line("mount -t tmpfs -o size=430m t /mnt; dd if=/dev/zero of=/mnt/x bs=1M count=400; echo $((6 * 7)) touched");
    guest.wait_for("42 touched");
    let touched = resident(guest.id());
    assert!(touched > 400, "{before} MiB, then {touched}");
    guest.type_line("rm /mnt/x; echo $((6 * 7)) freed");
    guest.wait_for("42 freed");
    let freed = Instant::now();
    // It takes a few seconds; more on a machine that is busy with something else.
    while resident(guest.id()) > IDLE {
        let now = resident(guest.id());
        assert!(freed.elapsed() < Duration::from_secs(60), "{touched} MiB, and still {now}");
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("{before} MiB, {touched} MiB, and back after {:?}", freed.elapsed());
    guest.type_line("poweroff -f");
    guest.finish().expect_code(0).expect_clean_log();
}

/// An image as the plain content of its disk.
fn content(image: &Path, format: &str) -> Vec<u8> {
    let plain = image.with_extension("plain");
    let status = Command::new(env!("CARGO_BIN_EXE_guise"))
        .args(["disk", "convert", "-f", format, "-O", "raw"])
        .args([image, &plain])
        .status()
        .expect("it starts");
    assert!(status.success());
    fs::read(plain).expect("it is there")
}

/// Lets a guest write and flush, kills the machine in the middle, and looks whether all
/// that the guest knew to be safe is there.
fn kill_a_writer(format: &str, round: u32) {
    const BLOCK: usize = 64 << 10;
    let scratch = tempfile::tempdir().expect("a directory");
    let image = scratch.path().join("disk");
    let made = Command::new(env!("CARGO_BIN_EXE_guise"))
        .args(["disk", "create", "-f", format])
        .args([image.as_os_str(), "64M".as_ref()])
        .output()
        .expect("it starts");
    assert!(made.status.success(), "{made:?}");
    let mut guest: Running =
        shell("1").args(["--disk", &format!("{},format={format}", image.display())]).start();
    guest.wait_for("guest# ");
    guest.type_line(
        "n=0; while true; do n=$((n+1)); yes $n | head -c 65536 | \
         dd of=/dev/vda bs=64k iflag=fullblock seek=$n conv=fsync 2>/dev/null; echo flushed $n.; done",
    );
    guest.wait_for(&format!("flushed {}.", 5 + round % 20));
    // Somewhere in the work on the next ones.
    std::thread::sleep(Duration::from_millis(u64::from(round * 37 % 90)));
    guest.kill();
    let ended = guest.finish();
    let flushed = ended.output.lines().filter_map(|line| {
        line.trim_end().strip_prefix("flushed ")?.strip_suffix('.')?.parse::<usize>().ok()
    });
    let flushed = flushed.max().expect("it flushed something");
    let content = content(&image, format);
    for number in 1..=flushed {
        let line = format!("{number}\n");
        let expected: Vec<u8> = line.bytes().cycle().take(BLOCK).collect();
        let found = &content[number * BLOCK..(number + 1) * BLOCK];
        assert!(found == expected, "{format}: block {number} of {flushed} is not what was flushed");
    }
}

#[test]
fn a_killed_machine_has_kept_what_was_flushed() {
    let _turn = alone();
    let started = Instant::now();
    for round in 0..if long_run() { 50 } else { 3 } {
        kill_a_writer(["raw", "qcow2", "vhdx"][round as usize % 3], round);
        assert!(long_run() || started.elapsed() < PATIENCE);
    }
}

#[test]
fn a_crowd_of_files_is_shared() {
    let _turn = alone();
    if !long_run() {
        crate::support::not_run("100,000 files in a share", "make soak does");
        return;
    }
    let scratch = tempfile::tempdir().expect("a directory");
    // Two to three minutes of a processor, which others may want as well.
    let mut guest = shell("2")
        .args(["--share", &format!("{},tag=t", scratch.path().display())])
        .start()
        .with_patience(6 * PATIENCE);
    guest.wait_for("guest# ");
    guest.type_line("mount -t virtiofs t /mnt; files /mnt 100000; echo files said $?.");
    guest.wait_for("files said 0.");
    guest.type_line("poweroff -f");
    guest.finish().expect_code(0).expect_clean_log();
}
