//! What a task printed: a file of a bounded length.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use guise_build::Sink;
use guise_image::Digest;
use guise_image::progress::{Meter, Progress};

use super::progress::Meters;

/// So much of it is kept.
const MOST: u64 = 8 << 20;
const CUT: &[u8] = b"\n(what came after this is not kept)\n";
/// So much is read at once.
const PIECE: u64 = 64 << 10;

/// A task's log that is being written.
#[derive(Debug)]
pub struct Log(Mutex<Open>);

#[derive(Debug)]
struct Open {
    file: File,
    left: u64,
    last: Option<u8>,
}

/// Where the log of a task is.
pub fn path(state: &Path, id: &str) -> PathBuf {
    state.join("tasks").join(format!("{id}.log"))
}

/// Forgets a task's log, if it had one.
pub fn forget(state: &Path, id: &str) {
    // One that stays is found by nobody, and is not large.
    let _ = fs::remove_file(path(state, id));
}

impl Log {
    /// Begins it anew: so does the work of a task.
    pub fn create(state: &Path, id: &str) -> io::Result<Log> {
        let path = path(state, id);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        Ok(Log(Mutex::new(Open { file: File::create(path)?, left: MOST, last: None })))
    }

    /// A line of its own, whatever a program has printed before.
    fn line(&self, line: &str) {
        let unfinished = {
            let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            open.last.is_some_and(|byte| byte != b'\n')
        };
        let begin = if unfinished { "\n" } else { "" };
        self.take(format!("{begin}{line}\n").as_bytes());
    }
}

impl Sink for Log {
    fn take(&self, bytes: &[u8]) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.left == 0 {
            return;
        }
        let length = usize::try_from(open.left).map_or(bytes.len(), |left| left.min(bytes.len()));
        open.left -= length as u64;
        open.last = bytes[..length].last().copied().or(open.last);
        // A full disk ends the log, and not the work.
        if open.file.write_all(&bytes[..length]).is_err() {
            open.left = 0;
        } else if open.left == 0 {
            let _ = open.file.write_all(CUT);
        }
    }
}

/// What is kept from a place on; nothing where that is all.
pub fn read(path: &Path, from: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(PIECE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Counts as the task's meters do, and writes what is told into the log too.
pub struct Told<'a> {
    pub meters: &'a Meters,
    pub log: &'a Log,
}

impl Progress for Told<'_> {
    fn start(&self, what: &'static str, digest: Digest, bytes: u64) -> Meter {
        self.log.line(&format!("{what} {} ({} KiB)", digest.short(), bytes >> 10));
        self.meters.start(what, digest, bytes)
    }

    fn cancelled(&self) -> bool {
        self.meters.cancelled()
    }

    fn note(&self, line: &str) {
        self.log.line(line);
        self.meters.note(line);
    }
}

#[cfg(test)]
mod tests;
