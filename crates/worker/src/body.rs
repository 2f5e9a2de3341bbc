//! The seam between a worker and the form in which its instance runs.
//!
//! A [`Body`] is a container or a machine that has been prepared from a
//! [`Job`](crate::job::Job). Everything here blocks, and everything may be called from
//! any thread at any time: the worker gives a thread to each stream and each wait, which
//! an instance has few of.
//!
//! A program that runs inside is a [`Session`]: the workload itself, which
//! [`Body::start`] gives, and whatever [`Body::open`] starts beside it. Dropping a
//! session's `stdin` is the end of its input. The readers end when the last writer
//! inside has closed its end, which may be after the program's own end.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::job::Mount;

/// Hears whether a body stands still for want of space.
pub type SpaceTeller = Arc<dyn Fn(bool) + Send + Sync>;

/// An instance's form.
pub trait Body: Send + Sync {
    /// Starts the workload. Called once. It returns when the program runs, or cannot.
    fn start(&self) -> Result<Session, BodyError>;

    /// What has turned out, when it has been started, not to be as it was asked for.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }

    /// Runs one more program beside the workload.
    fn open(&self, program: &Program) -> Result<Session, BodyError>;

    /// Stops everything inside where it is, and lets it go on.
    fn pause(&self) -> Result<(), BodyError>;
    fn resume(&self) -> Result<(), BodyError>;

    /// What the instance uses now.
    fn stats(&self) -> Result<Stats, BodyError>;

    /// Who is to be told that it stands still, because the host has no space for what it writes,
    /// and that it goes on. What cannot stand still gets an error when it writes.
    fn tell_of_space(&self, _: SpaceTeller) {}

    /// Asks the workload to end (its stop signal; a machine's power button) and, when
    /// `grace` is over, ends it. Returns when it has ended.
    fn stop(&self, grace: Duration) -> Result<(), BodyError>;

    /// Writes the file or folder at `path` as a tar archive, whose one top-level name
    /// is the path's last.
    fn copy_out(&self, path: &str, archive: &mut dyn Write) -> Result<(), BodyError>;

    /// Unpacks a tar archive into the folder at `path`. Nothing outside of the
    /// instance can be reached by what the archive or a link inside says.
    fn copy_in(&self, path: &str, archive: &mut dyn Read) -> Result<(), BodyError>;

    /// Takes away what the body made, when the workload has ended. What it could not
    /// remove is in the error.
    fn clean_up(&self) -> Result<(), BodyError>;

    /// Takes away the name of the control socket. Who has connected by it stays connected.
    fn leave(&self, socket: &Path) {
        // One that stays is removed by who needs the name.
        let _ = std::fs::remove_file(socket);
    }
}

/// What is to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Program {
    /// The program and its arguments. A name without a slash is looked for in the
    /// `PATH` of `env`.
    pub argv: Vec<String>,
    /// `NAME=value`, all of it: nothing is inherited.
    pub env: Vec<String>,
    /// The working directory; `/` where it is empty.
    pub cwd: String,
    /// As an image says it: `name`, `uid`, `name:group`, `uid:gid`; the root user where
    /// it is empty. Names are those of the instance's own `/etc/passwd` and `/etc/group`.
    pub user: String,
    /// A terminal instead of three streams.
    pub terminal: Option<Size>,
    /// Whether there is anything to read: else its input is at its end from the start.
    pub stdin: bool,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub rows: u16,
    pub columns: u16,
}

/// A program that runs inside.
pub struct Session {
    /// None where the program asked for no input.
    pub stdin: Option<Box<dyn Write + Send>>,
    /// What it prints; with a terminal, everything.
    pub stdout: Option<Box<dyn Read + Send>>,
    /// None with a terminal.
    pub stderr: Option<Box<dyn Read + Send>>,
    pub process: Arc<dyn Process>,
}

/// The program of a session.
pub trait Process: Send + Sync {
    fn signal(&self, signal: i32) -> Result<(), BodyError>;

    /// Changes the terminal's size. Nothing happens where there is no terminal.
    fn resize(&self, size: Size) -> Result<(), BodyError>;

    /// Waits until it has begun, where a system has to come up before.
    fn await_start(&self) {}

    /// Waits for its end; any number of callers get the same answer.
    fn wait(&self) -> Result<Exit, BodyError>;
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    Code(u8),
    Signal(u8),
    /// The kernel (the host's or the guest's) ended it for lack of memory.
    OutOfMemory,
}

impl Exit {
    /// What a shell would report.
    #[must_use]
    pub fn code(self) -> u8 {
        const SIGKILL: u8 = 9;
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + (signal & 0x7f),
            Exit::OutOfMemory => 128 + SIGKILL,
        }
    }
}

/// What an instance uses. What a body cannot tell is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Processor time since the start, on the host.
    pub cpu_nanoseconds: Option<u64>,
    /// Memory in use on the host, and the limit.
    pub memory_bytes: Option<u64>,
    pub memory_limit: Option<u64>,
    /// Processes inside.
    pub processes: Option<u64>,
    pub disk_read_bytes: Option<u64>,
    pub disk_written_bytes: Option<u64>,
    pub network_received_bytes: Option<u64>,
    pub network_sent_bytes: Option<u64>,
    /// In which at least one of its threads waited for a processor, for memory, for disks.
    pub cpu_pressure_microseconds: Option<u64>,
    pub memory_pressure_microseconds: Option<u64>,
    pub io_pressure_microseconds: Option<u64>,
}

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The program does not exist inside.
    #[error("{0}: no such program in the instance")]
    ProgramNotFound(String),
    /// It exists but cannot be executed.
    #[error("{program}: cannot be executed in the instance: {why}")]
    ProgramNotExecutable { program: String, why: String },
    /// This form, or this host, cannot do it.
    #[error("{what}: not possible here; {instead}")]
    Unsupported { what: String, instead: String },
    /// The workload has ended, or has not begun.
    #[error("the instance does not run")]
    NotRunning,
    #[error("{what}: {source}")]
    System { what: String, source: std::io::Error },
    #[error("{0}")]
    Failed(String),
}

pub(crate) fn failed(error: impl std::fmt::Display) -> BodyError {
    BodyError::Failed(error.to_string())
}

pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> BodyError {
    let what = what.into();
    move |source| BodyError::System { what, source }
}

pub(crate) fn unsupported(what: &str, instead: &str) -> BodyError {
    BodyError::Unsupported { what: what.to_owned(), instead: instead.to_owned() }
}

/// Refuses to show a single file of the host in a form that shows only folders.
pub(crate) fn folders_only(mounts: &[Mount], form: &str) -> Result<(), BodyError> {
    let Some(file) = mounts.iter().find(|mount| !mount.source.is_dir()) else { return Ok(()) };
    Err(unsupported(
        &format!("{}, a single file, in {form}", file.source.display()),
        "name the folder that it is in, or use --as container",
    ))
}

impl BodyError {
    /// What a shell would end with: 127 not found, 126 not executable, 125 otherwise.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            BodyError::ProgramNotFound(_) => 127,
            BodyError::ProgramNotExecutable { .. } => 126,
            _ => 125,
        }
    }
}
