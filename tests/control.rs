//! The control socket of the real binary: a machine is paused, changed and ended.

use std::time::{Duration, Instant};

use crate::support::control::Client;
use crate::support::{Boot, PATIENCE, Running, alone, have};
use guise_testkit::assets::Kernel;
use guise_testkit::initramfs;
use serde_json::json;

/// Waits until a figure of the statistics is so many bytes.
fn wait_for(client: &mut Client, device: &str, figure: &str, bytes: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = client.done(&json!({ "command": "stats" }))[device].clone();
        if found[figure] == bytes {
            return;
        }
        assert!(Instant::now() < deadline, "{device}: {found}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A command in the guest's shell whose output shows that it succeeded.
fn succeeds(guest: &mut Running, command: &str) {
    guest.type_line(&format!("{command} && echo $((40 + 2)) done"));
    guest.wait_for("42 done");
}

#[test]
fn a_running_machine_is_changed() {
    let _turn = alone();
    let scratch = tempfile::tempdir().expect("a directory");
    let (socket, disk) = (scratch.path().join("control"), scratch.path().join("disk"));
    std::fs::write(&disk, vec![0; 8 << 20]).expect("written");
    let kernel = Kernel::Debian12Cloud;
    let mut guest = Boot::kernel(&have(kernel.image()))
        .initrd(&have(initramfs::with_virtio(kernel)))
        .args(["--cpus", "2", "--balloon", "--control"])
        .args([&socket])
        .start();
    guest.wait_for("guest# ");
    let mut client = Client::open(&socket);

    assert_eq!(client.done(&json!({ "command": "status" }))["state"], "running");
    client.done(&json!({ "command": "pause" }));
    assert_eq!(client.done(&json!({ "command": "status" }))["state"], "paused");
    client.done(&json!({ "command": "resume" }));

    let option = format!("{},format=raw", disk.display());
    let added = client.done(&json!({ "command": "add-disk", "disk": option }));
    assert_eq!(added["name"], "disk0");
    succeeds(&mut guest, "until [ -e /dev/vda ]; do sleep 1; done");
    client.done(&json!({ "command": "resize", "name": "disk0", "size": "16M" }));
    succeeds(&mut guest, "until [ $(cat /sys/block/vda/size) = 32768 ]; do sleep 1; done");
    client.done(&json!({ "command": "remove", "name": "disk0" }));
    succeeds(&mut guest, "[ ! -e /dev/vda ]");
    assert_eq!(std::fs::metadata(&disk).expect("it stays").len(), 16 << 20);

    let added = client.done(&json!({ "command": "add-net", "net": "user" }));
    assert_eq!(added["name"], "net0");
    succeeds(&mut guest, "until [ -e /sys/class/net/eth0 ]; do sleep 1; done");
    succeeds(&mut guest, "ifconfig eth0 up; udhcpc -i eth0 -s /etc/udhcpc.sh -n -q");
    client.done(&json!({ "command": "remove", "name": "net0" }));
    succeeds(&mut guest, "[ ! -e /sys/class/net/eth0 ]");

    client.done(&json!({ "command": "balloon", "size": "128M" }));
    wait_for(&mut client, "balloon", "actual", 128 << 20);
    client.done(&json!({ "command": "balloon", "size": "0" }));
    wait_for(&mut client, "balloon", "actual", 0);

    for nonsense in [
        json!({ "command": "dance" }),
        json!({ "command": "remove", "name": "disk7" }),
        json!({ "command": "resize", "name": "balloon0", "size": "1G" }),
        json!(7),
    ] {
        let answer = client.ask(&nonsense);
        assert_eq!(answer["ok"], false, "{nonsense}: {answer}");
        assert!(answer["error"].is_string());
    }
    client.done(&json!({ "command": "quit" }));
    let ended = guest.finish();
    ended.expect_code(0).expect_clean_log();
    assert!(!socket.exists());
}

#[test]
fn memory_is_added_and_taken_away() {
    let _turn = alone();
    let scratch = tempfile::tempdir().expect("a directory");
    let socket = scratch.path().join("control");
    // Under load 6.12 has complained that a processor stood still while memory was taken away.
    let soak = std::env::var_os("GUISE_DEVICE_SOAK").map(|_| Kernel::Debian13Cloud);
    for kernel in [Kernel::Debian12Cloud].into_iter().chain(soak) {
        let mut guest = Boot::kernel(&have(kernel.image()))
            .initrd(&have(initramfs::with_virtio(kernel)))
            .args(["--memory", "256M", "--memory-max", "768M", "--cpus", "2"])
            .args(["--append", "console=ttyS0 memhp_default_state=online_movable"])
            .args(["--control".as_ref(), socket.as_os_str()])
            .start();
        guest.wait_for("guest# ");
        let mut client = Client::open(&socket);
        for wrong in ["128M", "1G"] {
            let answer = client.ask(&json!({ "command": "memory", "size": wrong }));
            assert_eq!(answer["ok"], false, "{answer}");
        }
        client.done(&json!({ "command": "memory", "size": "768M" }));
        wait_for(&mut client, "memory", "present", 768 << 20);
        let total = "$(awk '/MemTotal/ { print $2 }' /proc/meminfo)";
        succeeds(&mut guest, &format!("until [ {total} -gt 640000 ]; do sleep 1; done"));
        // What was added is memory: more than there was before fits into it.
        succeeds(
            &mut guest,
            "mount -t tmpfs -o size=400m t /mnt && \
             dd if=/dev/urandom of=/mnt/once bs=1M count=10 2>/dev/null && \
             for n in $(seq 30); do cat /mnt/once; done >/mnt/x && \
             [ \"$(md5sum </mnt/x)\" = \"$(for n in $(seq 30); do cat /mnt/once; done | md5sum)\" ]",
        );
        succeeds(&mut guest, "umount /mnt");
        client.done(&json!({ "command": "memory", "size": "256M" }));
        wait_for(&mut client, "memory", "present", 256 << 20);
        succeeds(&mut guest, &format!("[ {total} -lt 260000 ]"));
        client.done(&json!({ "command": "quit" }));
        guest.finish().expect_code(0).expect_clean_log();
    }
}
