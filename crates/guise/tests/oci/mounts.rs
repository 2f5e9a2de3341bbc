//! Mounts as the configuration describes them.

use std::fs;

use serde_json::json;

use crate::bundle::Bundle;

fn add(bundle: &mut Bundle, mount: serde_json::Value) {
    bundle.config["mounts"].as_array_mut().unwrap().push(mount);
}

#[test]
fn bind_mounts_of_directories_and_files() {
    let script = "cat /data/file /etc/one; touch /data/new; touch /ro/x 2>/dev/null || echo denied";
    let Some(mut bundle) = Bundle::new("bind", script) else { return };
    let data = bundle.directory.join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "directory\n").unwrap();
    for (to, from, options) in [
        ("/data", data.clone(), vec!["rbind", "rw"]),
        ("/ro", data.clone(), vec!["bind", "ro"]),
        ("/etc/one", data.join("file"), vec!["bind", "ro", "nosuid"]),
    ] {
        add(&mut bundle, json!({ "destination": to, "source": from, "options": options }));
    }
    let (status, out, err) = bundle.run();
    assert_eq!(status, 0, "{err}");
    assert_eq!(out, "directory\ndirectory\ndenied\n");
    assert!(data.join("new").exists() && !data.join("x").exists());
}

#[test]
fn readonly_root_and_options() {
    let script = "touch /x 2>/dev/null || echo readonly; grep ' /tmp ' /proc/self/mountinfo";
    let Some(mut bundle) = Bundle::new("options", script) else { return };
    bundle.config["root"]["readonly"] = json!(true);
    add(
        &mut bundle,
        json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs",
                "options": ["noexec", "nosuid", "nodev", "noatime", "size=1m", "mode=1777"] }),
    );
    let (status, out, err) = bundle.run();
    assert_eq!(status, 0, "{err}");
    assert!(out.starts_with("readonly\n"), "{out}");
    for option in ["nosuid", "nodev", "noexec", "noatime", "size=1024k"] {
        assert!(out.contains(option), "{option}: {out}");
    }
}

#[test]
fn a_tmpfs_can_start_with_what_it_covers() {
    let Some(mut bundle) = Bundle::new("copyup", "cat /etc/f; ls /etc/d; echo x > /etc/f") else {
        return;
    };
    fs::write(bundle.path("etc/f"), "below\n").unwrap();
    fs::create_dir(bundle.path("etc/d")).unwrap();
    fs::write(bundle.path("etc/d/g"), "").unwrap();
    add(
        &mut bundle,
        json!({ "destination": "/etc", "type": "tmpfs", "source": "tmpfs",
                "options": ["tmpcopyup"] }),
    );
    let (status, out, err) = bundle.run();
    assert_eq!(status, 0, "{err}");
    assert_eq!(out, "below\ng\n");
    assert_eq!(fs::read_to_string(bundle.path("etc/f")).unwrap(), "below\n");
}

#[test]
fn ids_of_a_mount_are_mapped() {
    let Some(mut bundle) = Bundle::new("idmap", "stat -c %u:%g /data/file") else { return };
    let data = bundle.directory.join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "").unwrap();
    std::os::unix::fs::chown(data.join("file"), Some(1), Some(2)).unwrap();
    let map = json!([{ "containerID": 0, "hostID": 5000, "size": 100 }]);
    add(
        &mut bundle,
        json!({ "destination": "/data", "source": data, "options": ["bind", "idmap"],
                "uidMappings": map, "gidMappings": map }),
    );
    let (status, out, err) = bundle.run();
    if status != 0 && err.contains("not available here") {
        println!("did not run: {err}");
        return;
    }
    assert_eq!(status, 0, "{err}");
    assert_eq!(out.trim(), "5001:5002");
}

#[test]
fn masked_and_readonly_paths() {
    let script = "cat /proc/kcore | wc -c; ls /sys/firmware | wc -l; \
                  echo 1 > /proc/sys/kernel/panic || echo denied; \
                  echo x > /sys/firmware/x || echo denied";
    let Some(bundle) = Bundle::new("masked", script) else { return };
    let (_, out, _) = bundle.run();
    assert_eq!(out, "0\n0\ndenied\ndenied\n");
}

#[test]
fn devices_are_there_and_only_those() {
    let script = "for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; \
                  done; head -c 4 /dev/zero | wc -c; test -e /dev/sda && echo sda; \
                  stat -c '%a %u %g %t:%T' /dev/mine";
    let Some(mut bundle) = Bundle::new("devices", script) else { return };
    bundle.config["linux"]["devices"] = json!([{ "type": "c", "path": "/dev/mine", "major": 1,
        "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4 }]);
    let (status, out, err) = bundle.run();
    assert_eq!((status, out.as_str()), (0, "4\n640 3 4 1:5\n"), "{err}");
}

#[test]
fn the_root_has_the_propagation_that_was_asked_for() {
    for (name, field) in [
        ("shared", " shared:"),
        ("slave", " master:"),
        ("private", " - "),
        ("unbindable", " unbindable "),
    ] {
        let script = "grep ' / / ' /proc/self/mountinfo || grep '/rootfs / ' /proc/self/mountinfo";
        let Some(mut bundle) = Bundle::new(&format!("propagation-{name}"), script) else { return };
        bundle.config["linux"]["rootfsPropagation"] = json!(name);
        let (status, out, err) = bundle.run();
        assert_eq!(status, 0, "{name}: {out}{err}");
        // A slave needs a master: there is one only where the host's root is shared.
        assert!(name == "slave" || out.contains(field), "{name}: {out}");
        assert_eq!(out.contains(" shared:"), name == "shared", "{out}");
    }
}

#[test]
fn a_label_for_mounts_is_no_obstacle_without_selinux() {
    if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        println!("did not run: this host has SELinux, and the label may not be one of its policy");
        return;
    }
    let Some(mut bundle) = Bundle::new("mount-label", "echo fine") else { return };
    bundle.config["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0");
    let (status, out, err) = bundle.run();
    assert_eq!((status, out.as_str()), (0, "fine\n"), "{err}");
    assert!(err.contains("linux.mountLabel has no effect"), "{err}");
}
