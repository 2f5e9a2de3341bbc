//! create, start, state, kill, delete, run, list, pause, update, hooks.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::bundle::{Bundle, output};

#[test]
fn run_gives_the_programs_own_status() {
    let Some(bundle) = Bundle::new("status", "exit 7") else { return };
    let (status, out, err) = bundle.run();
    assert_eq!((status, out.as_str(), err.as_str()), (7, "", ""));
    assert!(bundle.cgroups().is_empty());
}

#[test]
fn a_death_by_signal_is_told_as_shells_do() {
    let Some(bundle) = Bundle::new("signal", "kill -9 $$; sleep 60") else { return };
    // The first process of a pid namespace is safe from its own signals.
    let Some(mut other) = Bundle::new("signal2", "sleep 60") else { return };
    drop(bundle);
    other.config["process"]["args"] = json!(["/bin/sleep", "60"]);
    other.start();
    assert!(other.oci(&["kill", "--all"]).status.code().is_some());
    let mut kill = other.command(&["kill", &other.id, "KILL"]);
    assert!(kill.status().unwrap().success());
    other.wait_for("stopped");
}

#[test]
fn the_states_of_a_life() {
    let Some(bundle) = Bundle::new("life", "echo started > /started; sleep 600") else { return };
    assert_eq!(bundle.oci(&["state"]).status.code(), Some(1));
    assert!(bundle.oci(&["create"]).status.success());
    let state = bundle.state();
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], bundle.id.as_str());
    assert!(state["pid"].as_i64().unwrap() > 0);
    assert!(!bundle.path("started").exists(), "the program ran before its start");
    // What the specification forbids in each state.
    assert!(!bundle.oci(&["create"]).status.success());
    assert!(!bundle.oci(&["delete"]).status.success());
    assert!(bundle.oci(&["start"]).status.success());
    bundle.wait_for_file("started");
    assert_eq!(bundle.state()["status"], "running");
    assert!(!bundle.oci(&["start"]).status.success());
    assert!(!bundle.oci(&["delete"]).status.success());
    assert!(bundle.oci(&["pause"]).status.success());
    assert_eq!(bundle.state()["status"], "paused");
    assert!(!bundle.oci(&["pause"]).status.success());
    assert!(bundle.oci(&["resume"]).status.success());
    assert_eq!(bundle.state()["status"], "running");
    let list = bundle.command(&["list", "-f", "json"]);
    let list: Value = serde_json::from_slice(&output(list).stdout).unwrap();
    assert_eq!(list[0]["id"], bundle.id.as_str());
    let ps = bundle.oci(&["ps", "-f", "json"]);
    let pids: Vec<i64> = serde_json::from_slice(&ps.stdout).unwrap();
    assert!(pids.contains(&state["pid"].as_i64().unwrap()));
    assert!(bundle.command(&["kill", &bundle.id, "SIGKILL"]).status().unwrap().success());
    bundle.wait_for("stopped");
    assert!(!bundle.command(&["kill", &bundle.id, "TERM"]).status().unwrap().success());
    assert!(bundle.oci(&["delete"]).status.success());
    assert!(!bundle.oci(&["delete"]).status.success());
    assert!(bundle.cgroups().is_empty());
}

#[test]
fn a_program_that_is_missing_or_no_program() {
    for (name, program, status) in [("missing", "nosuch", 127), ("nofile", "/etc", 126)] {
        let Some(mut bundle) = Bundle::new(name, "") else { return };
        bundle.config["process"]["args"] = json!([program]);
        let (code, _, err) = bundle.run();
        assert_eq!(code, status, "{err}");
        assert!(err.contains(program) && err.trim().lines().count() == 1, "{err}");
        assert!(bundle.cgroups().is_empty());
    }
}

#[test]
fn the_pid_file_names_the_first_process() {
    let Some(bundle) = Bundle::new("pidfile", "sleep 600") else { return };
    assert!(bundle.oci(&["create", "--pid-file", "pid"]).status.success());
    let pid: i64 = fs::read_to_string(bundle.directory.join("pid")).unwrap().parse().unwrap();
    assert_eq!(bundle.state()["pid"], pid);
}

