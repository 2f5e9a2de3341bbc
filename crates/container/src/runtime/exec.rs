//! `exec`: one more program in a running container.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::conversation::Conversation;
use super::create::write_pid_file;
use super::gate::Gate;
use super::relay;
use crate::cgroup::Entrances;
use crate::error::{Context, Error, Result};
use crate::init::{self, Console, Runtime, hand_out, message};
use crate::process::enter::Entry;
use crate::process::terminal::{Terminal, own_standard_streams};
use crate::process::{self, labels, memory_policy, schedule};
use crate::rootfs::path::{RootDir, open_host};
use crate::rootfs::proc::PrivateProc;
use crate::seccomp::Filter;
use crate::spec::{NamespaceKind, Process, Spec};
use crate::state::{State, Status, Store};
use crate::sys::clone::{Child, Side, exit_now, fork, setns};
use crate::sys::cred;
use crate::sys::socket::Channel;

/// How the program is to be run.
#[derive(Debug, Default, Clone)]
pub struct ExecOptions {
    pub id: String,
    pub process: Process,
    pub console_socket: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub detach: bool,
    pub preserve_fds: u32,
    /// A cgroup below the container's.
    pub cgroup: Option<String>,
    /// Run in a paused container, where the program waits until it is resumed.
    pub ignore_paused: bool,
}

/// What the new process needs, prepared before it exists.
struct Job<'a> {
    options: &'a ExecOptions,
    spec: &'a Spec,
    target: OwnedFd,
    entrances: Entrances,
    namespaces: i32,
    filter: Option<&'a Filter>,
    console: Console,
    may_set_groups: bool,
}

/// Runs a program; returns its exit status, or 0 at once when detached.
pub fn exec(store: &Store, options: &ExecOptions) -> Result<i32> {
    let entry = store.find(&options.id)?;
    let state = entry.state()?;
    let status = entry.status(&state);
    let fits = matches!(status, Status::Running | Status::Created)
        || (status == Status::Paused && options.ignore_paused);
    let Some(target) = state.process().filter(|_| fits) else {
        return Err(Error::State {
            id: options.id.clone(),
            status: status.name(),
            wanted: "programs are run in running containers",
        });
    };
    let spec = entry.config()?;
    options.process.check()?;
    process::check(&options.process, &spec.annotations)?;
    let filter = spec.linux.seccomp.as_ref();
    let filter = filter.map(|profile| Filter::of(profile, store.root())).transpose()?;
    let console = open_console(options)?;
    let setgroups = std::fs::read_to_string(format!("/proc/{}/setgroups", state.pid));
    let job = Job {
        options,
        spec: &spec,
        target,
        entrances: state
            .cgroup()
            .entrances(false, options.cgroup.as_deref().unwrap_or_default())?,
        namespaces: namespaces_of(&spec, &state),
        filter: filter.as_ref(),
        console,
        may_set_groups: setgroups.map_or(true, |t| t.trim() != "deny"),
    };
    let (child, channel) = launch(job)?;
    let mut inside = state.clone();
    inside.pid = child.pid;
    let mut talk = Conversation {
        channel: &channel,
        spec: &spec,
        process: &options.process,
        state: &inside,
        listener: filter.as_ref().and_then(Filter::listener),
        master: None,
    };
    let begun = talk.run().and_then(|_| match &options.pid_file {
        Some(path) => write_pid_file(path, child.pid),
        None => Ok(()),
    });
    if let Err(e) = begun {
        child.kill();
        return Err(e);
    }
    if options.detach {
        return Ok(0);
    }
    relay::wait(&child, talk.master.as_ref(), true).during(|| "wait for the program's end")
}

fn open_console(options: &ExecOptions) -> Result<Console> {
    match (&options.console_socket, options.process.terminal) {
        (_, false) => Ok(Console::None),
        (Some(path), true) => {
            let socket = UnixStream::connect(path)
                .during(|| format!("connect to the console socket {}", path.display()))?;
            Ok(Console::Socket(socket.into()))
        }
        (None, true) if options.detach => Err(Error::config(
            "process.terminal",
            "a detached program needs --console-socket to send its terminal to",
        )),
        (None, true) => Ok(Console::Runtime),
    }
}

/// The kinds of namespace in which the container differs from this process.
fn namespaces_of(spec: &Spec, state: &State) -> i32 {
    let same = |name: &str| {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).ok();
        let theirs = of(&state.pid.to_string());
        theirs.is_some() && theirs == of("self")
    };
    let files = [
        (NamespaceKind::User, "user"),
        (NamespaceKind::Pid, "pid"),
        (NamespaceKind::Network, "net"),
        (NamespaceKind::Mount, "mnt"),
        (NamespaceKind::Ipc, "ipc"),
        (NamespaceKind::Uts, "uts"),
        (NamespaceKind::Cgroup, "cgroup"),
        (NamespaceKind::Time, "time"),
    ];
    files
        .into_iter()
        .filter(|(kind, name)| spec.has(*kind) && !same(name))
        .fold(0, |flags, (kind, _)| flags | kind.flag())
}

