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
    MapMe(u32),
    /// The workload runs. What was asked for and left out.
    Ready(Vec<String>),
    /// It will not run, and everything has been taken away again.
    Failed(ApiError),
    /// Another worker holds the instance.
    Taken,
}

/// The daemon's answer to [`News::MapMe`].
pub const MAPPED: &str = "mapped\n";

/// The worker's end.
pub struct Midwife(UnixStream);

impl Midwife {
    pub fn new(stream: UnixStream) -> Midwife {
        Midwife(stream)
    }

    /// Tells the daemon, if it is still there.
    pub fn tell(&mut self, news: &News) {
        if let Ok(mut line) = serde_json::to_vec(news) {
            line.push(b'\n');
            let _ = self.0.write_all(&line);
        }
    }

    /// Has the daemon map the ids of the user namespace that this process has entered.
    pub fn have_mapped(&mut self) -> io::Result<()> {
        self.tell(&News::MapMe(std::process::id()));
        let mut line = String::new();
        BufReader::new(&self.0).read_line(&mut line)?;
        if line == MAPPED {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon went away"))
    }
}
