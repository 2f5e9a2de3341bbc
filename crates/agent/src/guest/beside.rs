//! The way into a system that boots by itself.
//!
//! The kernel starts this program, out of the initial RAM disk. It starts itself once more, as
//! the agent, and goes on as the program that would have been first, which finds everything as
//! if nobody had been there before. The agent waits until that one has gone over to the disk
//! and has become the system's own first process, and follows it there.
//!
//! Where the system is an image there is no such program: this one makes the image its root, and
//! goes on as the system's own first process.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use guise_agent::protocol::{
    BESIDE, BESIDE_AGENT, BESIDE_FIRST, BESIDE_ROOT, BESIDE_SECRET, OwnRoot, VSOCK_PORT,
};
use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::channel::Channel;
use super::server::Server;
use super::system::{LOOK, load_module};
use super::{root, sys};

/// Programs whose names begin so are left alone by systemd, where it goes over to the disk and
/// where it shuts down.
const NAME: &str = "@guise-agent";
/// What the kernel starts where nothing else is said.
const FIRST: &str = "/init";
const DRIVER: &str = "vmw_vsock_virtio_transport";
/// How often the host is called before it is called rarely; each so many times the driver is
/// asked for.
const CALLS: u32 = 600;
const CALLS_FOR_A_DRIVER: u32 = 20;
const RARELY: Duration = Duration::from_secs(5);

/// The first process: starts the agent, and goes on as the program that was meant to be first.
/// It returns only if there is none.
pub fn begin(arguments: &[OsString]) -> ExitCode {
    let first = fs::read_to_string(BESIDE_FIRST).unwrap_or_else(|_| FIRST.to_owned());
    let own_root = fs::read(BESIDE_ROOT).ok().and_then(|bytes| OwnRoot::of(&bytes));
    if let Err(error) = start_agent() {
        eprintln!("guise-agent: {error}");
    }
    if let Some(root) = own_root
        && let Err(error) = root::become_system(&root)
    {
        eprintln!("guise-agent: {error}");
        return ExitCode::FAILURE;
    }
    let error = Command::new(&first).args(arguments).exec();
    eprintln!("guise-agent: {first}: {error}");
    ExitCode::FAILURE
}

/// Returns when the agent has taken away everything that came with it. Who this process becomes
/// waits for the agent's end, as for that of all programs.
fn start_agent() -> io::Result<()> {
    let mut command = Command::new(BESIDE_AGENT);
    command.arg0(NAME).arg("beside").env_clear().stdin(Stdio::inherit()).stdout(Stdio::piped());
    let mut agent = command.spawn()?;
    if let Some(mut ready) = agent.stdout.take() {
        // It is closed, or the agent has ended.
        let _ = ready.read(&mut [0]);
    }
    Ok(())
}

/// The agent.
pub fn run() -> io::Result<()> {
    rustix::process::setsid()?;
    let waiting = Waiting::begin()?;
    // The first process may begin; messages go where its own go.
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    while !waiting.system_is_there() {
        std::thread::sleep(LOOK);
    }
    waiting.follow()?;
    // Programs find this one through it, and statistics are there.
    while !Path::new("/proc/self/exe").exists() {
        std::thread::sleep(LOOK);
    }
    let_go_of_console();
    Server::beside(call()?, waiting.secret)?.run().map(drop)
}

/// What is needed outside of every file system: nobody sees it, and nobody can take it away.
struct Waiting {
    /// `/proc`.
    processes: OwnedFd,
    /// The initial RAM disk's.
    root: Stat,
    secret: Vec<u8>,
}

impl Waiting {
    fn begin() -> io::Result<Waiting> {
        let secret = fs::read(BESIDE_SECRET)?;
        let root = rustix::fs::stat("/")?;
        let processes = processes()?;
        fs::remove_dir_all(BESIDE)?;
        Ok(Waiting { processes, root, secret })
    }

    /// Whether the first process has gone over to the disk and is a program from there.
    fn system_is_there(&self) -> bool {
        let look = |path| rustix::fs::statat(&self.processes, path, AtFlags::empty());
        let (Ok(root), Ok(program)) = (look("1/root"), look("1/exe")) else { return false };
        let same = (root.st_dev, root.st_ino) == (self.root.st_dev, self.root.st_ino);
        !same && program.st_dev != self.root.st_dev
    }

    /// Makes the first process's root this one's.
    fn follow(&self) -> io::Result<()> {
        let open = |path, flags| rustix::fs::openat(&self.processes, path, flags, Mode::empty());
        let flags = OFlags::CLOEXEC;
        let root = open("1/root", flags | OFlags::PATH | OFlags::DIRECTORY)?;
        let mounts = open("1/ns/mnt", flags | OFlags::RDONLY)?;
        move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))?;
        rustix::process::fchdir(&root)?;
        rustix::process::chroot(".")?;
        std::env::set_current_dir("/")
    }
}

/// A `/proc` that is mounted nowhere.
fn processes() -> io::Result<OwnedFd> {
    let place = Path::new(BESIDE).join("proc");
    fs::create_dir(&place)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", &place, "proc", flags, None)?;
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
    let processes = rustix::fs::open(&place, flags, Mode::empty())?;
    unmount(&place, UnmountFlags::DETACH)?;
    Ok(processes)
}

/// The console is the system's. One without a `/dev/null` is left as it is.
fn let_go_of_console() {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY;
    let Ok(null) = rustix::fs::open("/dev/null", flags, Mode::empty()) else { return };
    for result in [
        rustix::stdio::dup2_stdin(&null),
        rustix::stdio::dup2_stdout(&null),
        rustix::stdio::dup2_stderr(&null),
    ] {
        if let Err(error) = result {
            eprintln!("guise-agent: /dev/null: {error}");
        }
    }
}

/// Calls the host until it answers. The system may need a while to have a driver for that, and
/// one that has none may be given one.
fn call() -> io::Result<Channel> {
    let mut calls = 0;
    loop {
        if let Ok(socket) = sys::connect_to_host(VSOCK_PORT) {
            return Channel::new(socket);
        }
        if calls % CALLS_FOR_A_DRIVER == 0 && calls < CALLS {
            load_module(DRIVER);
        }
        calls = calls.saturating_add(1);
        std::thread::sleep(if calls < CALLS { LOOK } else { RARELY });
    }
}
