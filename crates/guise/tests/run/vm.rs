//! VMs: disks that boot by themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guise_testkit::assets::Kernel;
use guise_testkit::debian_root;

use crate::home::{BOX, Guise, Home};
use crate::terminal::Terminal;

/// A boot of systemd on a busy machine that executes guests in software.
const BOOT: Duration = Duration::from_secs(600);
const KERNEL: Kernel = Kernel::Debian12Cloud;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn small_disk(home: &Home) -> PathBuf {
    let disk = home.path("small.img");
    debian_root::small_bootable(KERNEL, &disk).unwrap();
    disk
}

fn until_said(home: &Home, name: &str, what: &str) {
    home.until_within(BOOT, what, || home.good(&["logs", name]).contains(what));
}

/// One life of a whole system: systemd takes its time where guests are executed in software.
#[test]
fn a_debian_disk_boots_and_ends_by_its_power_button() {
    let Some(home) = Home::new("debian", Guise::Vm) else { return };
    let disk = home.path("debian.img");
    debian_root::bootable(KERNEL, &disk).unwrap();
    let written = || fs::metadata(&disk).unwrap().modified().unwrap();
    let before = written();
    home.good(
        &[
            &["run", "-d", "-i", "-t", "--name", "it", "--hostname", "seeded", "-m", "512M"][..],
            &["--network", "none", "--disk", text(&disk)],
        ]
        .concat(),
    );
    let mut console = Terminal::open(&home, "attach it");
    console.until_within(BOOT, &home, "seeded login: ");
    console.type_in("root\n");
    console.until_within(BOOT, &home, "root@seeded:~#");
    console.type_in("\x10\x11");
    assert_eq!(console.end(), 0);
    // The agent went through systemd's hands, and is in its system.
    let state = home.guise(&["exec", "it", "systemctl", "is-system-running"]).out;
    assert!(["running\n", "degraded\n"].contains(&&*state), "{state}");
    assert_eq!(home.good(&["exec", "it", "cat", "/proc/1/comm"]), "systemd");
    assert_eq!(home.good(&["exec", "-u", "nobody", "-w", "/usr", "it", "pwd"]), "/usr");
    assert_eq!(home.guise(&["exec", "it", "ls", "/.guise"]).code, 2);
    home.good(&["stop", "-t", "600", "it"]);
    let status = home.inspect("it")["status"].clone();
    assert_eq!(status["exit_code"], 0, "{status}\n{}", home.good(&["logs", "it"]));
    assert_eq!(written(), before, "the image stays as it is");
    home.good(&["rm", "it"]);
    home.expect_nothing_left();
}

#[test]
fn a_life_from_the_seed_to_the_plug() {
    let Some(home) = Home::new("small", Guise::Vm) else { return };
    let disk = small_disk(&home);
    let (tell, key) = (home.path("user-data"), home.path("id.pub"));
    fs::write(&tell, "#!/bin/sh\necho told-$((6 * 7)) >/dev/ttyS0\n").unwrap();
    fs::write(&key, "ssh-ed25519 AAAAC3 one@here\n").unwrap();
    home.good(
        &[
            &["run", "-d", "-i", "-t", "--name", "it", "--hostname", "seeded", "-m", "256M"][..],
            &["--network", "none", "--disk", text(&disk), "--user-data", text(&tell)],
            &["--ssh-key", text(&key)],
        ]
        .concat(),
    );
    until_said(&home, "it", "start 1 of seeded");
    let said = home.good(&["logs", "it"]);
    assert!(said.contains("told-42"), "{said}");
    assert!(said.contains("keys: [\"ssh-ed25519 AAAAC3 one@here\"]"), "{said}");
    assert_eq!(home.inspect("it")["status"]["guise"], "vm");
    let said = home.guise(&["kill", "-s", "USR1", "it"]);
    assert!(said.code != 0 && said.err.lines().count() == 1, "{said:?}");
    assert!(said.err.contains("power button"), "{said:?}");
    assert_eq!(home.good(&["exec", "it", "cat", "/starts"]), "1");
    let stats: serde_json::Value =
        serde_json::from_str(&home.good(&["stats", "-o", "json", "it"])).unwrap();
    assert_eq!(stats[0]["memory_limit"], 256 << 20);
    assert!(stats[0]["processes"].as_u64() > Some(5), "{stats}");
    home.good(&["pause", "it"]);
    assert_eq!(home.inspect("it")["status"]["phase"], "paused");
    home.good(&["unpause", "it"]);
    let mut console = Terminal::open(&home, "attach it");
    console.type_in("echo this is $((6 * 8))\n");
    console.until_within(BOOT, &home, "this is 48");
    // It is the same life, and the disk has what was written.
    console.type_in("reboot -f\n");
    console.until_within(BOOT, &home, "start 2 of seeded");
    assert_eq!(home.good(&["exec", "it", "cat", "/starts"]), "2");
    console.type_in("echo this is $((6 * 9))\n");
    console.until_within(BOOT, &home, "this is 54");
    console.type_in("\x10\x11");
    assert_eq!(console.end(), 0);
    home.good(&["stop", "-t", "600", "it"]);
    let status = home.inspect("it")["status"].clone();
    assert_eq!(status["exit_code"], 0, "{status}\n{}", home.good(&["logs", "it"]));
    home.good(&["start", "it"]);
    until_said(&home, "it", "start 3 of seeded");
    home.good(&["kill", "it"]);
    home.until_phase("it", "exited");
    assert_eq!(home.inspect("it")["status"]["exit_code"], 137);
    home.good(&["rm", "it"]);
    home.expect_nothing_left();
}

