//! What workloads print, in files: `log.N`, of which the one with the highest number is
//! being written and the oldest go.
//!
//! A file is records: when (nanoseconds since 1970, 8 bytes, little endian), which stream
//! (1 byte), how long (4 bytes), and the bytes as they came. A worker that was killed
//! leaves at most one torn record at the end, which readers take for the end.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::job;
use crate::place::open_strangers;

const HEADER: usize = 13;
/// No record is longer; what says otherwise is not a record.
const MAX_RECORD: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Nanoseconds since 1970.
    pub time: u64,
    pub stream: Stream,
    pub bytes: Vec<u8>,
}

/// A place between two records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    file: u64,
    offset: u64,
}

pub struct Writer {
    directory: PathBuf,
    limits: job::Log,
    current: File,
    at: Position,
}

fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("log.{number}"))
}

/// The numbers of the files that are there, oldest first.
fn numbers(directory: &Path) -> io::Result<Vec<u64>> {
    let mut found: Vec<u64> = match fs::read_dir(directory) {
        Ok(entries) => entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("log.")?.parse().ok())
            // There is always a next one.
            .filter(|number| *number < u64::MAX)
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    found.sort_unstable();
    Ok(found)
}

impl Writer {
    /// Goes on in a file of its own, so that no torn record gets in between.
    pub fn open(directory: &Path, limits: job::Log) -> io::Result<Writer> {
        fs::create_dir_all(directory)?;
        let number = numbers(directory)?.last().map_or(0, |last| last + 1);
        let current = create(directory, number)?;
        let at = Position { file: number, offset: 0 };
        let writer = Writer { directory: directory.to_owned(), limits, current, at };
        writer.drop_old()?;
        Ok(writer)
    }

    /// Where the next record will be.
    pub fn position(&self) -> Position {
        self.at
    }

    pub fn append(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        if self.at.offset >= self.limits.file_bytes.max(1) {
            self.at = Position { file: self.at.file + 1, offset: 0 };
            self.current = create(&self.directory, self.at.file)?;
            self.drop_old()?;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut record = Vec::with_capacity(HEADER + bytes.len());
        record.extend_from_slice(&(now.as_nanos() as u64).to_le_bytes());
        record.push(stream as u8);
        record.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        record.extend_from_slice(bytes);
        self.current.write_all(&record)?;
        self.at.offset += record.len() as u64;
        Ok(())
    }

    fn drop_old(&self) -> io::Result<()> {
        let most = self.limits.file_bytes.saturating_mul(self.limits.files.max(1).into());
        let mut bytes = 0;
        for number in numbers(&self.directory)?.into_iter().rev() {
            let file = path(&self.directory, number);
            bytes += fs::metadata(&file)?.len();
            if bytes > most && number != self.at.file {
                fs::remove_file(file)?;
            }
        }
        Ok(())
    }
}

fn create(directory: &Path, number: u64) -> io::Result<File> {
    OpenOptions::new().create_new(true).append(true).open(path(directory, number))
}

/// Reads what is there, and goes on when there is more.
pub struct Reader {
    directory: PathBuf,
    at: Position,
    current: Option<BufReader<File>>,
}

impl Reader {
    /// From a position on, or from the oldest record that is still there.
    pub fn new(directory: &Path, from: Option<Position>) -> Reader {
        let at = from.unwrap_or_default();
        Reader { directory: directory.to_owned(), at, current: None }
    }

    pub fn position(&self) -> Position {
        self.at
    }

    /// Opens the file that is read next, so that it can be read even after it has
    /// been removed to make room.
    fn open(&mut self) -> io::Result<bool> {
        if self.current.is_some() {
            return Ok(true);
        }
        let Some(number) =
            numbers(&self.directory)?.into_iter().find(|number| *number >= self.at.file)
        else {
            return Ok(false);
        };
        if number > self.at.file {
            self.at = Position { file: number, offset: 0 };
        }
        let mut file = match open_strangers(&path(&self.directory, number)) {
            Ok(file) => file,
            // Gone in between: the next one is there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.open(),
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(self.at.offset))?;
        self.current = Some(BufReader::new(file));
        Ok(true)
    }

    /// The next record; none where there are no more for now.
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        loop {
            if !self.open()? {
                return Ok(None);
            }
            let Some(file) = self.current.as_mut() else { return Ok(None) };
            if let Some((record, length)) = read_record(file)? {
                self.at.offset += length;
                return Ok(Some(record));
            }
            // The end of this file, or a record that is not whole yet: the latter is
            // read again from its beginning next time.
            let number = self.at.file;
            self.current = None;
            if !numbers(&self.directory)?.into_iter().any(|other| other > number) {
                return Ok(None);
            }
            self.at = Position { file: number + 1, offset: 0 };
        }
    }
}

fn read_record(from: &mut impl Read) -> io::Result<Option<(Record, u64)>> {
    let mut header = [0; HEADER];
    match from.read_exact(&mut header) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let time = u64::from_le_bytes(header[..8].try_into().unwrap_or_default());
    let length = u32::from_le_bytes(header[9..].try_into().unwrap_or_default()) as usize;
    let stream = match header[8] {
        0 => Stream::Stdout,
        1 => Stream::Stderr,
        _ => return Ok(None),
    };
    if length > MAX_RECORD {
        return Ok(None);
    }
    let mut bytes = vec![0; length];
    match from.read_exact(&mut bytes) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(Some((Record { time, stream, bytes }, (HEADER + length) as u64))),
    }
}

/// The last `count` lines' worth of records, as they are now, and where they end.
pub fn tail(directory: &Path, count: usize) -> io::Result<(Vec<Record>, Position)> {
    let mut reader = Reader::new(directory, None);
    let mut kept: VecDeque<(Record, usize)> = VecDeque::new();
    let mut lines = 0;
    while let Some(record) = reader.next_record()? {
        let ends = record.bytes.iter().filter(|byte| **byte == b'\n').count();
        lines += ends;
        kept.push_back((record, ends));
        while let Some((_, first)) = kept.front()
            && lines - first > count
            && kept.len() > 1
        {
            lines -= first;
            kept.pop_front();
        }
    }
    let unfinished = kept.back().is_some_and(|(record, _)| !record.bytes.ends_with(b"\n"));
    lines += usize::from(unfinished);
    let mut records: Vec<Record> = kept.into_iter().map(|(record, _)| record).collect();
    cut_front(&mut records, lines.saturating_sub(count));
    if count == 0 {
        records.clear();
    }
    Ok((records, reader.position()))
}

/// Takes so many lines off the front.
fn cut_front(records: &mut Vec<Record>, mut surplus: usize) {
    while surplus > 0 && !records.is_empty() {
        let bytes = &mut records[0].bytes;
        match bytes.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                bytes.drain(..=end);
                surplus -= 1;
                if bytes.is_empty() {
                    records.remove(0);
                }
            }
            None => drop(records.remove(0)),
        }
    }
}

#[cfg(test)]
mod tests;