#[test]
fn hooks_run_in_order_and_know_the_container() {
    let Some(mut bundle) = Bundle::new("hooks", "echo program >> /log") else { return };
    let log = bundle.path("log");
    let script = bundle.directory.join("hook.sh");
    // The same path inside, for the hook that runs there.
    let inside = bundle.path("hook.sh");
    for (file, log) in [(&script, log.display().to_string()), (&inside, "/log".into())] {
        fs::write(file, format!("#!/bin/sh\nread -r s\necho \"$1 $s\" >> {log}\n")).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let hook = |name: &str| json!([{ "path": script, "args": ["hook", name] }]);
    bundle.config["hooks"] = json!({
        "prestart": hook("prestart"),
        "createRuntime": hook("createRuntime"),
        "createContainer": hook("createContainer"),
        "startContainer": [{ "path": "/hook.sh", "args": ["hook", "startContainer"] }],
        "poststart": hook("poststart"),
        "poststop": hook("poststop"),
    });
    let (status, _, err) = bundle.run();
    assert_eq!(status, 0, "{err}");
    let text = fs::read_to_string(&log).unwrap();
    let names: Vec<&str> = text.lines().map(|l| l.split(' ').next().unwrap()).collect();
    assert_eq!(names[..4], ["prestart", "createRuntime", "createContainer", "startContainer"]);
    // The program and the hook after its start run side by side.
    assert!(names.contains(&"program") && names.contains(&"poststart"), "{text}");
    assert_eq!(names.last(), Some(&"poststop"));
    for line in text.lines().filter(|l| *l != "program") {
        let state: Value = serde_json::from_str(line.split_once(' ').unwrap().1).unwrap();
        assert_eq!(state["id"], bundle.id.as_str());
        let status = match line.split(' ').next().unwrap() {
            "createRuntime" | "createContainer" => "creating",
            "prestart" | "startContainer" => "created",
            "poststart" => "running",
            _ => "stopped",
        };
        assert_eq!(state["status"], status, "{line}");
    }
}

#[test]
fn a_hook_in_the_container_has_the_programs_environment_or_its_own() {
    let Some(mut bundle) = Bundle::new("hookenv", "cat /seen") else { return };
    let script = "echo one=$ONE two=$TWO >> /seen";
    let hook = |env: Value| json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": env });
    bundle.config["process"]["env"] = json!(["PATH=/bin", "ONE=1"]);
    bundle.config["hooks"] =
        json!({ "startContainer": [hook(Value::Null), hook(json!(["TWO=2"]))] });
    let (status, out, err) = bundle.run();
    assert_eq!((status, out.as_str()), (0, "one=1 two=\none= two=2\n"), "{err}");
}

#[test]
fn a_hook_that_fails_or_hangs_ends_the_creation() {
    for (name, hook) in [
        ("hookfail", json!({ "path": "/bin/false" })),
        ("hookhang", json!({ "path": "/bin/sleep", "args": ["sleep", "600"], "timeout": 1 })),
    ] {
        let Some(mut bundle) = Bundle::new(name, "true") else { return };
        bundle.config["hooks"] = json!({ "createRuntime": [hook] });
        let (status, _, err) = bundle.run();
        assert_eq!(status, 1);
        assert!(err.contains("createRuntime"), "{err}");
        assert!(bundle.cgroups().is_empty());
    }
}

#[test]
fn a_hook_that_fails_after_the_start_ends_the_container() {
    let Some(mut bundle) = Bundle::new("poststart", "sleep 600") else { return };
    let late = bundle.path("late");
    bundle.config["hooks"] = json!({ "poststart": [
        { "path": "/bin/false" },
        { "path": "/bin/touch", "args": ["touch", late] },
    ] });
    let created = bundle.oci(&["create"]);
    assert!(created.status.success(), "{created:?}");
    let started = bundle.oci(&["start"]);
    assert_eq!(started.status.code(), Some(1), "{started:?}");
    assert!(String::from_utf8_lossy(&started.stderr).contains("poststart"), "{started:?}");
    assert_eq!(bundle.state()["status"], "stopped");
    assert!(!late.exists(), "hooks after the one that failed do not run");
    assert!(bundle.oci(&["delete"]).status.success());
    let (status, _, err) = bundle.run();
    assert!(status == 1 && err.contains("poststart"), "{status} {err}");
    assert!(bundle.cgroups().is_empty());
}

#[test]
fn bad_configurations_leave_nothing() {
    let Some(mut bundle) = Bundle::new("bad", "true") else { return };
    for (field, value) in [
        ("/ociVersion", json!("9.9.9")),
        ("/process/args", json!([])),
        ("/root/path", json!("nosuch")),
        ("/linux/namespaces/0/type", json!("wormhole")),
        ("/linux/cgroupsPath", json!("/../../etc")),
        ("/mounts/0/type", json!("nosuchfs")),
        ("/process/rlimits", json!([{"type": "RLIMIT_FANCY", "soft": 1, "hard": 1}])),
        ("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": u64::MAX}])),
        ("/process/capabilities/inheritable", json!(["CAP_SYS_ADMIN"])),
        ("/linux/memoryPolicy", json!({"mode": "BIND", "nodes": "0"})),
        ("/linux/sysctl", json!({"kernel.core_pattern": "|/bin/sh"})),
        ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_MAYBE"})),
    ] {
        let saved = bundle.config.clone();
        let (parent, last) = field.rsplit_once('/').unwrap();
        bundle.config.pointer_mut(parent).unwrap()[last.to_owned()] = value;
        let parts: Vec<&str> = field.split('/').collect();
        assert!(parts.len() > 1);
        let (status, _, err) = bundle.run();
        assert!(status == 1 || status == 127, "{field}: {status}");
        assert_eq!(err.trim().lines().count(), 1, "{field}: {err}");
        assert!(err.starts_with("guise oci run: error: "), "{field}: {err}");
        assert!(bundle.cgroups().is_empty(), "{field}");
        assert!(bundle.state().is_null(), "{field}");
        bundle.config = saved;
    }
    let (status, _, err) = bundle.run();
    assert_eq!(status, 0, "{err}");
}
