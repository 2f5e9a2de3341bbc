//! The daemon's channel to a worker that is being made: a socket that is the worker's
//! standard input, with a JSON value on each line.
//!
//! A worker that the daemon leaves alone here, because it was killed, goes on as far as
//! it can: the next daemon finds it.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use guise_api::ApiError;
use serde::{Deserialize, Serialize};

/// What a worker says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum News {
    /// This process, the worker's first or a child of that, is in a user namespace of its own and
    /// waits for [`MAPPED`].
    MapMe { process: u32, users: Users },
    /// The workload runs. What was asked for and left out.
    Ready(Vec<String>),
    /// It will not run, and everything has been taken away again.
    Failed(ApiError),
    /// Another worker holds the instance.
    Taken,
}

/// Who there is to be in a plain user's namespace. Root's have all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Users {
    /// The user, as root.
    Root,
    /// The user as root, and the ranges of ids that the host gives to that user, if it does.
    All,
}

/// The daemon's answer to [`News::MapMe`].
pub const MAPPED: &str = "mapped\n";

/// The worker's end.
pub struct Midwife(UnixStream);

impl Midwife {
    /// At the end that this process was given. Nobody else's: the daemon knows by its end that
    /// this process has ended.
    pub fn at_standard_input() -> io::Result<Midwife> {
        let channel = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        Ok(Midwife(UnixStream::from(channel)))
    }

    /// Tells the daemon, if it is still there.
    pub fn tell(&mut self, news: &News) {
        if let Ok(mut line) = serde_json::to_vec(news) {
            line.push(b'\n');
            let _ = self.0.write_all(&line);
        }
    }

    /// Has the daemon map the ids of the user namespace that this process has entered.
    pub fn have_mapped(&mut self, users: Users) -> io::Result<()> {
        self.tell(&News::MapMe { process: std::process::id(), users });
        let mut line = String::new();
        BufReader::new(&self.0).read_line(&mut line)?;
        if line == MAPPED {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon went away"))
    }
}
