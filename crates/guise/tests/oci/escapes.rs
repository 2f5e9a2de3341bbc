//! Ways out of containers that have been used elsewhere. None works here; each
//! test names the class it stands for.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use serde_json::json;

use crate::bundle::{Bundle, GUISE};

/// CVE-2019-5736: an entry point that is the runtime's own binary, by way of
/// `/proc/self/exe`, so that the container can write to it.
#[test]
fn the_runtimes_binary_cannot_be_reached() {
    let Some(mut bundle) = Bundle::new("selfexe", "") else { return };
    let before = fs::read(GUISE).unwrap();
    fs::write(bundle.path("evil"), "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(bundle.path("evil"), fs::Permissions::from_mode(0o755)).unwrap();
    bundle.config["process"]["args"] = json!(["/evil"]);
    let (status, out, _) = bundle.run();
    assert_eq!((status, out.as_str()), (126, ""));
    // Executing it through the descriptor as the first process does.
    bundle.config["process"]["args"] = json!(["/proc/self/exe", "--version"]);
    let (status, out, _) = bundle.run();
    assert_ne!(status, 0);
    assert!(!out.contains("guise"), "{out}");
    assert!(fs::read(GUISE).unwrap() == before);
}

/// CVE-2024-21626: a descriptor of the host left open, or a working directory
/// outside through one.
#[test]
fn no_descriptor_of_the_host_is_left() {
    let Some(mut bundle) = Bundle::new("fds", "ls /proc/self/fd") else { return };
    let (status, out, err) = bundle.run();
    assert_eq!(status, 0, "{err}");
    // 3 is the directory that ls itself reads.
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    for number in 3..12 {
        bundle.config["process"]["cwd"] = json!(format!("/proc/self/fd/{number}"));
        bundle.config["process"]["args"] = json!(["/bin/cat", "../../../../../etc/hostname"]);
        let (status, out, _) = bundle.run();
        assert!(status != 0 && out.is_empty(), "{number}: {out}");
    }
}

/// CVE-2019-19921, CVE-2023-27561: `/proc` as a link, so that what should be
/// masked is elsewhere.
#[test]
fn proc_on_a_link_is_refused() {
    let Some(bundle) = Bundle::new("proclink", "true") else { return };
    fs::remove_dir(bundle.path("proc")).unwrap();
    fs::create_dir(bundle.path("elsewhere")).unwrap();
    symlink("/elsewhere", bundle.path("proc")).unwrap();
    let (status, _, err) = bundle.run();
    assert_eq!(status, 1);
    assert!(err.contains("/proc"), "{err}");
}

/// CVE-2018-15664, CVE-2021-30465: the target of a mount is a link that leads
/// out of the root.
#[test]
fn mounts_stay_inside() {
    let Some(mut bundle) = Bundle::new("mountlink", "cat /target/file") else { return };
    let outside = bundle.directory.join("outside");
    fs::create_dir(&outside).unwrap();
    let data = bundle.directory.join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "data\n").unwrap();
    fs::create_dir(bundle.path("outside")).unwrap();
    symlink("../../../../../../outside", bundle.path("target")).unwrap();
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "destination": "/target", "source": data, "options": ["bind"] }));
    let (status, out, err) = bundle.run();
    assert_eq!((status, out.as_str()), (0, "data\n"), "{err}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

/// CVE-2025-31133: `/dev/null` of the image is a link, so that masking a path
/// mounts the link's target there, writable.
#[test]
fn masking_does_not_use_the_images_null() {
    let script = "cat /proc/sysrq-trigger /masked; echo x > /masked; cat /masked";
    let Some(mut bundle) = Bundle::new("nulllink", script) else { return };
    fs::write(bundle.path("masked"), "secret\n").unwrap();
    fs::write(bundle.path("bait"), "bait\n").unwrap();
    fs::remove_dir(bundle.path("dev")).unwrap();
    fs::create_dir(bundle.path("dev")).unwrap();
    // Without a tmpfs on /dev the image's own stays, where null is a link.
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
    symlink("/bait", bundle.path("dev/null")).unwrap();
    bundle.config["linux"]["maskedPaths"] = json!(["/masked", "/proc/sysrq-trigger"]);
    let (status, out, _) = bundle.run();
    assert!(!out.contains("secret") && !out.contains("bait"), "{out}");
    assert_ne!(status, 127);
    assert_eq!(fs::read_to_string(bundle.path("bait")).unwrap(), "bait\n");
}

/// CVE-2025-52881: a write that confines the container (a sysctl here) is sent
/// elsewhere by what is mounted over `/proc`.
#[test]
fn confining_writes_do_not_go_through_the_containers_proc() {
    let Some(mut bundle) = Bundle::new("fakeproc", "cat /proc/sys/net/ipv4/ip_forward") else {
        return;
    };
    let fake = bundle.directory.join("fake");
    fs::create_dir_all(fake.join("sys/net/ipv4")).unwrap();
    fs::write(fake.join("sys/net/ipv4/ip_forward"), "fake\n").unwrap();
    bundle.config["mounts"][0] =
        json!({ "destination": "/proc", "source": fake, "options": ["bind"] });
    bundle.config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    bundle.config["linux"]["readonlyPaths"] = json!([]);
    bundle.config["linux"]["maskedPaths"] = json!([]);
    let (status, out, err) = bundle.run();
    assert_eq!((status, out.as_str()), (0, "fake\n"), "{err}");
    assert_eq!(fs::read_to_string(fake.join("sys/net/ipv4/ip_forward")).unwrap(), "fake\n");
}

/// CVE-2022-0492: the release agent of a v1 cgroup runs on the host as root.
#[test]
fn release_agents_cannot_be_set() {
    let script = "echo /evil > /sys/fs/cgroup/memory/release_agent; \
                  mkdir /tmp/c; mount -t cgroup -o memory c /tmp/c && echo mounted; \
                  echo 1 > /sys/fs/cgroup/memory/notify_on_release && echo notify; true";
    let Some(bundle) = Bundle::new("agent", script) else { return };
    let (_, out, _) = bundle.run();
    assert_eq!(out, "");
    for file in ["memory", "cpu", "systemd"] {
        let path = format!("/sys/fs/cgroup/{file}/release_agent");
        assert!(!fs::read_to_string(path).unwrap_or_default().contains("evil"));
    }
}

/// Device nodes: a container that may make them still cannot use them.
#[test]
fn device_nodes_give_no_access() {
    let script = "mknod /tmp/disk b 254 0 && (head -c 1 /tmp/disk || echo denied); \
                  mknod /tmp/mem c 1 1 && (head -c 1 /tmp/mem || echo denied)";
    let Some(mut bundle) = Bundle::new("mknod", script) else { return };
    let caps = json!(["CAP_MKNOD", "CAP_SYS_RAWIO"]);
    bundle.config["process"]["capabilities"] =
        json!({ "bounding": caps, "effective": caps, "permitted": caps });
    let (_, out, err) = bundle.run();
    assert_eq!(out, "denied\ndenied\n", "{err}");
}

/// The host's keys: the session keyring is a new one.
#[test]
fn the_keyring_is_its_own() {
    let Some(mut bundle) = Bundle::new("keyring", "cat /proc/keys") else { return };
    bundle.config["linux"]["maskedPaths"] = json!([]);
    let (status, out, _) = bundle.run();
    if status != 0 {
        println!("did not run: the kernel has no keyrings");
        return;
    }
    assert!(out.contains(&format!("_ses.{}", &bundle.id)), "{out}");
}

/// CVE-2017-5226 (TIOCSTI): without a terminal of its own the container has no
/// controlling one to push input into.
#[test]
fn the_callers_terminal_is_not_controlling() {
    let Some(bundle) = Bundle::new("tiocsti", ": < /dev/tty && echo open; true") else { return };
    let (_, out, _) = bundle.run();
    assert_eq!(out, "");
}

/// Setuid programs in volumes, and no_new_privs.
#[test]
fn setuid_gives_nothing() {
    for (name, options, no_new_privileges) in
        [("nosuid", vec!["bind", "nosuid"], false), ("nnp", vec!["bind"], true)]
    {
        let Some(mut bundle) = Bundle::new(name, "/data/busybox id -u") else { return };
        let data = bundle.directory.join("data");
        fs::create_dir(&data).unwrap();
        fs::copy(bundle.path("bin/busybox"), data.join("busybox")).unwrap();
        fs::set_permissions(data.join("busybox"), fs::Permissions::from_mode(0o4755)).unwrap();
        bundle.config["process"]["user"] = json!({ "uid": 1234, "gid": 1234 });
        bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bundle.config["mounts"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "destination": "/data", "source": data, "options": options }));
        let (status, out, err) = bundle.run();
        assert_eq!((status, out.as_str()), (0, "1234\n"), "{err}");
    }
}

/// A user namespace without mappings would run as an id that nobody set up.
#[test]
fn a_user_namespace_needs_mappings() {
    let Some(mut bundle) = Bundle::new("nomap", "true") else { return };
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({ "type": "user" }));
    let (status, _, err) = bundle.run();
    assert_eq!(status, 1);
    assert!(err.contains("uidMappings"), "{err}");
}

/// CVE-2021-43784 and others: what cannot be honoured is refused, not cut short.
#[test]
fn hostile_names_do_not_leave_the_state_directory() {
    let Some(bundle) = Bundle::new("names", "true") else { return };
    for id in ["../x", "a/b", "..", "", "a\nb"] {
        let status = bundle.command(&["run", id]).status().unwrap();
        assert!(!status.success(), "{id:?}");
    }
    assert!(!bundle.directory.join("x").exists());
}
