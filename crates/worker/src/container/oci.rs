//! Programs in the container, started by the OCI runtime as a process of its own.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

use super::system;
use crate::body::{BodyError, Exit, Process, Program, Session, Size};
use crate::terminal;

const SIGKILL: i32 = 9;

/// Tells whether memory ran out in the container.
pub type MemoryKilled = Box<dyn Fn() -> bool + Send>;

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
    pub fn start(
        mut self,
        id: &str,
        program: &Program,
        killed: Option<MemoryKilled>,
    ) -> Result<(Session, Arc<Running>), BodyError> {
        let started = self.launch(id, program, killed);
        for extension in ["log", "pid", "sock"] {
            let _ = std::fs::remove_file(self.file(extension));
        }
        started
    }

    fn launch(
        &mut self,
        id: &str,
        program: &Program,
        killed: Option<MemoryKilled>,
    ) -> Result<(Session, Arc<Running>), BodyError> {
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
        let mut ends = Ends::default();
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
        let terminal = match console {
            Some(listener) => Some(receive_terminal(&listener).map_err(system("take a terminal"))?),
            None => None,
        };
        let running = Running::adopt(pid, terminal, killed).map_err(system("hold the program"))?;
        let session = running.session(ends, program.stdin).map_err(system("share a terminal"))?;
        Ok((session, running))
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

/// Our ends of a program's pipes.
#[derive(Default)]
struct Ends {
    stdin: Option<File>,
    stdout: Option<File>,
    stderr: Option<File>,
}

impl Ends {
    fn make(stdin: bool, command: &mut Command) -> io::Result<Ends> {
        let pipe = || -> io::Result<(OwnedFd, OwnedFd)> {
            Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
        };
        let mut ends = Ends::default();
        if stdin {
            let (read, write) = pipe()?;
            command.stdin(read);
            ends.stdin = Some(write.into());
        } else {
            command.stdin(Stdio::null());
        }
        let (read, write) = pipe()?;
        command.stdout(write);
        ends.stdout = Some(read.into());
        let (read, write) = pipe()?;
        command.stderr(write);
        ends.stderr = Some(read.into());
        Ok(ends)
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
    terminal: Option<OwnedFd>,
    ended: Mutex<Option<Exit>>,
    changed: Condvar,
}

impl Running {
    fn adopt(
        pid: i32,
        terminal: Option<OwnedFd>,
        killed: Option<MemoryKilled>,
    ) -> io::Result<Arc<Running>> {
        let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("there is no process 0"))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let (ended, changed) = (Mutex::new(None), Condvar::new());
        let running = Arc::new(Running { pid, pidfd, terminal, ended, changed });
        let waiting = running.clone();
        std::thread::spawn(move || {
            let exit = waiting.reap(killed.as_ref());
            *waiting.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(exit);
            waiting.changed.notify_all();
        });
        Ok(running)
    }

    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    fn reap(&self, killed: Option<&MemoryKilled>) -> Exit {
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
            (None, Some(SIGKILL)) if killed.is_some_and(|killed| killed()) => Exit::OutOfMemory,
            (None, signal) => Exit::Signal(signal.unwrap_or(SIGKILL) as u8),
        }
    }

    fn session(self: &Arc<Running>, ends: Ends, stdin: bool) -> io::Result<Session> {
        let process: Arc<dyn Process> = self.clone();
        let Some(terminal) = &self.terminal else {
            return Ok(Session {
                stdin: ends.stdin.map(|file| Box::new(file) as Box<dyn Write + Send>),
                stdout: ends.stdout.map(|file| Box::new(file) as Box<dyn Read + Send>),
                stderr: ends.stderr.map(|file| Box::new(file) as Box<dyn Read + Send>),
                process,
            });
        };
        let input = match stdin {
            true => Some(Box::new(terminal::Input(File::from(terminal.try_clone()?))) as _),
            false => None,
        };
        let output = File::from(terminal.try_clone()?);
        Ok(Session { stdin: input, stdout: Some(Box::new(output)), stderr: None, process })
    }

    /// Waits for the end, but not longer than this.
    pub fn wait_for(&self, patience: Duration) -> Option<Exit> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let (ended, _) = self
            .changed
            .wait_timeout_while(ended, patience, |ended| ended.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        *ended
    }
}

impl Process for Running {
    fn signal(&self, signal: i32) -> Result<(), BodyError> {
        let known = Signal::from_named_raw(signal)
            .ok_or_else(|| BodyError::Failed(format!("{signal} is no signal")))?;
        match pidfd_send_signal(&self.pidfd, known) {
            Err(rustix::io::Errno::SRCH) => Err(BodyError::NotRunning),
            other => other.map_err(|e| system(format!("send signal {signal}"))(e.into())),
        }
    }

    fn resize(&self, size: Size) -> Result<(), BodyError> {
        let Some(terminal) = &self.terminal else { return Ok(()) };
        terminal::set_size(terminal, size)
    }

    fn wait(&self) -> Result<Exit, BodyError> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = self
            .changed
            .wait_while(ended, |ended| ended.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        ended.ok_or(BodyError::NotRunning)
    }
}
