//! `create` and `run`: from a bundle to a container.

use std::cell::Cell;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

use super::conversation::{Conversation, End};
use super::launch::{Launched, launch};
use super::{delete, relay};
use crate::cgroup::{Cgroup, Entrances};
use crate::error::{Context, Error, Result};
use crate::hooks;
use crate::init::{Console, Job, Start};
use crate::namespaces::{self, Plan, check_sysctls};
use crate::process::{self, labels, memory_policy};
use crate::rootfs::mounts::open_sources;
use crate::seccomp::Filter;
use crate::spec::{NamespaceKind, Process, Spec, load_spec};
use crate::state::{Entry, State, Status, Store, process_start_time, timestamp};

/// How a container is to be made.
#[derive(Debug, Default, Clone)]
pub struct CreateOptions {
    pub id: String,
    pub bundle: PathBuf,
    /// A configuration other than the bundle's `config.json`.
    pub config: Option<PathBuf>,
    /// A unix socket that takes the terminal's master.
    pub console_socket: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    /// Descriptors from 3 on that the program keeps.
    pub preserve_fds: u32,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
}

/// A container whose first process waits, or goes on.
struct Made {
    entry: Entry,
    state: State,
    spec: Spec,
    process: Process,
    filter: Option<Filter>,
    launched: Launched,
    /// It does not wait to be started.
    goes_on: bool,
    master: Option<OwnedFd>,
}

/// Makes a container that waits to be started.
pub fn create(store: &Store, options: &CreateOptions) -> Result<()> {
    make(store, options, false, false).map(drop)
}

/// Makes and starts a container; returns its exit status, or 0 at once when
/// detached. A foreground container is deleted at its end.
pub fn run(store: &Store, options: &CreateOptions, detach: bool, keep: bool) -> Result<i32> {
    let made = make(store, options, true, !detach)?;
    let started = begin(&made);
    if let Err(e) = started {
        made.launched.child.kill();
        undo(&made.entry, &made.state, &made.spec);
        return Err(e);
    }
    made.entry.forget_plan();
    if detach {
        return Ok(0);
    }
    let status = relay::wait(&made.launched.child, made.master.as_ref(), true)
        .during(|| "wait for the container's end");
    if !keep {
        delete::clean_up(&made.entry, &made.state, &made.spec)?;
    }
    status
}

/// Lets the program begin and waits until it has.
fn begin(made: &Made) -> Result<()> {
    let mut talk = Conversation {
        channel: &made.launched.channel,
        spec: &made.spec,
        process: &made.process,
        state: &made.state,
        listener: made.filter.as_ref().and_then(Filter::listener),
        master: None,
    };
    if !made.goes_on {
        talk.go()?;
    }
    talk.run()?;
    let public = made.state.public(Status::Running);
    hooks::run("poststart", &made.spec.hooks.poststart, &public)
}

/// Takes away what a failed creation made.
fn undo(entry: &Entry, state: &State, spec: &Spec) {
    if let Err(e) = delete::clean_up(entry, state, spec) {
        tracing::warn!("clean up after a failure: {e}");
    }
}

fn make(store: &Store, options: &CreateOptions, runs: bool, foreground: bool) -> Result<Made> {
    let bundle = fs::canonicalize(&options.bundle)
        .during(|| format!("find the bundle {}", options.bundle.display()))?;
    let config = options.config.clone().unwrap_or_else(|| bundle.join("config.json"));
    let (spec, text) = load_spec(&config)?;
    let process = spec
        .process
        .clone()
        .ok_or_else(|| Error::config("process", "is missing: name the program to run"))?;
    let rootfs = find_rootfs(&bundle, &spec)?;
    check(&spec, &process)?;
    let filter = spec.linux.seccomp.as_ref();
    let filter = filter.map(|profile| Filter::of(profile, store.root())).transpose()?;
    let plan = Plan::of(&spec)?;
    let console = open_console(&process, options, runs && foreground)?;

    let entry = store.create(&options.id)?;
    let mut state = State {
        id: options.id.clone(),
        pid: 0,
        start_time: 0,
        bundle: text_path(&bundle)?,
        rootfs,
        created: timestamp(),
        owner: rustix::process::getuid().as_raw(),
        own_pid_namespace: spec.makes(NamespaceKind::Pid),
        annotations: spec.annotations.clone(),
        cgroups: Vec::new(),
    };
    let request = Request { options, spec: &spec, process: &process, plan: &plan, runs };
    let cgroup = Cgroup::plan(spec.linux.cgroups_path.as_deref(), &state.id, &spec.linux.resources);
    let made = cgroup.and_then(|mut cgroup| {
        state.cgroups = cgroup.save();
        request.bring_up(&entry, &mut state, &text, &mut cgroup, filter.as_ref(), console)
    });
    match made {
        Ok((launched, goes_on, master)) => {
            Ok(Made { entry, state, spec, process, filter, launched, goes_on, master })
        }
        Err(e) => {
            undo(&entry, &state, &spec);
            Err(e)
        }
    }
}