#[test]
fn a_power_off_ends_it_and_nothing_is_left() {
    let Some(home) = Home::new("off", Guise::Vm) else { return };
    let disk = small_disk(&home);
    let line = format!("run --rm -it --as vm --engine soft -m 256M --disk {}", text(&disk));
    let mut console = Terminal::open(&home, &line);
    console.until_within(BOOT, &home, "start 1 of ");
    console.type_in("exit\n");
    assert_eq!(console.end(), 0);
    home.expect_nothing_left();
}

#[test]
fn what_does_not_boot_is_refused_in_one_line() {
    let Some(home) = Home::new("no-boot", Guise::Vm) else { return };
    let file = |name: &str| home.path(name).to_str().unwrap().to_owned();
    let (empty, lvm, cut, key) = (file("empty.img"), file("lvm.img"), file("cut.img"), file("key"));
    fs::File::create(&empty).unwrap().set_len(1 << 20).unwrap();
    let mut bytes = vec![0; 1 << 20];
    bytes[512 + 24..][..8].copy_from_slice(b"LVM2 001");
    fs::write(&lvm, &bytes).unwrap();
    let small = small_disk(&home);
    fs::copy(&small, &cut).unwrap();
    fs::File::options().write(true).open(&cut).unwrap().set_len(8 << 20).unwrap();
    fs::write(&key, "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
    for (args, code, about) in [
        (&["run", "--rm", "--disk", "/no/such.img"][..], 125, "/no/such.img"),
        (&["run", "--rm", "--disk", "/dev"], 125, "no file"),
        (&["run", "--rm", "--disk", &empty], 125, "install a kernel"),
        (&["run", "--rm", "--disk", &lvm], 125, "LVM"),
        (&["run", "--rm", "--disk", &cut], 125, "cut off"),
        (&["run", "--rm", "--disk", text(&small), "--disk-size", "1M"], 125, "--disk-size"),
        (&["run", "--rm", "--disk", &empty, "--read-only"], 125, "--read-only"),
        (&["run", "--rm", "--disk", &empty, "--pids-limit", "9"], 125, "--pids-limit"),
        (&["run", "--rm", "--disk", &empty, "-e", "A=1"], 125, "--user-data"),
        (&["run", "--rm", "--disk", &empty, "--ssh-key", &key], 2, "id_ed25519.pub"),
        (&["run", "--rm", "--as", "container", "--disk", &empty], 2, "--as vm"),
        (&["run", "--rm", "--as", "container", "--user-data", &empty, BOX], 2, "--as vm"),
    ] {
        let said = home.guise(args);
        assert_eq!((said.code, said.err.lines().count()), (code, 1), "{args:?}: {said:?}");
        assert!(said.err.contains(about), "{args:?}: {said:?}");
    }
    let explained = home.good(&["run", "--explain", "--disk", &empty]);
    assert!(explained.starts_with("vm\n") && explained.contains("jail"), "{explained}");
    home.expect_nothing_left();
}

/// The agent comes along in the initial RAM disk, or not at all.
#[test]
fn a_program_for_a_system_without_the_agent_is_refused_in_one_line() {
    let Some(home) = Home::new("no-agent", Guise::Vm) else { return };
    let disk = small_disk(&home);
    let list = home.path("list");
    let kernel = KERNEL.image().unwrap();
    let kernel = kernel.file_name().unwrap().to_string_lossy();
    fs::write(&list, format!("rm /boot/{}\n", kernel.replace("vmlinuz-", "initrd.img-"))).unwrap();
    let mut remove = std::process::Command::new("debugfs");
    let removed = remove.arg("-w").arg("-f").arg(&list).arg(&disk).output().unwrap();
    assert!(removed.status.success(), "{removed:?}");
    let said = home.guise(&["run", "--rm", "--disk", text(&disk), "true"]);
    assert_eq!((said.code, said.err.lines().count()), (125, 1), "{said:?}");
    assert!(said.err.contains("no initial RAM disk"), "{said:?}");
    home.expect_nothing_left();
}
