//! A host without space: the machine waits where its disk says so, and goes on when there
//! is room, as if nothing had been.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::control::Client;
use crate::support::{Boot, PATIENCE, alone, have, not_run};
use guise_testkit::assets::Kernel;
use guise_testkit::initramfs;
use serde_json::json;

/// Runs a program where a folder is a file system of 24 MiB, half of it taken, with a copy
/// of the image in it.
const IN_A_SMALL_PLACE: &str = r#"mount -t tmpfs -o size=24m tmpfs "$1" || exit 99
head -c 12582912 /dev/zero >"$1/ballast"
cp "$2" "$1/disk" || exit 99
shift 2
exec "$@""#;

fn wait_for_pause(client: &mut Client) {
    let deadline = Instant::now() + PATIENCE;
    while client.done(&json!({ "command": "status" }))["state"] != "paused" {
        assert!(Instant::now() < deadline, "the machine does not pause");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The image after the guest has flushed it.
fn check(format: &str, image: &Path) {
    let output = Command::new(env!("CARGO_BIN_EXE_guise"))
        .args(["disk", "check", "-f", format])
        .arg(image)
        .output()
        .expect("it runs");
    // 3: nothing but clusters that nobody uses.
    let code = output.status.code();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(matches!(code, Some(0 | 3)), "{code:?}: {said}");
}

#[test]
fn a_machine_waits_for_space() {
    let _turn = alone();
    if !Command::new("unshare").args(["-rm", "true"]).status().is_ok_and(|status| status.success())
    {
        return not_run("a disk without space under a guest", "no user namespaces here");
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let (small, socket) = (scratch.path().join("small"), scratch.path().join("control"));
    std::fs::create_dir(&small).expect("made");
    for format in ["raw", "qcow2"] {
        let image = scratch.path().join(format);
        let made = Command::new(env!("CARGO_BIN_EXE_guise"))
            .args(["disk", "create", "-q", "-f", format])
            .arg(&image)
            .arg("64M")
            .status();
        assert!(made.expect("it runs").success());
        let mut place = Command::new("unshare");
        place.args(["-rm", "--", "sh", "-c", IN_A_SMALL_PLACE, "sh"]).arg(&small).arg(&image);
        let kernel = Kernel::Debian12Cloud;
        let disk = format!("{}/disk,format={format},full=pause", small.display());
        let mut guest = Boot::kernel(&have(kernel.image()))
            .initrd(&have(initramfs::with_virtio(kernel)))
            .args(["--engine", "soft", "--disk", &disk, "--control"])
            .args([&socket])
            .within(place)
            .start();
        guest.wait_for("guest# ");
        let mut client = Client::open(&socket);
        guest.type_line(
            "head -c 16777216 /dev/urandom >/tmp/data; \
             dd if=/tmp/data of=/dev/vda bs=1M conv=fsync; echo $((40 + 2)) ended with $?",
        );
        wait_for_pause(&mut client);
        // There is still no room, so it does not get far.
        client.done(&json!({ "command": "resume" }));
        wait_for_pause(&mut client);
        assert!(!guest.output.contains("42 ended"), "{}", guest.output);
        let inside = Path::new("/proc").join(guest.id().to_string()).join("root");
        let inside = inside.join(small.strip_prefix("/").expect("a whole path"));
        std::fs::remove_file(inside.join("ballast")).expect("removed");
        client.done(&json!({ "command": "resume" }));
        guest.wait_for("42 ended with 0");
        guest.says(
            "echo 3 >/proc/sys/vm/drop_caches; \
             head -c 16777216 /dev/vda | cmp - /tmp/data && echo $((50 + 5)) the same",
            "55 the same",
        );
        let copy = scratch.path().join("copy");
        std::fs::copy(inside.join("disk"), &copy).expect("copied");
        if format == "qcow2" {
            check(format, &copy);
        }
        guest.type_line("poweroff -f");
        let ended = guest.finish();
        ended.expect_code(0).expect_clean_log();
        let told = "has no space, and the machine is paused; make room and resume it";
        assert!(ended.errors.contains(told), "{}", ended.errors);
    }
}
