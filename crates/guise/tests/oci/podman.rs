//! `podman --runtime`: the distribution's podman runs, looks into, stops and removes containers
//! by way of `guise-oci`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::bundle::output;

/// The binary that callers are given who take a path and no arguments.
const RUNTIME: &str = env!("CARGO_BIN_EXE_guise-oci");

/// Where root may not raise limits, podman's own are more than a container can have; and its
/// networks are not what is tested.
const OPTIONS: [&str; 6] =
    ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "--network", "none"];

/// A podman with a store of its own and one image, `box`.
struct Podman {
    directory: PathBuf,
}

impl Podman {
    /// None, with the reason printed, where podman cannot work whatever the runtime.
    fn new(name: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("did not run {name}: needs root");
            return None;
        }
        let paths = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&paths).any(|path| path.join("podman").is_file()) {
            println!("did not run {name}: needs podman (Debian: podman)");
            return None;
        }
        let busybox =
            ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
        let Some(busybox) = busybox else {
            println!("did not run {name}: needs a static busybox (Debian: busybox-static)");
            return None;
        };
        let directory = std::env::temp_dir().join(format!("guise-{name}-{}", std::process::id()));
        let podman = Podman { directory };
        let root = podman.directory.join("rootfs");
        for sub in ["bin", "etc", "tmp"] {
            fs::create_dir_all(root.join(sub)).unwrap();
        }
        fs::copy(busybox, root.join("bin/busybox")).unwrap();
        for tool in ["sh", "sleep", "true", "cat", "id", "hostname", "grep", "tty"] {
            symlink("busybox", root.join("bin").join(tool)).unwrap();
        }
        let archive = podman.directory.join("box.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".");
        assert!(tar.status().unwrap().success());
        let import = podman.of(RUNTIME, &["import", "-q", archive.to_str().unwrap(), "box"]);
        if import.0 != 0 {
            println!("did not run {name}: podman cannot store an image here: {}", import.2);
            return None;
        }
        let run: Vec<&str> = ["run", "--rm"].into_iter().chain(OPTIONS).chain(["box"]).collect();
        let run: Vec<&str> = run.into_iter().chain(["true"]).collect();
        let ours = podman.of(RUNTIME, &run);
        if ours.0 == 0 {
            return Some(podman);
        }
        for other in ["crun", "runc"] {
            let others = podman.of(other, &run);
            assert!(others.0 != 0, "{other} runs a container, Guise does not: {ours:?}");
        }
        println!("did not run {name}: podman works with no runtime here: {}", ours.2);
        None
    }

    /// Runs podman: status, output, errors.
    fn of(&self, runtime: &str, args: &[&str]) -> (i32, String, String) {
        let mut command = Command::new("podman");
        command.arg("--root").arg(self.directory.join("store"));
        command.arg("--runroot").arg(self.directory.join("run"));
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
        command.args(["--events-backend", "none", "--runtime", runtime]).args(args);
        command.stdin(Stdio::null());
        let output = output(command);
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// Runs a command that must succeed and gives its output.
    fn good(&self, args: &[&str]) -> String {
        let (status, out, err) = self.of(RUNTIME, args);
        assert_eq!(status, 0, "podman {args:?}: {err}");
        out.trim_end().to_owned()
    }

    /// `podman run` with options, then the image and a script.
    fn run(&self, options: &[&str], script: &str) -> (i32, String, String) {
        let mut args = vec!["run"];
        args.extend(OPTIONS);
        args.extend(options);
        args.extend(["box", "/bin/sh", "-c", script]);
        self.of(RUNTIME, &args)
    }

    fn state(&self, name: &str) -> String {
        self.good(&["inspect", name, "--format", "{{.State.Status}} {{.State.ExitCode}}"])
    }

    /// Waits until a container's log has a line.
    fn wait_for_log(&self, name: &str, line: &str) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !self.good(&["logs", name]).contains(line) {
            assert!(Instant::now() < deadline, "{name} never said {line}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.of(RUNTIME, &["rm", "-a", "-f", "-t", "0"]);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn podman_runs_execs_stops_and_removes() {
    let Some(podman) = Podman::new("podman") else { return };
    let (status, out, err) = podman.run(&["--rm"], "id -u; exit 7");
    assert_eq!((status, out.as_str()), (7, "0\n"), "{err}");
    let limited =
        ["--rm", "--read-only", "--user", "1234:1234", "--hostname", "box", "--cap-drop", "all"];
    let script = "id -u; hostname; grep CapEff /proc/self/status; echo x > /file";
    let (status, out, _) = podman.run(&limited, script);
    assert_eq!((status, out.as_str()), (1, "1234\nbox\nCapEff:\t0000000000000000\n"));
    let (status, out, err) = podman.run(&["--rm", "-t"], "tty");
    assert_eq!((status, out.trim()), (0, "/dev/pts/0"), "{err}");

    let data = podman.directory.join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "shared").unwrap();
    let volume = format!("{}:/data:ro", data.display());
    let options = [
        "-d",
        "--name",
        "one",
        "-e",
        "A=b",
        "-v",
        &volume,
        "--memory",
        "64m",
        "--pids-limit",
        "50",
    ];
    let script = "trap 'exit 9' TERM; cat /data/file; echo ' started'; while :; do sleep 0.1; done";
    let (status, _, err) = podman.run(&options, script);
    assert_eq!(status, 0, "{err}");
    podman.wait_for_log("one", "shared started");
    assert_eq!(podman.good(&["exec", "-e", "C=d", "one", "/bin/sh", "-c", "echo $A $C"]), "b d");
    assert_eq!(podman.of(RUNTIME, &["exec", "one", "/bin/sh", "-c", "exit 5"]).0, 5);
    assert_eq!(podman.of(RUNTIME, &["exec", "one", "/nosuch"]).0, 127);
    assert!(podman.good(&["top", "one"]).contains("sleep"));
    podman.good(&["pause", "one"]);
    assert_eq!(podman.state("one"), "paused 0");
    podman.good(&["unpause", "one"]);
    podman.good(&["stop", "-t", "120", "one"]);
    assert_eq!(podman.state("one"), "exited 9");
    podman.good(&["start", "one"]);
    podman.good(&["kill", "one"]);
    assert_eq!(podman.good(&["wait", "one"]), "137");
    podman.good(&["rm", "one"]);
    assert_eq!(podman.good(&["ps", "-a", "-q"]), "");
}
