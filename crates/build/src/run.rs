//! `RUN`: a command in a container on the mounted layers.
//!
//! The container is run by `guise oci`, in a process of its own that the builder
//! watches: this one may have threads, and the runtime must not.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use guise_container::rootfs::path::RootDir;
use guise_container::spec::{
    Capabilities, Linux, Mount, Namespace, NamespaceKind, OCI_VERSION, Process, Root, Spec, User,
    defaults,
};

use crate::builder::{Build, Network, Output, Sink};
use crate::error::{Error, IoContext, Result};
use crate::mounted::Mounted;
use crate::users;

/// How often it is looked whether the command has ended.
const TICK: Duration = Duration::from_millis(10);

/// What of a command's output goes into an error.
const LONGEST_OUTPUT: usize = 4096;

/// Files of the host's that a command with its network sees.
const HOST_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// What is mounted over, and so must not be left in the layer if it was not there.
const MOUNT_POINTS: [&str; 4] = ["proc", "sys", "dev", "etc"];

/// A command to run.
pub struct Run<'a> {
    pub build: &'a Build,
    pub arguments: Vec<String>,
    pub environment: Vec<String>,
    pub user: String,
    pub directory: String,
    pub network: Network,
}

impl Run<'_> {
    pub fn run(&self, mounted: &Mounted) -> Result<()> {
        let root = mounted.root_dir()?;
        let identity = users::identity(&root, &self.user)?;
        let mut environment = self.environment.clone();
        if !environment.iter().any(|e| e.starts_with("HOME=")) {
            environment.push(format!("HOME={}", identity.home));
        }
        let process = Process {
            args: self.arguments.clone(),
            env: environment,
            cwd: self.directory.clone(),
            user: User {
                uid: identity.uid,
                gid: identity.gid,
                additional_gids: identity.groups,
                ..User::default()
            },
            capabilities: Some(capabilities(identity.uid)),
            ..Process::default()
        };
        let missing = Missing::of(&root);
        let spec = self.spec(&mounted.root(), process)?;
        let result = self.execute(&spec, mounted.beside());
        missing.take_away(&mounted.root());
        result
    }

    fn spec(&self, root: &Path, process: Process) -> Result<Spec> {
        let path = root
            .to_str()
            .ok_or_else(|| Error::refused(format!("{} is not UTF-8", root.display())))?;
        let mount = |destination: &str, kind: &str, options: &[&str]| Mount {
            destination: destination.into(),
            kind: Some(kind.into()),
            source: Some(kind.into()),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            ..Mount::default()
        };
        let hardened = ["nosuid", "noexec", "nodev"];
        let mut mounts = vec![
            mount("/proc", "proc", &hardened),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount(
                "/dev/pts",
                "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            ),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &hardened),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "ro"]),
        ];
        let mut kinds = vec![
            NamespaceKind::Pid,
            NamespaceKind::Mount,
            NamespaceKind::Ipc,
            NamespaceKind::Uts,
            NamespaceKind::Cgroup,
        ];
        match self.network {
            Network::None => kinds.push(NamespaceKind::Network),
            Network::Host => {
                for file in HOST_FILES.into_iter().filter(|f| Path::new(f).is_file()) {
                    mounts.push(Mount {
                        destination: file.into(),
                        source: Some(file.into()),
                        options: ["bind", "ro", "nosuid", "nodev", "noexec"]
                            .map(String::from)
                            .into(),
                        ..Mount::default()
                    });
                }
            }
        }
        Ok(Spec {
            oci_version: OCI_VERSION.into(),
            process: Some(process),
            root: Some(Root { path: path.into(), readonly: false }),
            hostname: Some("build".into()),
            mounts,
            linux: Linux {
                namespaces: kinds.into_iter().map(|kind| Namespace { kind, path: None }).collect(),
                masked_paths: defaults::MASKED.map(String::from).into(),
                readonly_paths: defaults::READ_ONLY.map(String::from).into(),
                seccomp: Some(defaults::seccomp()),
                ..Linux::default()
            },
            ..Spec::default()
        })
    }

    fn execute(&self, spec: &Spec, beside: &Path) -> Result<()> {
        let bundle = beside.join("bundle");
        let states = beside.join("states");
        fs::create_dir_all(&bundle).at("making", &bundle)?;
        let text = serde_json::to_vec(spec)
            .map_err(|e| Error::refused(format!("cannot describe the container: {e}")))?;
        fs::write(bundle.join("config.json"), text).at("writing", &bundle)?;
        // Unique on this host, as its cgroup's name has to be.
        let id = format!("build-{}", beside.file_name().unwrap_or_default().to_string_lossy());
        let runtime = |arguments: &[&str]| {
            let mut command = Command::new(&self.build.runtime);
            command.arg("oci").arg("--root").arg(&states).args(arguments).stdin(Stdio::null());
            // An interrupt is the builder's: it ends the container in good order.
            command.process_group(0);
            command
        };
        let kept = beside.join("output");
        let mut command = runtime(&["run", "--bundle"]);
        command.arg(&bundle).arg(&id);
        let mut printed = None;
        match &self.build.output {
            Output::Shown => {
                command.stdout(std::io::stderr());
            }
            Output::Kept => {
                let out = File::create(&kept).at("making", &kept)?;
                command.stdout(out.try_clone().at("opening", &kept)?).stderr(out);
            }
            Output::To(sink) => {
                let (from, to) = std::io::pipe().at("making a pipe for", &self.build.runtime)?;
                let again = to.try_clone().at("making a pipe for", &self.build.runtime)?;
                command.stdout(again).stderr(to);
                printed = Some((from, sink.clone()));
            }
        }
        let what = &self.build.runtime;
        let mut child = command.spawn().at("running", what)?;
        // It holds ends of the pipe, which would never come to its end.
        drop(command);
        // Ends with the last process that can print.
        let printing =
            printed.map(|(from, sink)| std::thread::spawn(move || pass_on(from, &*sink)));
        let status = match self.wait(&mut child) {
            Ok(status) => status,
            Err(e) => {
                let _ = runtime(&["delete", "--force", &id]).status();
                let _ = child.wait();
                return Err(e);
            }
        };
        // What a thread could not pass on is missing, and nothing else.
        drop(printing.map(std::thread::JoinHandle::join));
        if status == 0 {
            return Ok(());
        }
        let output = fs::read(&kept).unwrap_or_default();
        let end = &output[output.len().saturating_sub(LONGEST_OUTPUT)..];
        Err(Error::Run { status, output: String::from_utf8_lossy(end).into_owned() })
    }

    fn wait(&self, child: &mut Child) -> Result<i32> {
        loop {
            if let Some(status) = child.try_wait().at("waiting for", &self.build.runtime)? {
                return Ok(status.code().unwrap_or(1));
            }
            if self.build.is_interrupted() {
                return Err(Error::Interrupted);
            }
            std::thread::sleep(TICK);
        }
    }
}

