//! The container's first process, from the moment it exists until it is the
//! program.
//!
//! It is a copy of the runtime made by `clone3`. It sets up what is inside and
//! talks with the runtime over a channel where something has to be done from
//! outside: being moved into cgroups, hooks of the runtime, limits.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{SocketFlags, accept_with};

use crate::cgroup::{Cgroup, Entrances};
use crate::error::{Context, Error, Result};
use crate::hooks;
use crate::namespaces::{self, Plan};
use crate::process::enter::{Entry, Outside};
use crate::process::terminal::{Terminal, own_standard_streams};
use crate::process::{labels, lookup, memory_policy};
use crate::rootfs::mounts::Mounter;
use crate::rootfs::proc::PrivateProc;
use crate::rootfs::{self, ChangeRoot, devices, mask};
use crate::seccomp::Filter;
use crate::spec::{NamespaceKind, Process, Spec};
use crate::state::{Prepared, State, Status};
use crate::sys::clone::{exit_now, unshare};
use crate::sys::cred;
use crate::sys::socket::{Channel, send_fd};

/// What the first process and the runtime tell each other; one byte starts each message.
pub mod message {
    /// A user namespace was made and needs its mappings.
    pub const MAP_IDS: u8 = b'M';
    /// The id of the first process, made by an intermediate one.
    pub const PID: u8 = b'P';
    /// Everything is mounted: hooks of the runtime may run.
    pub const MOUNTED: u8 = b'H';
    /// A terminal's master comes along.
    pub const TERMINAL: u8 = b'T';
    /// Resource limits have to be set from outside.
    pub const LIMITS: u8 = b'L';
    /// The clocks of a new time namespace have to be set from outside.
    pub const CLOCKS: u8 = b'C';
    /// A seccomp listener comes along.
    pub const SECCOMP: u8 = b'S';
    /// Ready to be started.
    pub const READY: u8 = b'R';
    /// An error: exit code, text.
    pub const ERROR: u8 = b'E';
    /// The runtime's answer: go on.
    pub const GO: u8 = b'g';
    /// The runtime's word, which nobody asked for: the cgroups are there. With it come the
    /// files through which a process enters them, one for each hierarchy, and then mounts of
    /// them. Usually it is there before the process needs it, and neither sleeps for the other.
    pub const CGROUPS: u8 = b'G';
}

/// Where the terminal's master goes.
pub enum Console {
    /// There is no terminal.
    None,
    /// To a socket that the caller listens on.
    Socket(OwnedFd),
    /// To the runtime, which relays it.
    Runtime,
}

/// How the container is told to start.
pub enum Start {
    /// Over the channel, by the runtime that made it.
    Channel,
    /// Not at all: it goes on, and says itself that the state holds, which the runtime wrote
    /// before the cgroups were there. Neither sleeps for the other.
    AtOnce(Prepared),
    /// By whoever connects to this socket.
    Socket(OwnedFd),
}

/// Everything the first process needs, prepared before it exists.
pub struct Job<'a> {
    pub spec: &'a Spec,
    pub process: &'a Process,
    pub state: &'a State,
    pub plan: &'a Plan,
    pub cgroup: &'a Cgroup,
    /// The ways into its cgroups, opened by the runtime.
    pub entrances: Entrances,
    pub sources: Vec<Option<OwnedFd>>,
    pub console: Console,
    pub start: Start,
    pub filter: Option<&'a Filter>,
    pub preserve_fds: u32,
    pub listen_fds: u32,
    pub keyring: Option<String>,
    pub no_pivot: bool,
    pub may_set_groups: bool,
    /// Namespaces were joined by an intermediate process.
    pub joined: bool,
    /// The cgroups are being made, and this process has not entered them.
    pub cgroups_later: Cell<bool>,
}

