//! Files by name, out of a directory or out of a tar file.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::codec::{Compression, Decoder};
use crate::error::IoContext;
use crate::store::{Session, scratch_file};
use crate::tar::{Kind, Reader};
use crate::{Error, Result};

/// How many files an archive of images may have: layers and manifests.
const MAX_FILES: usize = 100_000;

/// Where an archive's files are.
pub enum Source {
    Directory(PathBuf),
    Tar { path: PathBuf, file: Arc<File>, entries: HashMap<String, Place> },
}

/// A file's place in a tar file.
#[derive(Clone)]
pub enum Place {
    Data {
        offset: u64,
        size: u64,
    },
    /// Old archives of Docker's share layers this way.
    Link(String),
}

impl Source {
    pub fn open(session: &Session<'_>, path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let file = uncompressed(session, path)?;
        let mut entries = HashMap::new();
        let mut tar = Reader::new(BufReader::new(At { file: file.clone(), at: 0, end: u64::MAX }));
        let bad = |why: String| Error::BadArchive { path: path.to_owned(), why };
        while let Some(entry) = tar.next_entry().map_err(|e| bad(e.to_string()))? {
            let Ok(name) = String::from_utf8(entry.path) else { continue };
            let name = name.trim_start_matches("./").to_owned();
            let place = match entry.kind {
                Kind::File => Place::Data { offset: tar.data_offset(), size: entry.size },
                Kind::Symlink(target) => match beside(&name, &target) {
                    Some(target) => Place::Link(target),
                    None => continue,
                },
                _ => continue,
            };
            entries.insert(name, place);
            if entries.len() > MAX_FILES {
                break;
            }
        }
        Ok(Self::Tar { path: path.to_owned(), file, entries })
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Tar { path, .. } => path,
        }
    }

    pub fn bad(&self, why: impl Into<String>) -> Error {
        Error::BadArchive { path: self.path().to_owned(), why: why.into() }
    }

    /// Opens a file of the archive; none if it has no such file.
    pub fn file(&self, name: &str) -> Result<Option<Box<dyn Read + '_>>> {
        match self {
            Self::Directory(dir) => {
                let path = dir.join(name);
                match File::open(&path) {
                    Ok(file) => Ok(Some(Box::new(file))),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(e).at("opening", path),
                }
            }
            Self::Tar { file, entries, .. } => {
                let place = match entries.get(name) {
                    Some(Place::Link(target)) => entries.get(target),
                    other => other,
                };
                match place {
                    Some(Place::Data { offset, size }) => Ok(Some(Box::new(At {
                        file: file.clone(),
                        at: *offset,
                        end: offset.saturating_add(*size),
                    }))),
                    _ => Ok(None),
                }
            }
        }
    }

    /// Reads a file that must be there, and be small.
    pub fn small(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let file = self.file(name)?.ok_or_else(|| self.bad(format!("{name} is missing")))?;
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).at("reading", self.path().join(name))?;
        if bytes.len() as u64 > limit {
            return Err(self.bad(format!("{name} is larger than {limit} bytes")));
        }
        Ok(bytes)
    }
}

/// What a link in an archive names, if that is within the archive.
fn beside(name: &str, target: &[u8]) -> Option<String> {
    let target = std::str::from_utf8(target).ok()?;
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The file, decompressed into a scratch file if it must be.
fn uncompressed(session: &Session<'_>, path: &Path) -> Result<Arc<File>> {
    let mut file = File::open(path).at("opening", path)?;
    let mut start = [0; 6];
    let n = file.read(&mut start).at("reading", path)?;
    let bad = |why: String| Error::BadArchive { path: path.to_owned(), why };
    let compression = Compression::of(&start[..n])
        .map_err(|kind| bad(format!("it is compressed as {kind}, which is not supported")))?;
    if compression == Compression::None && file.metadata().is_ok_and(|m| m.is_file()) {
        return Ok(Arc::new(file));
    }
    let again = fs::File::open(path).at("opening", path)?;
    let mut decoder = Decoder::new(again).map_err(|e| bad(e.to_string()))?;
    let mut out = BufWriter::with_capacity(256 << 10, scratch_file(&session.path("tmp"))?);
    io::copy(&mut decoder, &mut out).and_then(|_| out.flush()).at("unpacking", path)?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error).at("unpacking", path)?;
    Ok(Arc::new(file))
}

/// A range of a file as a stream, with a position of its own.
struct At {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for At {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let n = buffer.len().min(left);
        let n = self.file.read_at(&mut buffer[..n], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
