//! What a container's worker and its keeper say to each other.
//!
//! The worker makes a connection for each request and hands one end of it over; the keeper
//! has a thread for each. Descriptors follow an answer, in the order in which it names them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use guise_api::session::Frame;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::user::User;
use crate::body::{BodyError, Exit, Program, Stats};

/// So many descriptors go with an answer at most.
const MOST_FDS: usize = 3;

/// What the worker asks for. It has been shut in, and may be somebody else's by then: nothing
/// of this reaches beyond the container.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// The files that say who is who inside.
    Accounts,
    /// The workload, by the job; with a network namespace, which follows, or without.
    Start {
        user: User,
        plugged: bool,
    },
    /// One more program.
    Open {
        program: Program,
        user: User,
    },
    /// To a program by its number.
    Signal {
        program: u64,
        signal: i32,
    },
    Pause,
    Resume,
    Stats,
    Stop {
        grace: Duration,
    },
    /// An archive's stream comes at once, how it went when it has ended.
    CopyOut {
        path: String,
    },
    CopyIn {
        path: String,
    },
    CleanUp,
    /// To take away the control socket's name.
    Leave,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    Done,
    /// Which of the two files are there; they follow.
    Accounts {
        users: bool,
        groups: bool,
    },
    /// It runs; its terminal follows, or its streams. Its end is told on the same connection.
    Program {
        number: u64,
        streams: Streams,
        /// What of its limits this host does not hold it to.
        remarks: Vec<String>,
    },
    Ended(Exit),
    Stats(Stats),
    /// A stream follows.
    Stream,
    Failed(Refusal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Streams {
    Terminal,
    /// Output and errors, before them perhaps input.
    Pipes {
        input: bool,
    },
}

/// An error of the seam on its way.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    NotFound(String),
    NotExecutable { program: String, why: String },
    Unsupported { what: String, instead: String },
    NotRunning,
    Failed(String),
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Refusal {
        match error {
            BodyError::ProgramNotFound(name) => Refusal::NotFound(name),
            BodyError::ProgramNotExecutable { program, why } => {
                Refusal::NotExecutable { program, why }
            }
            BodyError::Unsupported { what, instead } => Refusal::Unsupported { what, instead },
            BodyError::NotRunning => Refusal::NotRunning,
            other @ (BodyError::System { .. } | BodyError::Failed(_)) => {
                Refusal::Failed(other.to_string())
            }
        }
    }
}

impl From<Refusal> for BodyError {
    fn from(refusal: Refusal) -> BodyError {
        match refusal {
            Refusal::NotFound(name) => BodyError::ProgramNotFound(name),
            Refusal::NotExecutable { program, why } => {
                BodyError::ProgramNotExecutable { program, why }
            }
            Refusal::Unsupported { what, instead } => BodyError::Unsupported { what, instead },
            Refusal::NotRunning => BodyError::NotRunning,
            Refusal::Failed(why) => BodyError::Failed(why),
        }
    }
}

/// Says something.
pub fn say(mut to: &UnixStream, what: &impl Serialize) -> io::Result<()> {
    Frame::message(what).write(&mut to)
}

/// Hears something. The other end may be gone.
pub fn hear<T: DeserializeOwned>(mut from: &UnixStream) -> io::Result<T> {
    let frame = Frame::read(&mut from)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    frame.parse().map_err(|malformed| io::Error::new(io::ErrorKind::InvalidData, malformed))
}

/// Hands descriptors over, with a byte that carries them.
pub fn hand_over(to: &UnixStream, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors"));
    }
    loop {
        match sendmsg(to, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

/// Takes exactly so many descriptors.
pub fn take_over(from: &UnixStream, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut byte)];
        match recvmsg(from, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut taken = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            taken.extend(fds);
        }
    }
    if taken.len() != count {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "descriptors are missing"));
    }
    Ok(taken)
}

/// Hands over one end of a new connection; the other one is returned.
pub fn connect(through: &UnixStream) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    hand_over(through, &[theirs.as_fd()])?;
    Ok(ours)
}

/// The next connection; none when nobody can make one any more.
pub fn accept(through: &UnixStream) -> Option<UnixStream> {
    loop {
        match take_over(through, 1) {
            Ok(fds) => return fds.into_iter().next().map(UnixStream::from),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests;