impl Job<'_> {
    /// Enters the cgroups that the runtime has made meanwhile, and makes the namespace of them
    /// that begins there. What follows is to find them: mounts of cgroups, and programs.
    ///
    /// Gives what the runtime has taken for the mounts, the first time.
    fn enter_cgroups(&self, runtime: &Runtime<'_>) -> Result<Vec<OwnedFd>> {
        if !self.cgroups_later.take() {
            return Ok(Vec::new());
        }
        let mut parts = runtime.wait_for_cgroups()?;
        let ways_in = self.cgroup.own_hierarchies().count().min(parts.len());
        Entrances::received(self.cgroup, parts.drain(..ways_in)).enter()?;
        self.make_cgroup_namespace()?;
        Ok(parts)
    }

    fn make_cgroup_namespace(&self) -> Result<()> {
        if self.plan.cgroup {
            unshare(libc::CLONE_NEWCGROUP).during(|| "make a cgroup namespace")?;
        }
        Ok(())
    }
}

/// The channel to the runtime, from the first process's side.
pub struct Runtime<'a> {
    pub channel: &'a Channel,
    /// What came with the word that the cgroups are there.
    cgroups: Cell<Option<Vec<OwnedFd>>>,
}

impl<'a> Runtime<'a> {
    pub fn new(channel: &'a Channel) -> Self {
        Runtime { channel, cgroups: Cell::new(None) }
    }

    /// Sends a message and waits for the answer.
    pub fn ask(&self, kind: u8) -> Result<()> {
        self.channel.send(&[kind], None).during(|| "talk to the runtime")?;
        self.wait()
    }

    /// Waits to be told to go on.
    pub fn wait(&self) -> Result<()> {
        while self.hear()? != message::GO {}
        Ok(())
    }

    /// Waits until the cgroups are there.
    fn wait_for_cgroups(&self) -> Result<Vec<OwnedFd>> {
        loop {
            if let Some(files) = self.cgroups.take() {
                return Ok(files);
            }
            self.hear()?;
        }
    }

    /// The runtime's next word.
    fn hear(&self) -> Result<u8> {
        let (words, fds) = self.channel.receive_many().during(|| "listen to the runtime")?;
        match words.first() {
            Some(&message::GO) => Ok(message::GO),
            Some(&message::CGROUPS) => {
                self.cgroups.set(Some(fds));
                Ok(message::CGROUPS)
            }
            // The runtime gave up and said why to its caller.
            _ => exit_now(1),
        }
    }
}

impl Outside for Runtime<'_> {
    fn set_limits(&self) -> Result<()> {
        self.ask(message::LIMITS)
    }

    fn seccomp_listener(&self, listener: OwnedFd) -> Result<()> {
        self.channel
            .send(&[message::SECCOMP], Some(listener.as_fd()))
            .during(|| "hand out the seccomp listener")?;
        self.wait()
    }
}

/// An error as a message.
pub fn encode_error(error: &Error) -> Vec<u8> {
    let mut text = vec![message::ERROR, error.exit_code()];
    text.extend_from_slice(error.to_string().as_bytes());
    text
}

/// An error from a message, its code kept.
pub fn decode_error(message: &[u8]) -> (u8, String) {
    let code = message.get(1).copied().unwrap_or(1);
    let text = String::from_utf8_lossy(message.get(2..).unwrap_or_default()).into_owned();
    (code, text)
}

/// Runs the first process; never returns to what its parent was doing.
pub fn run(job: Job<'_>, channel: Channel) -> ! {
    let runtime = Runtime::new(&channel);
    match set_up(job, &runtime) {
        Ok(ready) => {
            let error = ready.start(&runtime);
            exit_now(error.exit_code().into())
        }
        Err(e) => {
            let _ = channel.send(&encode_error(&e), None);
            exit_now(e.exit_code().into())
        }
    }
}

/// A container that waits to be started.
struct Ready<'a> {
    job: Job<'a>,
    proc: PrivateProc,
    /// The state as hooks are told it; only looked up when there are any.
    outside: Option<State>,
}

