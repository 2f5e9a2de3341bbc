//! Bundles for tests, taken away at the end with everything that ran in them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The binary under test.
pub const GUISE: &str = env!("CARGO_BIN_EXE_guise");

/// A bundle with a state root of its own.
pub struct Bundle {
    pub directory: PathBuf,
    pub config: Value,
    pub id: String,
}

fn busybox() -> Option<&'static str> {
    ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists())
}

impl Bundle {
    /// A bundle that runs a shell script; none, with the reason printed, where
    /// containers cannot be run.
    pub fn new(name: &str, script: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("did not run {name}: needs root");
            return None;
        }
        Self::as_anyone(name, script)
    }

    /// The same for tests that need no root.
    pub fn as_anyone(name: &str, script: &str) -> Option<Self> {
        let Some(busybox) = busybox() else {
            println!("did not run {name}: needs a static busybox (Debian: busybox-static)");
            return None;
        };
        let id = format!("guise-test-{name}-{}", std::process::id());
        let directory = std::env::temp_dir().join(&id);
        let root = directory.join("rootfs");
        for sub in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
            fs::create_dir_all(root.join(sub)).unwrap();
        }
        fs::copy(busybox, root.join("bin/busybox")).unwrap();
        for tool in [
            "sh", "cat", "id", "ls", "sleep", "true", "mount", "mknod", "head", "stat", "mkdir",
            "touch", "readlink", "hostname", "grep", "kill", "stty", "chmod", "dd", "date", "ps",
            "cp", "wc", "test", "umask", "cut", "env", "tty",
        ] {
            symlink("busybox", root.join("bin").join(tool)).unwrap();
        }
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": 0, "gid": 0 },
                "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/bin"],
                "cwd": "/",
                "noNewPrivileges": true,
                "capabilities": {
                    "bounding": ["CAP_KILL", "CAP_SETUID", "CAP_SETGID"],
                    "effective": ["CAP_KILL", "CAP_SETUID", "CAP_SETGID"],
                    "permitted": ["CAP_KILL", "CAP_SETUID", "CAP_SETGID"],
                },
            },
            "root": { "path": "rootfs" },
            "hostname": "box",
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                  "options": ["nosuid", "mode=755", "size=65536k"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                  "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
                { "destination": "/sys", "type": "sysfs", "source": "sysfs",
                  "options": ["nosuid", "noexec", "nodev", "ro"] },
                { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                  "options": ["nosuid", "noexec", "nodev", "ro"] },
            ],
            "linux": {
                "cgroupsPath": format!("/{id}"),
                "namespaces": [
                    { "type": "pid" }, { "type": "network" }, { "type": "ipc" },
                    { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" },
                ],
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
                "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
            },
        });
        Some(Bundle { directory, config, id })
    }

    /// A path in the root file system, on the host.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.directory.join("rootfs").join(inside)
    }

    fn write(&self) {
        fs::write(self.directory.join("config.json"), self.config.to_string()).unwrap();
    }

    /// A command of the runtime, ready to be run.
    pub fn command(&self, args: &[&str]) -> Command {
        self.write();
        let mut command = Command::new(GUISE);
        command.arg("oci").arg("--root").arg(self.directory.join("state")).args(args);
        command.current_dir(&self.directory).stdin(Stdio::null());
        command
    }

    /// Runs a command of the runtime; the container's id is appended.
    pub fn oci(&self, args: &[&str]) -> Output {
        let mut all = args.to_vec();
        all.push(&self.id);
        output(self.command(&all))
    }

    /// Runs the container in the foreground: status, output, errors.
    pub fn run(&self) -> (i32, String, String) {
        let output = self.oci(&["run"]);
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// Runs the container, whose program prints the seconds since boot, with clocks set off.
    pub fn expect_clocks_set_off(&mut self) {
        const OFFSET: u64 = 1_000_000_000;
        if !Path::new("/proc/self/ns/time").exists() {
            println!("did not run {}: the kernel has no time namespaces", self.id);
            return;
        }
        let linux = &mut self.config["linux"];
        linux["namespaces"].as_array_mut().unwrap().push(json!({ "type": "time" }));
        linux["timeOffsets"] = json!({ "boottime": { "secs": OFFSET, "nanosecs": 0 } });
        let (status, out, err) = self.run();
        assert_eq!(status, 0, "{err}");
        assert!(out.trim().parse::<u64>().unwrap() >= OFFSET, "{out}");
    }

    /// Creates and starts it in the background.
    pub fn start(&self) {
        for step in ["create", "start"] {
            let output = self.oci(&[step]);
            assert!(output.status.success(), "{step}: {output:?}");
        }
    }

    /// The state that `state` prints.
    pub fn state(&self) -> Value {
        let output = self.oci(&["state"]);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// Waits until the container is in a state.
    pub fn wait_for(&self, status: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.state()["status"] != status {
            assert!(Instant::now() < deadline, "never {status}: {}", self.state());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a file is there.
    pub fn wait_for_file(&self, inside: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.path(inside).exists() {
            assert!(Instant::now() < deadline, "{inside} never came");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The container's cgroup directories that exist.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        self.cgroups_of(|name| name == self.id)
    }

    /// The cgroup directories with such names, in every hierarchy's root.
    pub fn cgroups_of(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
        let below = |directory: &Path| -> Vec<PathBuf> {
            fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.path()).collect()
        };
        let top = below(Path::new("/sys/fs/cgroup"));
        let mut all: Vec<PathBuf> = top.iter().flat_map(|directory| below(directory)).collect();
        all.extend(top);
        all.retain(|path| {
            let name = path.file_name().and_then(|n| n.to_str());
            path.is_dir() && name.is_some_and(&is_wanted)
        });
        all
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = output(self.command(&["delete", "--force", &self.id]));
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Runs a command. Output goes through files: a container in the background
/// would keep a pipe open.
pub fn output(mut command: Command) -> Output {
    let (out, err) = (tempfile(), tempfile());
    command.stdout(out.try_clone().unwrap()).stderr(err.try_clone().unwrap());
    let status = command.status().unwrap();
    let read = |mut file: fs::File| {
        use std::io::{Read, Seek};
        let mut text = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut text).unwrap();
        text
    };
    Output { status, stdout: read(out), stderr: read(err) }
}

fn tempfile() -> fs::File {
    fs::File::from(rustix::fs::memfd_create("output", rustix::fs::MemfdFlags::CLOEXEC).unwrap())
}
