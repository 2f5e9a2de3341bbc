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

/// CVE-2013-6456 and its kind, device nodes: a container that may make them still cannot
/// use them.
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

/// CVE-2016-0728 and its kind, the host's keys: the session keyring is a new one.
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

/// CVE-2016-1576 and its kind: setuid programs in volumes, and no_new_privs.
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

/// CVE-2018-18955 and its kind: a user namespace without mappings would run as an id that
/// nobody set up.
#[test]
fn a_user_namespace_needs_mappings() {
    let Some(mut bundle) = Bundle::new("nomap", "true") else { return };
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({ "type": "user" }));
    let (status, _, err) = bundle.run();
    assert_eq!(status, 1);
    assert!(err.contains("uidMappings"), "{err}");
}

/// CVE-2014-9358 and its kind: names that are paths.
#[test]
fn hostile_names_do_not_leave_the_state_directory() {
    let Some(bundle) = Bundle::new("names", "true") else { return };
    for id in ["../x", "a/b", "..", "", "a\nb"] {
        let status = bundle.command(&["run", id]).status().unwrap();
        assert!(!status.success(), "{id:?}");
    }
    assert!(!bundle.directory.join("x").exists());
}

/// CVE-2024-45310: what is missing on the way to a mount's target is made, but not on the host.
#[test]
fn targets_of_mounts_are_made_inside() {
    let Some(mut bundle) = Bundle::new("maketarget", "ls /outside/new") else { return };
    let outside = bundle.directory.join("outside");
    fs::create_dir(&outside).unwrap();
    let data = bundle.directory.join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "data").unwrap();
    fs::create_dir(bundle.path("outside")).unwrap();
    symlink("../../../../../../../../outside", bundle.path("link")).unwrap();
    for target in ["/link/new/dir", "/../../link/new/other", "/link/../../../link/new/third"] {
        bundle.config["mounts"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "destination": target, "source": data, "options": ["bind"] }));
    }
    let (status, out, err) = bundle.run();
    assert_eq!((status, out.as_str()), (0, "dir\nother\nthird\n"), "{err}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

/// CVE-2013-6456: `/dev` of the image leads out, so that the device nodes that the runtime
/// makes are made on the host.
#[test]
fn devices_are_made_inside() {
    let Some(mut bundle) = Bundle::new("devlink", "ls /outside") else { return };
    let outside = bundle.directory.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir(bundle.path("outside")).unwrap();
    fs::remove_dir(bundle.path("dev")).unwrap();
    symlink("../../../../../../outside", bundle.path("dev")).unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
    bundle.run();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!std::path::Path::new("/outside").exists());
}

/// CVE-2022-0811: sysctls that are the host's, or by way of a path another's.
#[test]
fn sysctls_of_the_host_are_refused() {
    let Some(mut bundle) = Bundle::new("sysctls", "true") else { return };
    for key in [
        "kernel.core_pattern",
        "kernel/core_pattern",
        "net.ipv4/../../kernel.core_pattern",
        "net/../kernel/core_pattern",
        "net.ipv4....kernel.core_pattern",
        "vm.overcommit_memory",
    ] {
        bundle.config["linux"]["sysctl"] = json!({ key: "|/evil" });
        let (status, _, err) = bundle.run();
        assert_eq!(status, 1, "{key}");
        assert!(err.contains("linux.sysctl") && err.trim_end().lines().count() == 1, "{err}");
    }
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    assert!(!pattern.contains("evil"));
}