fn set_up<'a>(mut job: Job<'a>, runtime: &Runtime<'_>) -> Result<Ready<'a>> {
    let spec = job.spec;
    // Dies with the runtime until the container is complete.
    cred::set_parent_death_signal(libc::SIGKILL).during(|| "watch the runtime")?;
    std::mem::take(&mut job.entrances).enter()?;
    job.plan.make_own()?;
    if !job.joined {
        job.plan.join_others()?;
    }
    let new_user = spec.makes(NamespaceKind::User);
    if new_user && !job.joined {
        runtime.wait()?;
        become_root()?;
    }
    cred::new_session().during(|| "start a session")?;
    if !spec.makes(NamespaceKind::Pid) {
        // Others see this process; they must not trace it or open its files.
        cred::set_undumpable().during(|| "keep others from tracing this process")?;
    }
    if let Some(name) = &spec.hostname {
        cred::set_hostname(name).during(|| "set the host name")?;
    }
    if let Some(name) = &spec.domainname {
        cred::set_domainname(name).during(|| "set the domain name")?;
    }
    if spec.makes(NamespaceKind::Network) {
        namespaces::bring_up_loopback()?;
    }
    if job.plan.time {
        let offsets = &spec.linux.time_offsets;
        namespaces::enter_new_time(offsets, || runtime.ask(message::CLOCKS))?;
    }
    if let Some(policy) = &spec.linux.memory_policy {
        memory_policy::apply(policy)?;
    }
    let root = if spec.makes(NamespaceKind::Mount) {
        Some(rootfs::prepare(spec, &job.state.rootfs)?)
    } else {
        None
    };
    if !job.cgroups_later.get() {
        job.make_cgroup_namespace()?;
    } else if root.is_none() {
        job.enter_cgroups(runtime)?;
    }
    let proc = PrivateProc::open_if(!spec.linux.sysctl.is_empty() || labels::wanted(job.process))?;
    let hooks = &spec.hooks;
    let outside = (!hooks.create_container.is_empty() || !hooks.start_container.is_empty())
        .then(|| with_own_pid(job.state));
    match root {
        Some(root) => fill(&mut job, runtime, &root, &proc, outside.as_ref())?,
        None => {
            if !spec.mounts.is_empty() && !spec.has(NamespaceKind::Mount) {
                tracing::warn!("without a mount namespace no mounts are made");
            }
            let root = rootfs::path::RootDir::new(
                rootfs::path::open_host(&job.state.rootfs)
                    .during(|| format!("open {}", job.state.rootfs))?,
            );
            namespaces::apply_sysctls(spec, &proc)?;
            rootfs::change_root(&root, spec, ChangeRoot::Chroot)?;
        }
    }
    if spec.hooks.start_container.is_empty() {
        // Said now rather than at the start, where nobody may be listening.
        lookup::find(&job.process.args[0], &job.process.env)?;
    }
    cred::set_parent_death_signal(0).during(|| "stop watching the runtime")?;
    Ok(Ready { job, proc, outside })
}

/// Becomes the root of a user namespace, if it has one.
pub fn become_root() -> Result<()> {
    // A mapping without 0 leaves this process as whoever it is mapped to.
    let _ = cred::set_gid(0);
    let _ = cred::set_uid(0);
    Ok(())
}

/// Mounts, devices, hooks, masks; then the root changes.
fn fill(
    job: &mut Job<'_>,
    runtime: &Runtime<'_>,
    root: &rootfs::path::RootDir,
    proc: &PrivateProc,
    outside: Option<&State>,
) -> Result<()> {
    let spec = job.spec;
    let sources = std::mem::take(&mut job.sources);
    let mut mounter = Mounter {
        spec,
        root,
        cgroup: job.cgroup,
        enter_cgroups: &|| job.enter_cgroups(runtime),
        sources,
        bundle: &job.state.bundle,
    };
    mounter.run()?;
    job.enter_cgroups(runtime)?;
    devices::create(root, spec, namespaces::in_user_namespace())?;
    let terminal = match &job.console {
        Console::None => None,
        _ => {
            let terminal = Terminal::open(root, job.process.console_size)?;
            terminal.mount_console(root)?;
            Some(terminal)
        }
    };
    if !spec.hooks.prestart.is_empty() || !spec.hooks.create_runtime.is_empty() {
        runtime.ask(message::MOUNTED)?;
    }
    if let Some(state) = outside {
        let public = state.public(Status::Creating);
        hooks::run("createContainer", &spec.hooks.create_container, &public)?;
    }
    namespaces::apply_sysctls(spec, proc)?;
    mask::make_readonly(root, &spec.linux.readonly_paths)?;
    mask::mask(root, &spec.linux.masked_paths)?;
    if job.process.cwd != "/" {
        // Programs of images expect their directory to be there.
        let _ = root.make_dir(&job.process.cwd);
    }
    if spec.root.as_ref().is_some_and(|r| r.readonly) {
        mask::make_root_readonly(root)?;
    }
    let how = if job.no_pivot { ChangeRoot::Move } else { ChangeRoot::Pivot };
    rootfs::change_root(root, spec, how)?;
    match terminal {
        Some(terminal) => hand_out(terminal, &job.console, runtime, job.process.user.uid),
        None => {
            own_standard_streams(job.process.user.uid);
            Ok(())
        }
    }
}