/// Makes the process: an intermediate one enters cgroups and namespaces, which
/// hold for its children, and makes the real one as its sibling.
fn launch(job: Job<'_>) -> Result<(Child, Channel)> {
    let (ours, theirs) = Channel::pair().during(|| "make a socket pair")?;
    let options = job.options;
    // SAFETY: the runtime has one thread.
    match unsafe { fork(0, None) }.during(|| "clone3 an intermediate process")? {
        Side::Child => {
            drop(ours);
            intermediate(job, theirs)
        }
        Side::Parent(stage) => {
            drop(theirs);
            match receive_pid(&ours) {
                Ok(pid) => {
                    let _ = stage.wait();
                    let child = Child::adopt(pid).during(|| "hold the new process")?;
                    if let Some(adjust) = options.process.oom_score_adj {
                        let _ = std::fs::write(
                            format!("/proc/{pid}/oom_score_adj"),
                            adjust.to_string(),
                        );
                    }
                    Ok((child, ours))
                }
                Err(e) => {
                    stage.kill();
                    Err(e)
                }
            }
        }
    }
}

fn receive_pid(channel: &Channel) -> Result<i32> {
    let (text, _) = channel.receive().during(|| "listen to an intermediate process")?;
    match text.first() {
        Some(&message::PID) => {
            Ok(text.get(1..5).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes).unwrap_or(0))
        }
        Some(&message::ERROR) => {
            let (code, text) = init::decode_error(&text);
            Err(Error::Init { code, text })
        }
        _ => Err(Error::Init { code: 1, text: "an intermediate process ended early".into() }),
    }
}

fn intermediate(job: Job<'_>, channel: Channel) -> ! {
    let fail = |e: &Error| -> ! {
        let _ = channel.send(&init::encode_error(e), None);
        exit_now(1)
    };
    let runtime = Runtime::new(&channel);
    let entered = enter_cgroups(&job).and_then(|()| {
        // Before anything of this process can be seen from inside.
        cred::set_undumpable().during(|| "keep others from tracing this process")?;
        setns(job.target.as_fd(), job.namespaces).during(|| "join the container's namespaces")?;
        if job.namespaces & libc::CLONE_NEWUSER != 0 {
            init::become_root()?;
        }
        Gate::new()
    });
    let gate = match entered {
        Ok(gate) => gate,
        Err(e) => fail(&e),
    };
    // SAFETY: this copy of the runtime has one thread.
    match unsafe { fork(libc::CLONE_PARENT as u64, None) } {
        Ok(Side::Child) => {
            gate.wait();
            let error = become_program(&job, &runtime);
            let _ = channel.send(&init::encode_error(&error), None);
            exit_now(error.exit_code().into())
        }
        Ok(Side::Parent(child)) => {
            let mut text = vec![message::PID];
            text.extend_from_slice(&child.pid.to_ne_bytes());
            let sent = channel.send(&text, None).is_ok();
            exit_now(i32::from(!sent))
        }
        Err(source) => fail(&Error::System { what: "clone3 the new process".into(), source }),
    }
}

/// Binds to CPUs before and after entering the container's cgroups.
fn enter_cgroups(job: &Job<'_>) -> Result<()> {
    const THIS_PROCESS: i32 = 0;
    let affinity = job.options.process.exec_cpu_affinity.clone().unwrap_or_default();
    if let Some(cpus) = &affinity.initial {
        schedule::apply_affinity(THIS_PROCESS, cpus)?;
    }
    job.entrances.enter()?;
    match &affinity.last {
        Some(cpus) => schedule::apply_affinity(THIS_PROCESS, cpus),
        None => Ok(()),
    }
}

/// Inside the container: terminal, credentials, exec.
fn become_program(job: &Job<'_>, runtime: &Runtime<'_>) -> Error {
    let prepare = || -> Result<PrivateProc> {
        let process = &job.options.process;
        cred::new_session().during(|| "start a session")?;
        if let Some(policy) = &job.spec.linux.memory_policy {
            memory_policy::apply(policy)?;
        }
        let proc = PrivateProc::open_if(labels::wanted(process))?;
        if matches!(job.console, Console::None) {
            own_standard_streams(process.user.uid);
        } else {
            let root = RootDir::new(open_host("/").during(|| "open the container's root")?);
            let terminal = Terminal::open(&root, process.console_size)?;
            hand_out(terminal, &job.console, runtime, process.user.uid)?;
        }
        Ok(proc)
    };
    let proc = match prepare() {
        Ok(proc) => proc,
        Err(e) => return e,
    };
    let report = match runtime
        .channel
        .as_fd()
        .try_clone_to_owned()
        .and_then(|fd| crate::sys::files::move_above(fd, 3 + job.options.preserve_fds as i32))
    {
        Ok(report) => report,
        Err(source) => {
            return Error::System { what: "keep the channel to the runtime".into(), source };
        }
    };
    let entry = Entry {
        process: &job.options.process,
        filter: job.filter,
        annotations: &job.spec.annotations,
        personality: job.spec.linux.personality.as_ref(),
        proc: &proc,
        listen_fds: 0,
        preserve_fds: job.options.preserve_fds,
        new_keyring: None,
        may_set_groups: job.may_set_groups,
    };
    entry.enter(runtime, report.as_fd())
}
