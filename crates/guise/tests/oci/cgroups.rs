//! Limits, and the three ways in which hosts present cgroups.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::bundle::{Bundle, GUISE, output};

/// The value of a control file in whichever hierarchy has it.
fn value(bundle: &Bundle, names: &[&str]) -> Option<String> {
    let files: Vec<PathBuf> =
        bundle.cgroups().iter().flat_map(|d| names.iter().map(move |n| d.join(n))).collect();
    files.iter().find_map(|f| fs::read_to_string(f).ok()).map(|t| t.trim().to_owned())
}

#[test]
fn limits_are_set_and_changed() {
    let Some(mut bundle) = Bundle::new("limits", "sleep 600") else { return };
    bundle.config["linux"]["resources"] = json!({
        "memory": { "limit": 64 << 20 }, "pids": { "limit": 20 },
        "cpu": { "quota": 50_000, "period": 100_000, "shares": 512 },
    });
    bundle.start();
    if bundle.cgroups().is_empty() {
        println!("did not run: no cgroups can be made here");
        return;
    }
    let limit = || value(&bundle, &["memory.limit_in_bytes", "memory.max"]);
    if limit().is_none() {
        println!("did not run: there is no memory controller");
        return;
    }
    assert_eq!(limit().unwrap(), (64 << 20).to_string());
    assert_eq!(value(&bundle, &["pids.max"]).unwrap(), "20");
    let update = ["update", "--memory", "33554432", "--pids-limit", "30"];
    assert!(bundle.oci(&update).status.success());
    assert_eq!(limit().unwrap(), (32 << 20).to_string());
    assert_eq!(value(&bundle, &["pids.max"]).unwrap(), "30");
    let events = bundle.oci(&["events", "--stats"]);
    let events: serde_json::Value = serde_json::from_slice(&events.stdout).unwrap();
    assert_eq!(events["data"]["memory"]["usage"]["limit"], 32 << 20);
    assert_eq!(events["data"]["pids"]["limit"], 30);
}

#[test]
fn too_many_processes_are_refused_inside() {
    let script = "i=0; while [ $i -lt 20 ]; do sleep 5 & i=$((i+1)); done; echo all";
    let Some(mut bundle) = Bundle::new("pids", script) else { return };
    bundle.config["linux"]["resources"] = json!({ "pids": { "limit": 8 } });
    let (_, out, err) = bundle.run();
    if err.contains("not enforced on this host") {
        println!("did not run: there is no pids controller");
        return;
    }
    assert!(!out.contains("all"), "the limit did not hold");
}

/// A container sees no cgroups but its own, whether the file systems are its own or the host's:
/// that depends on what it may do to them.
#[test]
fn only_its_own_cgroups_are_shown() {
    let script = "grep ' - cgroup' /proc/self/mountinfo | cut -d' ' -f4; true";
    let Some(mut bundle) = Bundle::new("part", script) else { return };
    for capability in ["CAP_KILL", "CAP_SYS_ADMIN"] {
        for set in ["bounding", "effective", "permitted"] {
            bundle.config["process"]["capabilities"][set] = json!([capability]);
        }
        let (status, out, err) = bundle.run();
        assert_eq!(status, 0, "{err}");
        assert!(out.lines().all(|root| root == "/"), "with {capability}: {out}");
    }
}

/// Runs a container in a mount namespace that presents cgroups differently.
fn in_another_view(name: &str, prepare: &str) {
    let script = "cat /proc/self/cgroup; ls /sys/fs/cgroup";
    let Some(mut bundle) = Bundle::new(name, script) else { return };
    bundle.config["linux"]["resources"] = json!({
        "devices": [{ "allow": false, "access": "rwm" }],
    });
    bundle.config["process"]["args"] = json!([
        "/bin/sh",
        "-c",
        "cat /proc/self/cgroup; mknod /tmp/m c 1 1; head -c 1 /tmp/m || echo denied; \
         head -c 1 /dev/zero | wc -c",
    ]);
    bundle.config["process"]["capabilities"] = json!({
        "bounding": ["CAP_MKNOD"], "effective": ["CAP_MKNOD"], "permitted": ["CAP_MKNOD"],
    });
    // Writes config.json.
    drop(bundle.command(&[]));
    let mut command = Command::new("unshare");
    let run = format!(
        "set -e; mount --make-rprivate /; {prepare}; exec {GUISE} oci --root {root} run {id}",
        root = bundle.directory.join("state").display(),
        id = bundle.id,
    );
    command.args(["--mount", "sh", "-c", &run]).current_dir(&bundle.directory);
    let output = output(command);
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    if err.contains("mount:") {
        println!("did not run {name}: this host cannot present cgroups so: {err}");
        return;
    }
    assert!(output.status.success(), "{err}");
    assert!(out.ends_with("denied\n1\n"), "devices are not restricted: {out} {err}");
    assert!(bundle.cgroups().is_empty());
}

#[test]
fn only_v1() {
    in_another_view(
        "purev1",
        "for m in $(grep ' cgroup2 ' /proc/self/mountinfo | cut -d' ' -f5); do umount $m; done; \
         grep -q ' - cgroup ' /proc/self/mountinfo || { echo mount: no v1 >&2; exit 1; }",
    );
}

#[test]
fn only_v2() {
    in_another_view("purev2", "umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup");
}
