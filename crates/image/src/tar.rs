//! Tar archives as image layers use them: ustar with PAX and GNU extensions.
//!
//! Our own reader rather than a crate's, because layers are hostile input and
//! every length in them needs a bound that a caller can name in an error; and
//! because the data of one entry must stream on, to disk or into a file
//! system image, without a seekable source.

mod header;
mod pax;
mod reader;
mod writer;

pub use reader::Reader;
pub use writer::Writer;

use std::io;

/// One file, directory or link of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The path as the archive has it: not checked, not normalised.
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Permission bits, with set-user-id, set-group-id and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    /// Bytes of data that follow: zero for all but regular files.
    pub size: u64,
    /// Extended attributes in the order of the archive.
    pub xattrs: Vec<Xattr>,
}

/// Name and value of an extended attribute.
pub type Xattr = (Vec<u8>, Vec<u8>);

impl Entry {
    /// An entry owned by root, made at the epoch.
    #[must_use]
    pub fn new(path: impl Into<Vec<u8>>, kind: Kind, mode: u32) -> Self {
        Self {
            path: path.into(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            size: 0,
            xattrs: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink(Vec<u8>),
    /// Another name of an earlier file.
    Hardlink(Vec<u8>),
    Character(Device),
    Block(Device),
    Fifo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Device {
    pub major: u32,
    pub minor: u32,
}

/// Seconds and nanoseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("it is no tar archive, or damaged: {0}")]
    Damaged(&'static str),
    #[error("it ends in the middle of an entry")]
    Cut,
    #[error("{0} in its headers is larger than the limit of {1} bytes")]
    TooLong(&'static str, u64),
    #[error("{path:?} is of type {kind:?}, which image layers do not have")]
    UnknownType { path: String, kind: char },
}

#[cfg(test)]
mod tests;