/// Sends the terminal's master where it belongs and keeps the other end.
pub fn hand_out(
    terminal: Terminal,
    console: &Console,
    runtime: &Runtime<'_>,
    uid: u32,
) -> Result<()> {
    match console {
        Console::None => {}
        Console::Socket(socket) => {
            send_fd(socket.as_fd(), terminal.name().as_bytes(), Some(terminal.master.as_fd()))
                .during(|| "send the terminal to the console socket")?;
        }
        Console::Runtime => {
            runtime
                .channel
                .send(&[message::TERMINAL], Some(terminal.master.as_fd()))
                .during(|| "send the terminal to the runtime")?;
            runtime.wait()?;
        }
    }
    terminal.take(uid)
}

/// The state with the id this process has outside, which hooks are told: the
/// host's procfs, still there, knows it.
fn with_own_pid(state: &State) -> State {
    let pid = std::fs::read_link("/proc/self")
        .ok()
        .and_then(|link| link.to_str()?.parse().ok())
        .unwrap_or(0);
    State { pid, ..state.clone() }
}

impl Ready<'_> {
    /// Waits for the start and becomes the program.
    fn start(mut self, runtime: &Runtime<'_>) -> Error {
        let fail = |channel: &Channel, error: Error| {
            let _ = channel.send(&encode_error(&error), None);
            error
        };
        let start = match std::mem::replace(&mut self.job.start, Start::Channel) {
            Start::AtOnce(state) => match state.hold() {
                Ok(()) => None,
                Err(e) => return fail(runtime.channel, e),
            },
            other => Some(other),
        };
        if let Err(e) = runtime.channel.send(&[message::READY], None) {
            return Error::System { what: "talk to the runtime".into(), source: e };
        }
        let connection = match start {
            None | Some(Start::AtOnce(_)) => None,
            Some(Start::Channel) => match runtime.wait() {
                Ok(()) => None,
                Err(e) => return fail(runtime.channel, e),
            },
            Some(Start::Socket(listener)) => match accept_with(listener, SocketFlags::CLOEXEC) {
                Ok(fd) => Some(Channel::from_fd(fd)),
                Err(e) => {
                    return Error::System { what: "wait for the start".into(), source: e.into() };
                }
            },
        };
        let channel = connection.as_ref().unwrap_or(runtime.channel);
        let starter = Runtime::new(channel);
        if let Err(e) = self.start_hooks() {
            return fail(channel, e);
        }
        let report = match channel
            .as_fd()
            .try_clone_to_owned()
            .and_then(|fd| crate::sys::files::move_above(fd, 3 + self.job.preserve_fds as i32))
        {
            Ok(report) => report,
            Err(source) => {
                let what = "keep the channel to the runtime".into();
                return fail(channel, Error::System { what, source });
            }
        };
        let entry = Entry {
            process: self.job.process,
            filter: self.job.filter,
            annotations: &self.job.spec.annotations,
            personality: self.job.spec.linux.personality.as_ref(),
            proc: &self.proc,
            listen_fds: self.job.listen_fds,
            preserve_fds: self.job.preserve_fds,
            new_keyring: self.job.keyring.as_deref(),
            may_set_groups: self.job.may_set_groups,
        };
        let error = entry.enter(&starter, report.as_fd());
        fail(channel, error)
    }

    fn start_hooks(&self) -> Result<()> {
        match &self.outside {
            None => Ok(()),
            Some(state) => {
                let hooks = &self.job.spec.hooks.start_container;
                let state = state.public(Status::Created);
                hooks::run_with("startContainer", hooks, &state, &self.job.process.env)
            }
        }
    }
}
