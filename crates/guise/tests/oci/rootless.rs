//! Containers of a user without rights, and user namespaces made by root.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use serde_json::json;

use crate::bundle::{Bundle, output};

const NOBODY: u32 = 65534;

/// A configuration in a user namespace.
fn map(bundle: &mut Bundle, host: u32, size: u32) {
    let mapping = json!([{ "containerID": 0, "hostID": host, "size": size }]);
    let linux = &mut bundle.config["linux"];
    linux["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    linux["uidMappings"] = mapping.clone();
    linux["gidMappings"] = mapping;
}

/// The same, and the bundle belongs to the first of the ids.
fn map_and_give_away(bundle: &mut Bundle, host: u32, size: u32) {
    map(bundle, host, size);
    for path in ["", "tmp", "proc", "dev", "sys", "etc", "bin"] {
        std::os::unix::fs::chown(bundle.path(path), Some(host), Some(host)).unwrap();
    }
    // The way to the bundle has to be open for the mapped user.
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&bundle.directory, mode).unwrap();
}

#[test]
fn clocks_are_set_off_in_a_user_namespace_too() {
    let script = "cut -d. -f1 /proc/uptime";
    let Some(mut bundle) = Bundle::new("usertime", script) else { return };
    map_and_give_away(&mut bundle, 200_000, 65_536);
    bundle.expect_clocks_set_off();
}

#[test]
fn root_inside_is_nobody_outside() {
    let script = "id -u; cut -c1-40 /proc/self/uid_map; touch /tmp/made; \
                  head -c 1 /dev/zero | wc -c; echo 5 > /proc/sys/kernel/panic || echo denied";
    let Some(mut bundle) = Bundle::new("userns", script) else { return };
    map_and_give_away(&mut bundle, 200_000, 65_536);
    let (status, out, err) = bundle.run();
    assert_eq!(status, 0, "{err}");
    assert!(out.starts_with("0\n"), "{out}");
    assert!(out.contains("200000") && out.contains("\n1\ndenied\n"), "{out}");
    let made = std::fs::metadata(bundle.path("tmp/made")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 200_000);
}

#[test]
fn a_plain_user_runs_a_container() {
    let script = "id -u; cat /proc/self/setgroups; hostname";
    let Some(mut bundle) = Bundle::new("rootless", script) else { return };
    if std::fs::read_to_string("/proc/sys/user/max_user_namespaces").is_ok_and(|n| n.trim() == "0")
    {
        println!("did not run: user namespaces are switched off");
        return;
    }
    map(&mut bundle, NOBODY, 1);
    // No cgroups of its own, so no cgroup file system either; limits are
    // reported as not enforced.
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|m| m["type"] != "cgroup");
    bundle.config["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20 } });
    for path in ["", "tmp", "proc", "dev", "sys", "etc", "bin"] {
        std::os::unix::fs::chown(bundle.path(path), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    std::os::unix::fs::chown(&bundle.directory, Some(NOBODY), Some(NOBODY)).unwrap();
    let mut command = bundle.command(&["run", &bundle.id]);
    command.uid(NOBODY).gid(NOBODY);
    // The binary under test may lie in a directory that only root may enter.
    let reachable = bundle.directory.join("guise");
    std::fs::copy(crate::bundle::GUISE, &reachable).unwrap();
    let mut plain = std::process::Command::new(&reachable);
    plain.args(command.get_args()).current_dir(&bundle.directory).uid(NOBODY).gid(NOBODY);
    let output = output(plain);
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\ndeny\nbox\n");
    assert!(err.contains("not enforced on this host: the memory limit"), "{err}");
}
