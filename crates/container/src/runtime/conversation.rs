//! The runtime's side of the talk with a container's first process: it does
//! what can only be done from outside.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use serde_json::json;

use crate::error::{Context, Error, Result};
use crate::hooks;
use crate::init::{decode_error, message};
use crate::namespaces;
use crate::process::limits;
use crate::seccomp::Listener;
use crate::spec::{Process, Spec};
use crate::state::{State, Status};
use crate::sys::exec::decode_report;
use crate::sys::socket::{Channel, send_fd};

/// What the runtime knows while it talks.
pub struct Conversation<'a> {
    pub channel: &'a Channel,
    pub spec: &'a Spec,
    pub process: &'a Process,
    pub state: &'a State,
    pub listener: Option<&'a Listener>,
    /// The terminal's master, if it came.
    pub master: Option<OwnedFd>,
}

/// Where a talk ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The process waits to be started.
    Ready,
    /// The channel is closed: the process has become its program, or is gone.
    Closed,
}

impl Conversation<'_> {
    /// Lets the process go on.
    pub fn go(&self) -> Result<()> {
        self.channel.send(&[message::GO], None).during(|| "talk to the container's first process")
    }

    /// Answers until there is nothing more to be answered.
    pub fn run(&mut self) -> Result<End> {
        loop {
            let (text, fd) = match self.channel.receive() {
                Ok(received) => received,
                // Gone with messages unread.
                Err(e) if e.raw_os_error() == Some(libc::ECONNRESET) => return Ok(End::Closed),
                Err(e) => return Err(e).during(|| "listen to the container's first process"),
            };
            if let Some(source) = decode_report(&text) {
                return Err(self.not_executable(source));
            }
            match text.first() {
                None => return Ok(End::Closed),
                Some(&message::READY) => return Ok(End::Ready),
                Some(&message::ERROR) => {
                    let (code, text) = decode_error(&text);
                    return Err(Error::Init { code, text });
                }
                Some(&message::MOUNTED) => {
                    // For a prestart hook, which is older than the difference, the
                    // container exists already.
                    let state = self.state.public(Status::Created);
                    hooks::run("prestart", &self.spec.hooks.prestart, &state)?;
                    let state = self.state.public(Status::Creating);
                    hooks::run("createRuntime", &self.spec.hooks.create_runtime, &state)?;
                    self.go()?;
                }
                Some(&message::TERMINAL) => {
                    self.master = fd;
                    self.go()?;
                }
                Some(&message::LIMITS) => {
                    limits::apply(self.state.pid, &self.process.rlimits)?;
                    self.go()?;
                }
                Some(&message::CLOCKS) => {
                    let pid = self.state.pid.to_string();
                    namespaces::set_clocks(&pid, &self.spec.linux.time_offsets)?;
                    self.go()?;
                }
                Some(&message::SECCOMP) => {
                    self.pass_listener(fd)?;
                    self.go()?;
                }
                Some(other) => {
                    return Err(Error::Init {
                        code: 1,
                        text: format!("the container's first process sent {other:#x}"),
                    });
                }
            }
        }
    }

    fn not_executable(&self, source: std::io::Error) -> Error {
        let program = self.process.args.first().cloned().unwrap_or_default();
        match source.kind() {
            // The file is there, so it is its interpreter that is missing.
            std::io::ErrorKind::NotFound => {
                Error::ProgramNotFound(format!("{program} (or the interpreter that it names)"))
            }
            _ => Error::ProgramNotExecutable { program, source },
        }
    }

    /// Connects to the agent of the profile and gives it the listener.
    fn pass_listener(&self, fd: Option<OwnedFd>) -> Result<()> {
        let (Some(fd), Some(listener)) = (fd, self.listener) else {
            return Err(Error::Init {
                code: 1,
                text: "a seccomp listener came that nobody asked for".into(),
            });
        };
        let what = || format!("hand the seccomp listener to {}", listener.path);
        let mut socket = UnixStream::connect(&listener.path).during(what)?;
        let text = json!({
            "ociVersion": crate::spec::OCI_VERSION,
            "fds": ["seccompFd"],
            "pid": self.state.pid,
            "metadata": listener.metadata.as_deref().unwrap_or_default(),
            "state": self.state.public(Status::Creating),
        })
        .to_string();
        let (first, rest) = text.as_bytes().split_at(1);
        send_fd(socket.as_fd(), first, Some(fd.as_fd())).during(what)?;
        socket.write_all(rest).during(what)
    }
}