fn pass_on(mut from: impl Read, sink: &dyn Sink) {
    let mut buffer = [0; 16 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => sink.take(&buffer[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Root may do what the list says; others only come to it through set-user-id
/// programs.
fn capabilities(uid: u32) -> Capabilities {
    let all: Vec<String> = defaults::CAPABILITIES.map(String::from).into();
    let own = if uid == 0 { all.clone() } else { Vec::new() };
    Capabilities {
        bounding: all,
        effective: own.clone(),
        permitted: own,
        ..Capabilities::default()
    }
}

/// What the container's mounts will make room for.
struct Missing {
    files: Vec<&'static str>,
    directories: Vec<&'static str>,
}

impl Missing {
    fn of(root: &RootDir) -> Self {
        let is_missing = |path: &&str| root.place_nofollow(path).is_err();
        Missing {
            files: HOST_FILES.into_iter().filter(is_missing).collect(),
            directories: MOUNT_POINTS.into_iter().filter(is_missing).collect(),
        }
    }

    /// Removes what was only a place to mount on: empty, and not made by the
    /// command itself.
    fn take_away(&self, root: &Path) {
        let Ok(dir) = guise_container::rootfs::path::open_host(root) else { return };
        let dir = RootDir::new(dir);
        for file in &self.files {
            if dir.stat(file).is_ok_and(|s| s.st_size == 0)
                && let Ok((parent, name)) = dir.make_parent(file)
            {
                let _ = rustix::fs::unlinkat(parent, name, rustix::fs::AtFlags::empty());
            }
        }
        for directory in &self.directories {
            let _ = rustix::fs::unlinkat(&dir, *directory, rustix::fs::AtFlags::REMOVEDIR);
        }
    }
}
