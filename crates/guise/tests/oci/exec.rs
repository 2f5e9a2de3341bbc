//! More programs in a running container.

use std::fs;

use serde_json::json;

use crate::bundle::{Bundle, output};

fn exec(bundle: &Bundle, options: &[&str], program: &[&str]) -> (i32, String, String) {
    let mut args = vec!["exec"];
    args.extend(options);
    args.push(&bundle.id);
    args.extend(program);
    let output = output(bundle.command(&args));
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn a_program_joins_everything() {
    let Some(bundle) = Bundle::new("exec", "sleep 600") else { return };
    bundle.start();
    let script = "hostname; for n in pid net ipc uts mnt cgroup; do \
                  test $(readlink /proc/self/ns/$n) = $(readlink /proc/1/ns/$n) || echo $n; done; \
                  cut -d: -f3 /proc/self/cgroup | grep -c '^/$'; exit 9";
    let (status, out, err) = exec(&bundle, &[], &["/bin/sh", "-c", script]);
    assert_eq!(status, 9, "{err}");
    assert!(out.starts_with("box\n"), "{out}");
    assert_eq!(out.lines().count(), 2, "a namespace differs: {out}");
    let (_, out, _) = exec(
        &bundle,
        &["--user", "3:4", "--cwd", "/tmp", "--env", "A=b"],
        &["/bin/sh", "-c", "id -u; id -g; pwd; echo $A"],
    );
    assert_eq!(out, "3\n4\n/tmp\nb\n");
    let (_, out, _) =
        exec(&bundle, &["--env", "A=first", "--env", "B=c", "--env", "A=last"], &["/bin/env"]);
    let ours: Vec<_> = out.lines().filter(|l| l.starts_with("A=") || l.starts_with("B=")).collect();
    assert_eq!(ours, ["B=c", "A=last"]);
    assert_eq!(exec(&bundle, &[], &["nosuch"]).0, 127);
    assert_eq!(exec(&bundle, &[], &["/tmp"]).0, 126);
}

/// CVE-2016-9962, CVE-2022-29162: what the runtime holds while it enters is not
/// there for the program, and neither are inheritable capabilities.
#[test]
fn nothing_of_the_runtime_comes_along() {
    let Some(bundle) = Bundle::new("execfds", "sleep 600") else { return };
    bundle.start();
    let (status, out, err) = exec(&bundle, &[], &["/bin/ls", "/proc/self/fd"]);
    assert_eq!(status, 0, "{err}");
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    let (_, out, _) = exec(&bundle, &[], &["/bin/grep", "CapInh", "/proc/self/status"]);
    assert!(out.ends_with("0000000000000000\n"), "{out}");
}

#[test]
fn a_process_file_and_the_background() {
    let Some(bundle) = Bundle::new("execfile", "sleep 600") else { return };
    bundle.start();
    let process = json!({
        "args": ["/bin/sh", "-c", "id -u > /done; sleep 600"], "cwd": "/",
        "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 },
    });
    let file = bundle.directory.join("process.json");
    fs::write(&file, process.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let (status, _, err) =
        exec(&bundle, &["--process", file, "--detach", "--pid-file", "pid"], &[]);
    assert_eq!(status, 0, "{err}");
    bundle.wait_for_file("done");
    let pid: i64 = fs::read_to_string(bundle.directory.join("pid")).unwrap().parse().unwrap();
    let pids: Vec<i64> = serde_json::from_slice(&bundle.oci(&["ps", "-f", "json"]).stdout).unwrap();
    assert!(pids.contains(&pid), "{pid} is not in {pids:?}");
}

#[test]
fn only_in_running_containers() {
    let Some(bundle) = Bundle::new("execstopped", "true") else { return };
    assert_eq!(exec(&bundle, &[], &["/bin/true"]).0, 1);
    bundle.start();
    bundle.wait_for("stopped");
    let (status, _, err) = exec(&bundle, &[], &["/bin/true"]);
    assert_eq!(status, 1);
    assert!(err.contains("stopped"), "{err}");
}
