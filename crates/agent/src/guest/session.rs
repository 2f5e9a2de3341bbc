//! A process that the host has started, and its standard streams.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use guise_agent::protocol::{
    Exit, Kind, NotStarted, Open, PIECE, Resize, Stream, Task, ToGuest, ToHost, WINDOW,
};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitStatus};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::cgroup::Cgroup;
use super::channel::Channel;
use super::statistics::memory_kills;
use super::sys;
use super::user::User;

pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Room for input is granted anew when so much has been taken.
const GRANT: u32 = WINDOW / 4;

/// One of a session's descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    Input,
    Output,
    Errors,
}

pub struct Session {
    pid: u32,
    /// Where the process's input is written; the terminal where it has one.
    input: Option<OwnedFd>,
    waiting: VecDeque<u8>,
    /// The host has no more input.
    input_ended: bool,
    taken: u32,
    output: Output,
    errors: Output,
    is_terminal: bool,
    /// How many the kernel had ended for lack of memory when this one began.
    memory_kills: u64,
    exit: Option<Exit>,
}

/// An output stream, with how much of it the host takes.
#[derive(Default)]
struct Output {
    fd: Option<OwnedFd>,
    credit: u32,
}

impl Output {
    fn new(fd: Option<OwnedFd>) -> Self {
        Output { fd, credit: WINDOW }
    }
}

/// The ends of a process's streams that stay here.
struct Streams {
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    errors: Option<OwnedFd>,
}

impl Session {
    /// Starts it, under the limits of `cgroup` where there are some.
    pub fn start(open: &Open, cgroup: Option<&Cgroup>) -> Result<Self, Exit> {
        let memory_kills = memory_kills();
        let mut command = command(open, cgroup)?;
        let (child, streams) = match open.terminal {
            Some(size) => start_on_terminal(&mut command, size),
            None => start_on_pipes(&mut command, open.input),
        }
        .map_err(|error| not_started(&command, &error))?;
        // A process whose user has closed its input is not an error of ours; nor are its
        // streams to hold up everybody else.
        for fd in [&streams.input, &streams.output, &streams.errors].into_iter().flatten() {
            rustix::io::ioctl_fionbio(fd, true)
                .map_err(|error| Self::failed(&error.to_string()))?;
        }
        Ok(Session {
            pid: child,
            input: streams.input,
            waiting: VecDeque::new(),
            input_ended: false,
            taken: 0,
            output: Output::new(streams.output),
            errors: Output::new(streams.errors),
            is_terminal: open.terminal.is_some(),
            memory_kills,
            exit: None,
        })
    }

    pub fn failed(message: &str) -> Exit {
        Exit::NotStarted { why: NotStarted::Failed, message: message.to_owned() }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Which descriptors are worth waiting for. With a busy channel nothing is read.
    pub fn interests(&self, busy: bool) -> impl Iterator<Item = (Port, BorrowedFd<'_>, PollFlags)> {
        let input = self.input.as_ref().filter(|_| !self.waiting.is_empty());
        let readable = move |output: &'_ Output| !busy && output.credit > 0;
        let output = self.output.fd.as_ref().filter(|_| readable(&self.output));
        let errors = self.errors.fd.as_ref().filter(|_| readable(&self.errors));
        let input = input.map(|fd| (Port::Input, fd.as_fd(), PollFlags::OUT));
        let output = output.map(|fd| (Port::Output, fd.as_fd(), PollFlags::IN));
        let errors = errors.map(|fd| (Port::Errors, fd.as_fd(), PollFlags::IN));
        input.into_iter().chain(output).chain(errors)
    }

    /// Takes input from the host; nothing is its end.
    pub fn input(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            self.input_ended = true;
        } else if self.input_ended || self.waiting.len() + bytes.len() > WINDOW as usize {
            return Err(io::Error::other("the host sent more input than it was allowed to"));
        } else {
            self.waiting.extend(bytes);
        }
        Ok(())
    }

    pub fn control(&mut self, message: &ToGuest) {
        match message {
            ToGuest::Window { stream: Stream::Output, bytes } => {
                self.output.credit = self.output.credit.saturating_add(*bytes);
            }
            ToGuest::Window { stream: Stream::Errors, bytes } => {
                self.errors.credit = self.errors.credit.saturating_add(*bytes);
            }
            ToGuest::Resize(size) => {
                if let (true, Some(terminal)) = (self.is_terminal, &self.output.fd) {
                    // A terminal that hangs up while its size changes has no size.
                    let _ = rustix::termios::tcsetwinsize(terminal, window(*size));
                }
            }
            ToGuest::Signal(number) if self.exit.is_none() => {
                let signal = Signal::from_named_raw(*number);
                let pid = Pid::from_raw(self.pid as i32);
                if let (Some(signal), Some(pid)) = (signal, pid) {
                    // It may just have ended.
                    let _ = rustix::process::kill_process(pid, signal);
                }
            }
            _ => {}
        }
    }

    /// Moves what can be moved through one of the descriptors.
    pub fn move_data(&mut self, port: Port, number: u32, channel: &mut Channel) {
        match port {
            Port::Input => self.write_input(number, channel),
            Port::Output => {
                self.output.read(Kind::Output, number, channel);
            }
            Port::Errors => {
                self.errors.read(Kind::Errors, number, channel);
            }
        }
    }

