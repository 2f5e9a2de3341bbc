//! VMs: disks that boot by themselves.

use std::fs;
use std::time::Duration;

use guise_testkit::assets::Kernel;
use guise_testkit::debian_root;

use crate::home::{BOX, Guise, Home};
use crate::terminal::Terminal;

/// A boot of systemd on a busy machine that executes guests in software.
const BOOT: Duration = Duration::from_secs(600);

#[test]
fn a_debian_disk_boots_knows_its_name_restarts_and_ends_by_its_power_button() {
    let Some(home) = Home::new("debian", Guise::Vm) else { return };
    let disk = home.path("debian.img");
    debian_root::bootable(Kernel::Debian12Cloud, &disk).unwrap();
    let written = || fs::metadata(&disk).unwrap().modified().unwrap();
    let before = written();
    let tell = home.path("user-data");
    fs::write(&tell, "#!/bin/sh\necho told-$((6 * 7)) >/dev/ttyS0\n").unwrap();
    let (disk, tell) = (disk.to_string_lossy(), tell.to_string_lossy());
    home.good(
        &[
            &["run", "-d", "-i", "-t", "--name", "it", "--hostname", "seeded", "-m", "512M"][..],
            &["--network", "none", "--disk", &disk, "--user-data", &tell],
        ]
        .concat(),
    );
    home.until_within(BOOT, "the user's script has run", || {
        home.good(&["logs", "it"]).contains("told-42")
    });
    assert_eq!(home.inspect("it")["status"]["guise"], "vm");
    for (args, about) in [
        (&["exec", "it", "true"][..], "guise attach"),
        (&["cp", "it:/etc/hostname", "."], "guise attach"),
        (&["kill", "-s", "USR1", "it"], "power button"),
    ] {
        let said = home.guise(args);
        assert!(said.code != 0 && said.err.lines().count() == 1, "{args:?}: {said:?}");
        assert!(said.err.contains(about), "{args:?}: {said:?}");
    }
    let stats: serde_json::Value =
        serde_json::from_str(&home.good(&["stats", "-o", "json", "it"])).unwrap();
    assert_eq!(stats[0]["memory_limit"], 512 << 20);
    let mut console = Terminal::open(&home, "attach it");
    let log_in = |console: &mut Terminal| {
        console.type_in("\n");
        console.until_within(BOOT, &home, "seeded login: ");
        console.type_in("root\n");
        console.until_within(BOOT, &home, "root@seeded:~#");
    };
    log_in(&mut console);
    home.good(&["pause", "it"]);
    assert_eq!(home.inspect("it")["status"]["phase"], "paused");
    home.good(&["unpause", "it"]);
    console.type_in("echo this is $((6 * 8)) >kept; sync; systemctl reboot\n");
    home.until_within(BOOT, "it has started again", || {
        home.good(&["logs", "it"]).matches("told-42").count() == 2
    });
    console.type_in("\x10\x11");
    assert_eq!(console.end(), 0);
    let mut console = Terminal::open(&home, "attach it");
    log_in(&mut console);
    console.type_in("cat kept\n");
    console.until_within(BOOT, &home, "this is 48");
    console.type_in("\x10\x11");
    assert_eq!(console.end(), 0);
    home.good(&["stop", "-t", "600", "it"]);
    let status = home.inspect("it")["status"].clone();
    assert_eq!(status["exit_code"], 0, "{status}\n{}", home.good(&["logs", "it"]));
    assert_eq!(written(), before, "the image stays as it is");
    home.good(&["rm", "it"]);
    assert_eq!(home.leftovers(), Vec::<String>::new());
}

#[test]
fn what_does_not_boot_is_refused_in_one_line() {
    let Some(home) = Home::new("no-boot", Guise::Vm) else { return };
    let empty = home.path("empty.img");
    fs::File::create(&empty).unwrap().set_len(1 << 20).unwrap();
    let empty = empty.to_string_lossy();
    for (args, code, about) in [
        (&["run", "--rm", BOX][..], 125, "--disk"),
        (&["run", "--rm", "--disk", "/no/such.img"], 125, "/no/such.img"),
        (&["run", "--rm", "--disk", &empty], 125, "vmlinuz"),
        (&["run", "--rm", "--disk", &empty, "--read-only"], 125, "--read-only"),
        (&["run", "--rm", "--disk", &empty, "-e", "A=1"], 125, "--user-data"),
        (&["run", "--rm", "--as", "container", "--disk", &empty], 2, "--as vm"),
        (&["run", "--rm", "--as", "container", "--user-data", &empty, BOX], 2, "--as vm"),
    ] {
        let said = home.guise(args);
        assert_eq!((said.code, said.err.lines().count()), (code, 1), "{args:?}: {said:?}");
        assert!(said.err.contains(about), "{args:?}: {said:?}");
    }
    assert_eq!(home.leftovers(), Vec::<String>::new());
}
