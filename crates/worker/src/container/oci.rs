//! Programs in the container, started by the OCI runtime as a process of its own.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

use super::line::Streams;
use super::system;
use crate::body::{BodyError, Exit, Program};

const SIGKILL: i32 = 9;

/// One call of the runtime.
pub struct Invocation {
    command: Command,
    /// Paths of its files, without their extensions.
    stem: PathBuf,
}

impl Invocation {
    /// `run` or `exec`; `number` is used once.
    pub fn new(scratch: &Path, command: &str, number: u64) -> Invocation {
        let stem = scratch.join(format!("program-{number}"));
        // This very binary, also when its file has been replaced.
        let mut call = Command::new("/proc/self/exe");
        call.arg("oci").arg("--root").arg(scratch.join("oci"));
        call.arg("--log").arg(stem.with_extension("log"));
        call.args([command, "--detach"]);
        call.arg("--pid-file").arg(stem.with_extension("pid"));
        Invocation { command: call, stem }
    }

    pub fn arg(&mut self, argument: impl AsRef<std::ffi::OsStr>) -> &mut Command {
        self.command.arg(argument)
    }

    pub fn file(&self, extension: &str) -> PathBuf {
        self.stem.with_extension(extension)
    }

    /// Starts the program; when this returns, it runs.
    pub fn start(mut self, id: &str, program: &Program) -> Result<(Running, Ends), BodyError> {
        let started = self.launch(id, program);
        for extension in ["log", "pid", "sock"] {
            let _ = std::fs::remove_file(self.file(extension));
        }
        started
    }

    fn launch(&mut self, id: &str, program: &Program) -> Result<(Running, Ends), BodyError> {
        let console = match program.terminal {
            Some(_) => {
                let path = self.file("sock");
                let listener = UnixListener::bind(&path).map_err(system("make a socket"))?;
                self.command.arg("--console-socket").arg(path);
                Some(listener)
            }
            None => None,
        };
        self.command.arg(id);
        let mut ends = Ends::Pipes { stdin: None, out: Vec::new() };
        if console.is_some() {
            let null = || Stdio::null();
            self.command.stdin(null()).stdout(null()).stderr(null());
        } else {
            ends = Ends::make(program.stdin, &mut self.command).map_err(system("make pipes"))?;
        }
        let status = self.command.status().map_err(system("run the container runtime"))?;
        // Our copies of the program's ends would keep its streams open.
        self.command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if !status.success() {
            return Err(self.explain(program, status.code()));
        }
        let pid = std::fs::read_to_string(self.file("pid"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or_else(|| BodyError::Failed("the runtime named no process".to_owned()))?;
        if let Some(listener) = console {
            let terminal = receive_terminal(&listener).map_err(system("take a terminal"))?;
            ends = Ends::Terminal(terminal);
        }
        let running = Running::adopt(pid).map_err(system("hold the program"))?;
        Ok((running, ends))
    }

    /// What the runtime said when it failed.
    fn explain(&self, program: &Program, code: Option<i32>) -> BodyError {
        let log = std::fs::read_to_string(self.file("log")).unwrap_or_default();
        let why =
            log.lines().rev().find_map(message).unwrap_or_else(|| {
                format!("the container runtime failed with {}", code.unwrap_or(-1))
            });
        let name = program.argv.first().cloned().unwrap_or_default();
        match code {
            Some(127) => BodyError::ProgramNotFound(name),
            Some(126) => {
                let why = why.rsplit("in the container: ").next().unwrap_or(&why).to_owned();
                BodyError::ProgramNotExecutable { program: name, why }
            }
            _ => BodyError::Failed(why),
        }
    }
}

/// The message of a line `TIME error: MESSAGE`.
fn message(line: &str) -> Option<String> {
    line.split_once(" error: ").map(|(_, text)| text.to_owned())
}

/// Our ends of a program's streams.
pub enum Ends {
    Terminal(OwnedFd),
    Pipes {
        stdin: Option<OwnedFd>,
        /// Output and errors.
        out: Vec<OwnedFd>,
    },
}

impl Ends {
    fn make(stdin: bool, command: &mut Command) -> io::Result<Ends> {
        let pipe = || -> io::Result<(OwnedFd, OwnedFd)> {
            Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
        };
        let mut input = None;
        if stdin {
            let (read, write) = pipe()?;
            command.stdin(read);
            input = Some(write);
        } else {
            command.stdin(Stdio::null());
        }
        let (output, their_output) = pipe()?;
        command.stdout(their_output);
        let (errors, their_errors) = pipe()?;
        command.stderr(their_errors);
        Ok(Ends::Pipes { stdin: input, out: vec![output, errors] })
    }

    pub fn kind(&self) -> Streams {
        match self {
            Ends::Terminal(_) => Streams::Terminal,
            Ends::Pipes { stdin, .. } => Streams::Pipes { input: stdin.is_some() },
        }
    }

    /// In the order in which they are told.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Ends::Terminal(terminal) => vec![terminal.as_fd()],
            Ends::Pipes { stdin, out } => stdin.iter().chain(out).map(AsFd::as_fd).collect(),
        }
    }
}

/// Takes the terminal's master that the runtime has sent already.
fn receive_terminal(listener: &UnixListener) -> io::Result<OwnedFd> {
    let (socket, _) = listener.accept()?;
    let mut byte = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .ok_or_else(|| io::Error::other("no terminal came"))
}

/// A program, a child of this process since the runtime has ended.
pub struct Running {
    pid: Pid,
    pidfd: OwnedFd,
    ended: Mutex<Option<Exit>>,
    changed: Condvar,
}

impl Running {
    fn adopt(pid: i32) -> io::Result<Running> {
        let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("there is no process 0"))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Running { pid, pidfd, ended: Mutex::new(None), changed: Condvar::new() })
    }

    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits for its end, which others are told then. Called once; `killed` says whether
    /// memory ran out in the container.
    pub fn reap(&self, killed: impl FnOnce() -> bool) -> Exit {
        let exit = self.await_end(killed);
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(exit);
        self.changed.notify_all();
        exit
    }

    fn await_end(&self, killed: impl FnOnce() -> bool) -> Exit {
        let status = loop {
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED) {
                Err(rustix::io::Errno::INTR) => {}
                // Somebody else has reaped it: nothing is known.
                Err(_) | Ok(None) => return Exit::Code(255),
                Ok(Some(status)) => break status,
            }
        };
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code as u8),
            (None, Some(SIGKILL)) if killed() => Exit::OutOfMemory,
            (None, signal) => Exit::Signal(signal.unwrap_or(SIGKILL) as u8),
        }
    }

    /// Waits until others are told of the end, but not longer than this; says whether they are.
    pub fn has_ended_within(&self, patience: Duration) -> bool {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let (ended, _) = self
            .changed
            .wait_timeout_while(ended, patience, |ended| ended.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        ended.is_some()
    }

    pub fn await_told_end(&self) {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(ended, |ended| ended.is_none()));
    }

    pub fn signal(&self, signal: i32) -> Result<(), BodyError> {
        let known = Signal::from_named_raw(signal)
            .ok_or_else(|| BodyError::Failed(format!("{signal} is no signal")))?;
        match pidfd_send_signal(&self.pidfd, known) {
            Err(rustix::io::Errno::SRCH) => Err(BodyError::NotRunning),
            other => other.map_err(|e| system(format!("send signal {signal}"))(e.into())),
        }
    }
}
