//! A whole Debian on a disk: ext4 on virtio-blk, systemd, a package installed, and all of it
//! there after a reboot.

use std::time::Duration;

use crate::support::{Boot, Running, alone, have};
use guise_testkit::assets::Kernel;
use guise_testkit::debian_root;

/// Two boots of systemd on a busy machine that executes guests in software.
const PATIENCE: Duration = Duration::from_secs(900);

/// Waits for the login and takes it.
fn log_in(guest: &mut Running) {
    guest.wait_for("login: ");
    guest.type_line("root");
    guest.wait_for("root@guise:~#");
}

#[test]
fn a_debian_on_a_disk_keeps_what_is_installed() {
    let _turn = alone();
    let scratch = tempfile::tempdir().expect("a directory");
    let disk = scratch.path().join("disk");
    // A copy keeps the holes: a disk that is mostly empty is mostly not there.
    let copied = std::process::Command::new("cp")
        .arg("--sparse=always")
        .args([&have(debian_root::image()), &disk])
        .status();
    assert!(copied.expect("cp").success());
    let kernel = Kernel::Debian12Cloud;
    let mut guest = Boot::kernel(&have(kernel.image()))
        .initrd(&have(debian_root::ram_disk(kernel)))
        .args(["--engine", "soft", "--memory", "512M"])
        .args(["--append", "console=ttyS0 quiet"])
        .args(["--disk", &format!("{},format=raw", disk.display())])
        .start()
        .with_patience(PATIENCE);
    log_in(&mut guest);
    guest.type_line("dpkg --install guise-files.deb && sync && echo $((40 + 2)) installed");
    guest.wait_for("42 installed");
    guest.type_line("systemctl reboot");
    log_in(&mut guest);
    guest.type_line(
        "dpkg --verify guise-files && echo $(find /opt/files -type f | wc -l) files in order",
    );
    guest.wait_for("3000 files in order");
    guest.type_line("systemctl is-system-running; systemctl poweroff");
    let ended = guest.finish();
    ended.expect_code(0).expect_clean_log();
    let check = std::process::Command::new("e2fsck").args(["-f", "-n"]).arg(&disk).output();
    let check = check.expect("e2fsck");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}
