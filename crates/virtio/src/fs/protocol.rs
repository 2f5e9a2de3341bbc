//! FUSE's requests and answers as bytes: version 7.39 of the protocol.
//!
//! Numbers are little endian, as the guest's are. A request that is shorter than it
//! should be is answered with EINVAL.

use std::ffi::CStr;

use rustix::io::Errno;

pub const MAJOR: u32 = 7;
pub const MINOR: u32 = 39;

/// Lengths of the two headers.
pub const REQUEST_HEADER: usize = 40;
pub const ANSWER_HEADER: usize = 16;

/// The number of the shared directory itself.
pub const ROOT: u64 = 1;

/// The most data of one request or answer.
pub const MOST_DATA: u32 = 1 << 20;
/// The most bytes of a request besides written data: an extended attribute and its name.
pub const MOST_ARGUMENTS: u64 = 80 << 10;

pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const SETATTR: u32 = 4;
pub const READLINK: u32 = 5;
pub const SYMLINK: u32 = 6;
pub const MKNOD: u32 = 8;
pub const MKDIR: u32 = 9;
pub const UNLINK: u32 = 10;
pub const RMDIR: u32 = 11;
pub const RENAME: u32 = 12;
pub const LINK: u32 = 13;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const WRITE: u32 = 16;
pub const STATFS: u32 = 17;
pub const RELEASE: u32 = 18;
pub const FSYNC: u32 = 20;
pub const SETXATTR: u32 = 21;
pub const GETXATTR: u32 = 22;
pub const LISTXATTR: u32 = 23;
pub const REMOVEXATTR: u32 = 24;
pub const FLUSH: u32 = 25;
pub const INIT: u32 = 26;
pub const OPENDIR: u32 = 27;
pub const READDIR: u32 = 28;
pub const RELEASEDIR: u32 = 29;
pub const FSYNCDIR: u32 = 30;
pub const GETLK: u32 = 31;
pub const SETLK: u32 = 32;
pub const SETLKW: u32 = 33;
pub const CREATE: u32 = 35;
pub const INTERRUPT: u32 = 36;
pub const DESTROY: u32 = 38;
pub const BATCH_FORGET: u32 = 42;
pub const FALLOCATE: u32 = 43;
pub const READDIRPLUS: u32 = 44;
pub const RENAME2: u32 = 45;
pub const LSEEK: u32 = 46;
pub const COPY_FILE_RANGE: u32 = 47;
pub const SYNCFS: u32 = 50;
pub const STATX: u32 = 52;

/// What both sides can do.
const ASYNC_READ: u32 = 1 << 0;
const POSIX_LOCKS: u32 = 1 << 1;
const ATOMIC_TRUNCATE: u32 = 1 << 3;
const BIG_WRITES: u32 = 1 << 5;
const FLOCK_LOCKS: u32 = 1 << 10;
const AUTO_INVALIDATE: u32 = 1 << 12;
const READDIR_PLUS: u32 = 1 << 13;
const READDIR_PLUS_AUTO: u32 = 1 << 14;
const ASYNC_DIRECT: u32 = 1 << 15;
const PARALLEL_DIRECTORIES: u32 = 1 << 18;
const MAX_PAGES: u32 = 1 << 22;
const ABILITIES: u32 = ASYNC_READ
    | POSIX_LOCKS
    | ATOMIC_TRUNCATE
    | BIG_WRITES
    | FLOCK_LOCKS
    | AUTO_INVALIDATE
    | READDIR_PLUS
    | READDIR_PLUS_AUTO
    | ASYNC_DIRECT
    | PARALLEL_DIRECTORIES
    | MAX_PAGES;

/// Who asks for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub operation: u32,
    pub unique: u64,
    pub node: u64,
    pub uid: u32,
    pub gid: u32,
}

impl Header {
    pub fn parse(bytes: &[u8; REQUEST_HEADER]) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Self { operation: word(4), unique: long(8), node: long(16), uid: word(24), gid: word(28) }
    }

    /// What the answer to this request begins with.
    pub fn answer(&self, error: Option<Errno>, length: usize) -> [u8; ANSWER_HEADER] {
        let mut bytes = [0; ANSWER_HEADER];
        let code = error.map_or(0, |error| -error.raw_os_error());
        bytes[..4].copy_from_slice(&((ANSWER_HEADER + length) as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&code.to_le_bytes());
        bytes[8..].copy_from_slice(&self.unique.to_le_bytes());
        bytes
    }
}

/// What follows a request's header, read from front to back.
pub struct Arguments<'a>(pub &'a [u8]);

impl<'a> Arguments<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(*first)
    }

    pub fn word(&mut self) -> Result<u32, Errno> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn long(&mut self) -> Result<u64, Errno> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub fn skip(&mut self, length: usize) -> Result<(), Errno> {
        self.0 = self.0.get(length..).ok_or(Errno::INVAL)?;
        Ok(())
    }

    /// Text up to a zero.
    pub fn text(&mut self) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = &self.0[text.count_bytes() + 1..];
        Ok(text)
    }

    /// A name in a directory: one that leads nowhere else.
    pub fn name(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.text()?;
        let bytes = name.to_bytes();
        if bytes.len() > 255 {
            return Err(Errno::NAMETOOLONG);
        }
        if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') {
            return Err(Errno::INVAL);
        }
        Ok(name)
    }

    pub fn bytes(&mut self, length: usize) -> Result<&'a [u8], Errno> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(bytes)
    }
}

/// An answer under construction.
#[derive(Debug, Default)]
pub struct Answer(pub Vec<u8>);

impl Answer {
    pub fn half(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn word(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn long(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn zeros(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

/// Settles with the guest what both can do.
pub fn init(arguments: &mut Arguments<'_>) -> Result<Answer, Errno> {
    let (major, minor) = (arguments.word()?, arguments.word()?);
    if major < MAJOR || (major == MAJOR && minor < 31) {
        return Err(Errno::PROTO);
    }
    let (readahead, flags) = (arguments.word()?, arguments.word()?);
    let pages = (MOST_DATA >> 12) as u16;
    Ok(Answer::default()
        .word(MAJOR)
        .word(MINOR)
        .word(readahead)
        .word(flags & ABILITIES)
        // Requests in the background, and when the guest should slow down.
        .half(64)
        .half(48)
        .word(MOST_DATA)
        // Times are kept in nanoseconds.
        .word(1)
        .half(pages)
        .half(0)
        .zeros(32))
}