/// What can be refused before anything is made.
fn check(spec: &Spec, process: &Process) -> Result<()> {
    check_sysctls(spec)?;
    process::check(process, &spec.annotations)?;
    if let Some(policy) = &spec.linux.memory_policy {
        memory_policy::check(policy)?;
    }
    if !spec.linux.net_devices.is_empty() {
        return Err(Error::unsupported(
            "linux.netDevices",
            "move the device with `ip link set DEVICE netns PID` in a createRuntime hook",
        ));
    }
    if spec.linux.mount_label.as_deref().is_some_and(|l| !l.is_empty()) && !labels::has_selinux() {
        tracing::warn!("linux.mountLabel has no effect: this kernel runs without SELinux");
    }
    if spec.linux.intel_rdt.is_some() {
        return Err(Error::unsupported("linux.intelRdt", "leave it out of the configuration"));
    }
    Ok(())
}

fn find_rootfs(bundle: &Path, spec: &Spec) -> Result<String> {
    let root = spec.root.as_ref().map(|r| r.path.as_str()).unwrap_or_default();
    let path = fs::canonicalize(bundle.join(root))
        .during(|| format!("find the root file system {root} (root.path)"))?;
    if !path.is_dir() {
        return Err(Error::config("root.path", format!("{root:?} is not a directory")));
    }
    text_path(&path)
}

fn text_path(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::config("bundle", format!("{} is not UTF-8", path.display())))
}

fn open_console(process: &Process, options: &CreateOptions, relays: bool) -> Result<Console> {
    match (&options.console_socket, process.terminal) {
        (Some(path), true) => {
            let socket = UnixStream::connect(path)
                .during(|| format!("connect to the console socket {}", path.display()))?;
            Ok(Console::Socket(socket.into()))
        }
        (Some(_), false) => Err(Error::config(
            "process.terminal",
            "is false, but a console socket was given: leave out --console-socket",
        )),
        (None, true) if relays => Ok(Console::Runtime),
        (None, true) => {
            Err(Error::config("process.terminal", "needs --console-socket to send the terminal to"))
        }
        (None, false) => Ok(Console::None),
    }
}

/// Makes the cgroups, with their limits. State and configuration are on disk before: what a
/// killed runtime leaves behind can then be found and deleted.
fn make_cgroups(
    entry: &Entry,
    cgroup: &mut Cgroup,
    state: &mut State,
    spec: &Spec,
    text: &[u8],
) -> Result<()> {
    let resources = &spec.linux.resources;
    entry.save_config(text)?;
    entry.plan(state)?;
    cgroup.create()?;
    state.cgroups = cgroup.save();
    cgroup.apply(resources)?;
    cgroup.apply_devices(resources)
}

struct Request<'a> {
    options: &'a CreateOptions,
    spec: &'a Spec,
    process: &'a Process,
    plan: &'a Plan,
    runs: bool,
}