    fn write_input(&mut self, number: u32, channel: &mut Channel) {
        while !self.waiting.is_empty() {
            let (first, _) = self.waiting.as_slices();
            let length = match &self.input {
                None => self.waiting.len(),
                Some(fd) => match rustix::io::write(fd, first) {
                    Ok(length) => length,
                    Err(Errno::INTR) => continue,
                    Err(Errno::AGAIN) => return,
                    Err(_) => {
                        // It reads no more; what the host sends from now on goes nowhere.
                        self.input = None;
                        continue;
                    }
                },
            };
            self.waiting.drain(..length);
            self.taken += length as u32;
            if self.taken >= GRANT {
                channel.send(number, &ToHost::Window { bytes: std::mem::take(&mut self.taken) });
            }
        }
        if self.input_ended
            && let Some(input) = self.input.take()
            && self.is_terminal
        {
            // A terminal is not closed; end-of-file is something that is typed.
            const END_OF_FILE: u8 = 4;
            let _ = rustix::io::write(&input, &[END_OF_FILE]);
        }
    }

    pub fn set_status(&mut self, status: WaitStatus) {
        self.exit = Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(libc::SIGKILL)) if memory_kills() > self.memory_kills => Exit::OutOfMemory,
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => return,
        });
    }

    /// How it ended, once all that it wrote has gone to the channel. What processes that
    /// it left behind write afterwards is nobody's.
    pub fn finish(&mut self, number: u32, channel: &mut Channel) -> Option<Exit> {
        self.exit.as_ref()?;
        for (kind, output) in [(Kind::Output, &mut self.output), (Kind::Errors, &mut self.errors)] {
            while output.fd.is_some() {
                if output.credit == 0 || channel.is_busy() {
                    return None;
                }
                if !output.read(kind, number, channel) {
                    break;
                }
            }
        }
        self.exit.take()
    }
}

impl Output {
    /// Passes on what is there. Says whether there was something.
    fn read(&mut self, kind: Kind, number: u32, channel: &mut Channel) -> bool {
        let Some(fd) = &self.fd else { return false };
        let mut buffer = [0; PIECE];
        let room = PIECE.min(self.credit as usize);
        match rustix::io::read(fd, &mut buffer[..room]) {
            Ok(length) if length > 0 => {
                self.credit -= length as u32;
                channel.send_data(kind, number, &buffer[..length]);
                true
            }
            Err(Errno::INTR | Errno::AGAIN) => false,
            // The end; a terminal says it with an error.
            Ok(_) | Err(_) => {
                self.fd = None;
                false
            }
        }
    }
}

/// The command of a session, with nothing connected to it yet.
fn command(open: &Open, cgroup: Option<&Cgroup>) -> Result<Command, Exit> {
    let user = User::find(&open.user, &open.groups).map_err(|message| Session::failed(&message))?;
    let program = std::path::Path::new("/proc/self/exe");
    let mut command = match &open.task {
        Task::Run => {
            let (name, arguments) = open
                .arguments
                .split_first()
                .ok_or_else(|| Session::failed("no command was given"))?;
            let mut command = Command::new(name);
            command.args(arguments);
            command
        }
        Task::Export { path } => {
            let mut command = Command::new(program);
            command.args(["export", path]);
            command
        }
        Task::Import { path } => {
            let mut command = Command::new(program);
            command.args(["import", path]);
            command
        }
        Task::AwaitSystem => {
            let mut command = Command::new(program);
            command.arg("await-system");
            command
        }
    };
    command.env_clear();
    set_environment(&mut command, open, &user);
    let directory = if open.directory.is_empty() { "/" } else { &open.directory };
    if open.task == Task::Run {
        // If it cannot be made, starting the command tells why.
        let _ = std::fs::create_dir_all(directory);
    }
    command.current_dir(directory);
    let cgroup = cgroup.map(Cgroup::processes);
    sys::prepare(&mut command, &user, open.terminal.is_some(), cgroup);
    Ok(command)
}

fn set_environment(command: &mut Command, open: &Open, user: &User) {
    let given = |name: &str| {
        open.environment.iter().any(|line| line.split_once('=').is_some_and(|(key, _)| key == name))
    };
    let mut set = |line: &str| {
        if let Some((key, value)) = line.split_once('=')
            && !key.is_empty()
        {
            command.env(key, value);
        }
    };
    if !given("PATH") {
        set(DEFAULT_PATH);
    }
    if !given("HOME") {
        set(&format!("HOME={}", user.home));
    }
    if !given("TERM") && open.terminal.is_some() {
        set("TERM=xterm");
    }
    open.environment.iter().for_each(|line| set(line));
}

fn start_on_pipes(command: &mut Command, input: bool) -> io::Result<(u32, Streams)> {
    command.stdin(if input { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn()?;
    let pid = child.id();
    Ok((
        pid,
        Streams {
            input: child.stdin.map(OwnedFd::from),
            output: child.stdout.map(OwnedFd::from),
            errors: child.stderr.map(OwnedFd::from),
        },
    ))
}

fn start_on_terminal(command: &mut Command, size: Resize) -> io::Result<(u32, Streams)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::unlockpt(&master)?;
    rustix::termios::tcsetwinsize(&master, window(size))?;
    let terminal = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
    let child = command.spawn()?;
    // The command holds the terminal; it must close for its end to be seen.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let input = Some(master.try_clone()?);
    Ok((child.id(), Streams { input, output: Some(master), errors: None }))
}

fn window(size: Resize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn not_started(command: &Command, error: &io::Error) -> Exit {
    let why = match error.kind() {
        io::ErrorKind::NotFound => NotStarted::NotFound,
        io::ErrorKind::PermissionDenied | io::ErrorKind::IsADirectory => NotStarted::NotExecutable,
        _ if error.raw_os_error() == Some(libc::ENOEXEC) => NotStarted::NotExecutable,
        _ => NotStarted::Failed,
    };
    let program = command.get_program().to_string_lossy();
    Exit::NotStarted { why, message: format!("{program}: {error}") }
}
