//! The jail of a machine's worker, and that of a WebAssembly program's, from inside: this
//! program, in a worker's place, tries what a guest that broke out would try. Nothing of it may
//! work.
//!
//! A jail is entered by a process with one thread, so this test has no harness: it starts
//! itself again as the prisoner, and is to it what the daemon is.

mod attempts;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use guise_microvm::PreparedKernel;
use guise_worker::jail;
use guise_worker::job::{Boots, Engine, Form, Job, Log, Mount, Network, Resources};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// What nobody writes to.
const SECRETS: [&str; 8] = [
    "image",
    "kernel",
    "initrd",
    "secret",
    "other/state/worker/writes.img",
    "own/state/job.json",
    "own/state/own.img",
    "own/run/worker.lock",
];

/// Somebody inside.
const USER: u32 = 33;

/// Begins the arguments of the program as a prisoner.
const PRISONER: &str = "prisoner";

/// What the prisoner knows of the world outside.
struct Outside {
    folder: PathBuf,
    /// A process of this user.
    victim: u32,
    /// A server on the host's loopback.
    port: u16,
    networked: bool,
    shares: bool,
    kind: Kind,
}

/// What the prisoner's worker runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A machine of an image, with a kernel that all share.
    Microvm,
    /// A machine of a disk, with a kernel that is on it.
    Vm,
    /// A WebAssembly program and no machine.
    Program,
    /// A container, which another process keeps.
    Container,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Microvm, Kind::Vm, Kind::Program, Kind::Container];

    fn name(self) -> &'static str {
        match self {
            Kind::Microvm => "microVM",
            Kind::Vm => "VM",
            Kind::Program => "program",
            Kind::Container => "container",
        }
    }

    fn of(name: &str) -> Option<Kind> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl Outside {
    fn arguments(&self) -> Vec<String> {
        vec![
            PRISONER.to_owned(),
            self.folder.display().to_string(),
            self.victim.to_string(),
            self.port.to_string(),
            self.networked.to_string(),
            self.shares.to_string(),
            self.kind.name().to_owned(),
        ]
    }

    fn of(arguments: &[String]) -> Option<Outside> {
        let [first, folder, victim, port, networked, shares, kind] = arguments else {
            return None;
        };
        (first == PRISONER).then(|| Outside {
            folder: folder.into(),
            victim: victim.parse().unwrap(),
            port: port.parse().unwrap(),
            networked: networked == "true",
            shares: shares == "true",
            kind: Kind::of(kind).unwrap(),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn abstract_name(&self) -> SocketAddr {
        SocketAddr::from_abstract_name(self.folder.to_str().unwrap()).unwrap()
    }

    /// A program's jail is made of no form.
    fn form(&self) -> Form {
        match self.kind {
            Kind::Vm => Form::Vm {
                image: self.path("image"),
                boots: Boots::Disk,
                engine: Engine::Soft,
                user_data: None,
                ssh_keys: Vec::new(),
            },
            Kind::Container => Form::Container { layers: Vec::new() },
            Kind::Microvm | Kind::Program => Form::Microvm {
                root: self.path("image"),
                kernel: self.path("kernel"),
                modules: self.path("modules"),
                cache: self.path("cache"),
                engine: Engine::Soft,
            },
        }
    }

    fn job(&self) -> Job {
        let share = Mount { source: self.path("share"), target: "/srv".into(), read_only: false };
        Job {
            id: "prisoner".into(),
            life: 1,
            name: "prisoner".into(),
            host_name: "prisoner".into(),
            state: self.path("own/state"),
            run: self.path("own/run"),
            form: self.form(),
            program: Default::default(),
            stop_signal: 15,
            time_limit: None,
            disk_must_hold: false,
            resources: Resources::default(),
            read_only: false,
            mounts: if self.shares { vec![share] } else { Vec::new() },
            network: if self.networked { Network::User } else { Network::None },
            plug: None,
            ports: Vec::new(),
            log: Log::default(),
            ephemeral: false,
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(outside) = Outside::of(&arguments) {
        return be_prisoner(&outside);
    }
    // Whoever lists tests or asks for others by name is not meant.
    if arguments.iter().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let mut failed = false;
    for networked in [false, true] {
        for shares in [false, true] {
            failed |= !imprison(networked, shares, Kind::Microvm);
            failed |= !imprison(networked, shares, Kind::Vm);
        }
        // A program's root is shared with it at any rate, and a container's is its keeper's.
        failed |= !imprison(networked, true, Kind::Program);
        failed |= !imprison(networked, false, Kind::Container);
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn await_mapping() -> std::io::Result<()> {
    println!("map me");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map(drop)
}

fn be_prisoner(outside: &Outside) -> ExitCode {
    let root = rustix::process::geteuid().is_root();
    let (job, image) = (outside.job(), outside.path("image"));
    let kernel = PreparedKernel { kernel: outside.path("kernel"), initrd: outside.path("initrd") };
    let identity = || jail::identity(&job);
    let jail = match outside.kind {
        Kind::Program => {
            jail::of_program(&job, &job.state.join("upper"), Some(&image), identity(), false)
        }
        Kind::Microvm => {
            let files = [&*image, &*kernel.kernel, &*kernel.initrd];
            jail::of_machine(&job, &files)
        }
        Kind::Vm => jail::of_machine(&job, &[&image]),
        Kind::Container => {
            let identity = identity();
            if !root {
                // As a container's worker does it for its keeper and itself.
                // SAFETY: only credentials are unshared.
                unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }.unwrap();
                await_mapping().unwrap();
            }
            jail::of_container(&job, identity)
        }
    };
    let entered = jail.enter(await_mapping);
    match entered {
        Ok(entered) => {
            if let Some(missing) = &entered.missing {
                println!("not run: attempts at what namespaces hide: this host lacks {missing}");
            }
            if let Some(missing) = &entered.kept_its_id {
                println!("not run: attempts as a stranger to the host: this host lacks {missing}");
            }
            attempts::all(outside, &entered, root)
        }
        Err(error) => {
            println!("FAILED the jail is not entered: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a prisoner, and says whether it could do what it should and nothing else.
fn imprison(networked: bool, shares: bool, kind: Kind) -> bool {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().to_owned();
    for name in [
        "own/state/upper",
        "own/state/worker",
        "own/run/oci",
        "own/run/worker",
        "other/state/worker",
        "other/run/worker",
        "share",
        "modules",
        "cache",
    ] {
        fs::create_dir_all(folder.join(name)).unwrap();
    }
    for name in SECRETS.into_iter().chain(["share/file"]) {
        fs::write(folder.join(name), "text").unwrap();
    }
    let other = UnixListener::bind(folder.join("other/run/worker/socket")).unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut victim = Victim(Command::new("sleep").arg("1000").spawn().unwrap());
    let outside = Outside {
        folder: folder.clone(),
        victim: victim.0.id(),
        port: server.local_addr().unwrap().port(),
        networked,
        shares,
        kind,
    };
    let hidden = UnixListener::bind_addr(&outside.abstract_name()).unwrap();
    // It works from here.
    UnixStream::connect_addr(&outside.abstract_name()).unwrap();
    let passed = watch(&outside);
    let untouched = victim.0.try_wait().unwrap().is_none();
    drop((victim, other, hidden, server));
    println!(
        "test a {}'s prisoner with{} a network, with{} shares ... {}",
        kind.name(),
        if networked { "" } else { "out" },
        if shares { "" } else { "out" },
        if passed && untouched { "ok" } else { "FAILED" }
    );
    passed && untouched && secrets_are_whole(&folder) && owners_are_right(&outside)
}

/// Whoever the prisoner is to the host, on disk its files have the owners that it meant.
fn owners_are_right(outside: &Outside) -> bool {
    let owner = |path: PathBuf| fs::metadata(path).unwrap().uid();
    let own = rustix::process::geteuid();
    let given = if outside.shares && own.is_root() {
        owner(outside.path("share/new")) == USER
    } else {
        true
    };
    given && owner(outside.path("own/state/worker/mark")) == own.as_raw()
}

/// A process that is to be left alone. It goes with the test, also with one that fails.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        // It may be dead already, which is another's failure.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn watch(outside: &Outside) -> bool {
    let mut prisoner = Command::new(std::env::current_exe().unwrap())
        .args(outside.arguments())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(prisoner.stdout.take().unwrap()).lines();
    for line in said.by_ref() {
        let line = line.unwrap();
        if line == "map me" {
            map(prisoner.id(), outside.kind);
            prisoner.stdin.take().unwrap().write_all(b"mapped\n").unwrap();
        } else {
            println!("{line}");
        }
    }
    prisoner.wait().unwrap().success()
}

/// As the daemon does it: root's ids as they are, a plain user as root, in containers with all
/// users that the host gives to that user.
fn map(pid: u32, kind: Kind) {
    use guise_container::namespaces::{ranges, write_mappings};
    use guise_container::spec::IdMap;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let ids = |own| match uid {
        0 => vec![IdMap { container: 0, host: 0, size: 65_536 }],
        _ => vec![IdMap { container: 0, host: own, size: 1 }],
    };
    let (mut uids, mut gids) = (ids(uid), ids(gid));
    if uid != 0
        && kind == Kind::Container
        && let Ok(all) = ranges::of(uid, gid)
    {
        (uids, gids) = (all.uids, all.gids);
    }
    write_mappings(pid.cast_signed(), &uids, &gids, true).unwrap();
}

fn secrets_are_whole(folder: &Path) -> bool {
    SECRETS.into_iter().all(|name| fs::read(folder.join(name)).unwrap() == b"text")
}