/// CVE-2019-16884, CVE-2023-28642 and their kind: what makes `/proc` and `/sys` harmless is
/// taken away, or they are mounted anew beside it. A container has no rights to do so.
#[test]
fn the_hosts_knobs_cannot_be_turned() {
    let script = "echo /evil > /sys/kernel/uevent_helper && echo uevent; \
                  echo '|/evil' > /proc/sys/kernel/core_pattern && echo pattern; \
                  echo h > /proc/sysrq-trigger && echo sysrq; \
                  mount -o remount,rw /sys && echo remounted; \
                  mount -o remount,rw,bind /proc/sys && echo remounted; \
                  mkdir /tmp/s /tmp/p; \
                  mount -t sysfs s /tmp/s && echo mounted; \
                  mount -t proc p /tmp/p && echo mounted; \
                  head -c 1 /proc/kcore; ls /sys/firmware; true";
    let Some(bundle) = Bundle::new("knobs", script) else { return };
    let (status, out, err) = bundle.run();
    assert_eq!((status, out.as_str()), (0, ""), "{err}");
}

/// CVE-2023-25809: without a cgroup namespace of its own the container sees the host's
/// cgroups; read-only has to mean so.
#[test]
fn the_hosts_cgroups_cannot_be_written() {
    let script = "for d in /sys/fs/cgroup /sys/fs/cgroup/*; do \
                  mkdir $d/evil && echo $d; done; true";
    let Some(mut bundle) = Bundle::new("nocgroupns", script) else { return };
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|n| n["type"] != "cgroup");
    let (status, out, err) = bundle.run();
    assert_eq!((status, out.as_str()), (0, ""), "{err}");
}

/// CVE-2016-8867, CVE-2022-24769: capabilities that are inheritable or ambient without having
/// been asked for.
#[test]
fn capabilities_are_those_asked_for() {
    let script = "grep -E '^Cap(Inh|Amb|Prm|Eff|Bnd)' /proc/self/status";
    let Some(mut bundle) = Bundle::new("inheritable", script) else { return };
    let none = "0000000000000000";
    // CAP_KILL, CAP_SETGID, CAP_SETUID.
    let some = "00000000000000e0";
    let (_, out, _) = bundle.run();
    let wanted = format!(
        "CapInh:\t{none}\nCapPrm:\t{some}\nCapEff:\t{some}\nCapBnd:\t{some}\nCapAmb:\t{none}\n"
    );
    assert_eq!(out, wanted);
    bundle.config["process"]["user"] = json!({ "uid": 1234, "gid": 1234 });
    bundle.config["process"]["capabilities"] = json!({ "bounding": ["CAP_KILL"] });
    let (_, out, _) = bundle.run();
    let bound = "0000000000000020";
    let wanted = format!(
        "CapInh:\t{none}\nCapPrm:\t{none}\nCapEff:\t{none}\nCapBnd:\t{bound}\nCapAmb:\t{none}\n"
    );
    assert_eq!(out, wanted);
}

/// CVE-2016-9962: a process on its way into a running container is seen there before it has
/// let go of the host's descriptors.
#[test]
fn a_process_on_its_way_in_shows_nothing() {
    let script = "while [ ! -e /tmp/enough ]; do \
                  ls -l /proc/[0-9]*/fd /proc/[0-9]*/exe >> /tmp/seen 2>/dev/null; done";
    let Some(mut bundle) = Bundle::new("ptrace", script) else { return };
    // The right to trace what is not dumpable is not the container's to have.
    bundle.config["process"]["noNewPrivileges"] = json!(false);
    bundle.start();
    bundle.wait_for_file("tmp/seen");
    for _ in 0..20 {
        let mut command = bundle.command(&["exec", &bundle.id, "true"]);
        assert!(command.status().unwrap().success());
    }
    fs::write(bundle.path("tmp/enough"), "").unwrap();
    bundle.wait_for("stopped");
    let seen = fs::read_to_string(bundle.path("tmp/seen")).unwrap();
    let directory = bundle.directory.to_str().unwrap();
    for line in seen.lines().filter(|line| line.contains("->")) {
        let target = line.split("-> ").nth(1).unwrap();
        // The last step is a sealed program in memory that does nothing but execute another.
        let harmless = target.starts_with("/memfd:guise-init ");
        assert!(harmless || !target.contains("guise"), "{line}");
        assert!(!target.contains(directory), "{line}");
    }
}
