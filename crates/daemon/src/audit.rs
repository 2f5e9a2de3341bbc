//! The audit trail: who asked for what, and how it went.
//!
//! A line of JSON for each request that changes something, that is inside of an instance, or
//! that was refused for want of rights. The file is only ever appended to; when it is large it
//! gets a number, and the oldest goes. So that nobody without a token can push out what is
//! worth knowing, only so many of their attempts a minute are written, and the rest counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use guise_api::AuditRecord;

/// How large a file grows, and how many there are.
const LARGEST: u64 = 8 << 20;
const FILES: usize = 8;
/// How many strangers' attempts are written in a minute.
const STRANGERS: u64 = 60;
const MINUTE: Duration = Duration::from_secs(60);
/// No record is longer.
const LONGEST_FIELD: usize = 256;

pub struct Audit {
    path: PathBuf,
    largest: u64,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    file: Option<File>,
    /// When this minute began, and the strangers in it.
    minute: Option<Instant>,
    strangers: u64,
    unwritten: u64,
}

fn shortened(text: &mut String) {
    if text.len() > LONGEST_FIELD {
        let end = (0..=LONGEST_FIELD).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
}

impl Audit {
    pub fn new(path: PathBuf) -> Audit {
        Audit { path, largest: LARGEST, open: Mutex::default() }
    }

    fn numbered(&self, number: usize) -> PathBuf {
        match number {
            0 => self.path.clone(),
            _ => self.path.with_extension(format!("log.{number}")),
        }
    }

    /// Writes a record. What cannot be written is told in the daemon's log: a full disk must
    /// not keep anybody from removing something.
    pub fn write(&self, mut record: AuditRecord) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if record.who.is_empty() {
            if open.minute.is_none_or(|begun| begun.elapsed() >= MINUTE) {
                open.minute = Some(Instant::now());
                open.strangers = 0;
            }
            open.strangers += 1;
            if open.strangers > STRANGERS {
                open.unwritten += 1;
                return;
            }
            record.unwritten = std::mem::take(&mut open.unwritten);
        }
        shortened(&mut record.what);
        shortened(&mut record.object);
        shortened(&mut record.project);
        if let Err(error) = self.append(&mut open, &record) {
            open.file = None;
            tracing::warn!("audit trail {}: {error}: {record:?}", self.path.display());
        }
    }

    fn append(&self, open: &mut Open, record: &AuditRecord) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        if let Some(file) = &open.file
            && file.metadata()?.len() >= self.largest
        {
            open.file = None;
            for number in (0..FILES - 1).rev() {
                match std::fs::rename(self.numbered(number), self.numbered(number + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        let file = match &mut open.file {
            Some(file) => file,
            none => {
                let mut options = OpenOptions::new();
                options.create(true).append(true).mode(0o600);
                none.insert(options.open(&self.path)?)
            }
        };
        // In one piece, so that a daemon that is killed leaves whole lines.
        file.write_all(&line)
    }

    /// The last records, the oldest of them first.
    pub fn last(&self, count: usize) -> io::Result<Vec<AuditRecord>> {
        let mut found = Vec::new();
        for number in 0..FILES {
            let text = match tail(&self.numbered(number), self.largest + (1 << 20)) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            };
            // A line that a full disk cut off is none.
            let records = text.split(|byte| *byte == b'\n').rev();
            found.extend(records.filter_map(|line| serde_json::from_slice(line).ok()));
            if found.len() >= count {
                break;
            }
        }
        found.truncate(count);
        found.reverse();
        Ok(found)
    }
}

/// The end of a file, up to so much of it.
fn tail(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut text = Vec::new();
    file.take(most).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests;