impl Request<'_> {
    fn bring_up(
        &self,
        entry: &Entry,
        state: &mut State,
        text: &[u8],
        cgroup: &mut Cgroup,
        filter: Option<&Filter>,
        console: Console,
    ) -> Result<(Launched, bool, Option<OwnedFd>)> {
        let spec = self.spec;
        // On two processors the cgroups are made while the first process sets itself up. Until
        // it is told that they are there it has made nothing that outlives it, and it ends with
        // the runtime.
        let cgroups_later = cgroup.can_be_entered_later() && self.plan.sees_the_host();
        if !cgroups_later {
            make_cgroups(entry, cgroup, state, spec, text)?;
        }
        let needs_sources = spec.has(NamespaceKind::User)
            || spec.mounts.iter().any(|m| {
                !m.uid_mappings.is_empty()
                    || m.options.iter().any(|o| o == "idmap" || o == "ridmap")
            });
        let sources = if needs_sources && is_privileged() {
            open_sources(spec, &state.bundle)?
        } else {
            Vec::new()
        };
        let start = if self.goes_on(cgroups_later) {
            Start::AtOnce(entry.will_hold()?)
        } else if self.runs {
            Start::Channel
        } else {
            Start::Socket(listen_for_start(entry)?)
        };
        let listen_fds = inherited_sockets();
        let job = Job {
            spec,
            process: self.process,
            state,
            plan: self.plan,
            cgroup,
            entrances: Entrances::default(),
            sources,
            console,
            start,
            filter,
            preserve_fds: self.options.preserve_fds + listen_fds,
            listen_fds,
            keyring: (!self.options.no_new_keyring).then(|| format!("_ses.{}", state.id)),
            no_pivot: self.options.no_pivot,
            may_set_groups: if spec.makes(NamespaceKind::User) {
                namespaces::may_set_groups(&spec.linux.gid_mappings)
            } else {
                namespaces::may_set_groups_here()
            },
            joined: false,
            cgroups_later: Cell::new(cgroups_later),
        };
        let launched = launch(job)?;
        let made =
            if cgroups_later { make_cgroups(entry, cgroup, state, spec, text) } else { Ok(()) };
        let written = made.and_then(|()| {
            // Written while the process sets itself up, so that it need not wait for it.
            state.pid = launched.child.pid;
            state.start_time = process_start_time(state.pid).unwrap_or(0);
            entry.prepare(state)
        });
        let told = written.and_then(|()| {
            if cgroups_later { launched.tell_of_cgroups(cgroup, spec) } else { Ok(()) }
        });
        let goes_on = self.goes_on(cgroups_later);
        match told.and_then(|()| self.attend(entry, state, filter, &launched, goes_on)) {
            Ok(master) => Ok((launched, goes_on, master)),
            Err(e) => {
                launched.child.kill();
                Err(e)
            }
        }
    }

    /// Whether the process need not wait to be started: nothing has to be done before that
    /// depends on its being ready, and it can do the rest itself.
    fn goes_on(&self, cgroups_later: bool) -> bool {
        self.runs && cgroups_later && self.options.pid_file.is_none()
    }

    /// Talks with the first process until it is ready to be started.
    fn attend(
        &self,
        entry: &Entry,
        state: &State,
        filter: Option<&Filter>,
        launched: &Launched,
        goes_on: bool,
    ) -> Result<Option<OwnedFd>> {
        let mut talk = Conversation {
            channel: &launched.channel,
            spec: self.spec,
            process: self.process,
            state,
            listener: filter.and_then(Filter::listener),
            master: None,
        };
        if talk.run()? == End::Closed {
            let status = launched.child.wait().during(|| "wait for the first process")?;
            return Err(Error::Init {
                code: 1,
                text: format!("the container's first process ended early, with status {status}"),
            });
        }
        let master = talk.master.take();
        if !goes_on {
            entry.will_hold()?.hold()?;
        }
        if let Some(path) = &self.options.pid_file {
            write_pid_file(path, state.pid)?;
        }
        Ok(master)
    }
}

/// Whether this process may do to mounts what a container's own user namespace
/// may not.
fn is_privileged() -> bool {
    rustix::process::geteuid().is_root()
}

/// Descriptors that a service manager passed to this process (`LISTEN_FDS`).
fn inherited_sockets() -> u32 {
    let variable = |name| std::env::var(name).ok().and_then(|v| v.parse::<u32>().ok());
    match (variable("LISTEN_PID"), variable("LISTEN_FDS")) {
        (Some(pid), Some(count)) if pid == std::process::id() => count.min(1024),
        // conmon passes them on without knowing this process's id.
        (None, Some(count)) => count.min(1024),
        _ => 0,
    }
}

/// The socket on which the container waits; bound through a descriptor of its
/// directory, because socket addresses are short and container names long.
fn listen_for_start(entry: &Entry) -> Result<OwnedFd> {
    let what = || "make the start socket";
    let directory = fs::File::open(entry.directory()).during(what)?;
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .during(what)?;
    let address =
        SocketAddrUnix::new(super::start::socket_path(&directory, "start.sock")).during(what)?;
    bind(&socket, &address).during(what)?;
    listen(&socket, 1).during(what)?;
    Ok(socket)
}

/// Writes a process id so that a reader never sees half of it.
pub fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let fresh = path.with_file_name(name);
    fs::write(&fresh, pid.to_string())
        .and_then(|()| fs::rename(&fresh, path))
        .during(|| format!("write the pid file {}", path.display()))
}
