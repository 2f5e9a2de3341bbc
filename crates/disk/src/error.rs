//! What can go wrong, each with enough context for one line of text: what
//! happened, to what. The caller adds what to do next where it knows.

use std::io;

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// One failure, told with its place.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{action} '{name}': {}", os_text(.source))]
    Io { action: &'static str, name: String, source: io::Error },
    /// The image contradicts its format.
    #[error("'{name}' is not a sound {format} image: {what}")]
    Corrupt { format: &'static str, name: String, what: String },
    /// The image is another format than was asked for.
    #[error("'{name}' is not in {format} format")]
    NotThisFormat { format: &'static str, name: String },
    /// The image is sound, but uses what this program cannot do.
    #[error("'{name}' uses what is not supported in {format}: {what}")]
    Unsupported { format: &'static str, name: String, what: String },
    /// The operation does not exist for this format.
    #[error("{format} images have no {what}")]
    NoSuchOperation { format: &'static str, what: &'static str },
    /// The size stays as it is.
    #[error("'{name}' cannot be resized: {why}")]
    Resize { name: String, why: String },
    /// An option's value is not acceptable.
    #[error("{option}: {what}")]
    Option { option: String, what: String },
    /// A write to something opened for reading.
    #[error("'{name}' is open for reading only")]
    ReadOnly { name: String },
    /// A request outside the disk.
    #[error("request at {offset} for {len} bytes lies outside the disk of {size} bytes")]
    OutOfRange { offset: u64, len: u64, size: u64 },
    /// The file lost its end while open.
    #[error("'{name}' was truncated to {now} bytes while in use (it had {before})")]
    Truncated { name: String, before: u64, now: u64 },
    /// Another process has the image open in a way that excludes this use.
    #[error("'{name}' is locked: another process has it open for {by}")]
    Locked { name: String, by: &'static str },
    /// A backing file outside of what the caller allows, too deep, or a cycle.
    #[error("backing file '{name}' is not opened: {why}")]
    Backing { name: String, why: String },
    /// A snapshot, bitmap or key slot by that name is not there, or there twice.
    #[error("{what} '{name}' {problem}")]
    Named { what: &'static str, name: String, problem: &'static str },
    /// The passphrase opens none of the key slots.
    #[error("'{name}' is encrypted: {why}")]
    Secret { name: String, why: &'static str },
    /// The copy of a disk that is kept in another image.
    #[error("the mirror is incomplete: {what}")]
    Mirror { what: String },
    /// The caller asked to stop.
    #[error("interrupted; '{name}' is incomplete")]
    Interrupted { name: String },
}

/// The system's words without the "(os error 28)" that Rust appends.
fn os_text(source: &io::Error) -> String {
    let text = source.to_string();
    match text.rfind(" (os error") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

impl Error {
    /// An operating-system error with what was being done to what.
    pub fn io(action: &'static str, name: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { action, name: name.into(), source: source.into() }
    }

    /// An option with an unacceptable value.
    pub fn option(option: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Option { option: option.into(), what: what.into() }
    }

    /// Whether the storage ran out of space: a guest may be paused on this
    /// and go on when there is room again.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)))
    }

    /// The system's error number that tells a guest or a client best.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            Self::ReadOnly { .. } => libc::EPERM,
            Self::OutOfRange { .. } | Self::Option { .. } => libc::EINVAL,
            Self::NoSuchOperation { .. } | Self::Unsupported { .. } => libc::ENOTSUP,
            _ => libc::EIO,
        }
    }
}

/// Where an error about an image's contents points: the format and the file.
#[derive(Clone, Debug)]
pub struct Blame {
    pub format: &'static str,
    pub name: String,
}

impl Blame {
    pub(crate) fn new(format: &'static str, name: impl Into<String>) -> Self {
        Self { format, name: name.into() }
    }

    pub(crate) fn corrupt(&self, what: impl Into<String>) -> Error {
        Error::Corrupt { format: self.format, name: self.name.clone(), what: what.into() }
    }

    pub(crate) fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::Unsupported { format: self.format, name: self.name.clone(), what: what.into() }
    }

    pub(crate) fn other_format(&self) -> Error {
        Error::NotThisFormat { format: self.format, name: self.name.clone() }
    }

    pub(crate) fn cannot_resize(&self, why: &str) -> Error {
        Error::Resize { name: self.name.clone(), why: why.to_owned() }
    }

    pub(crate) fn read_only(&self) -> Error {
        Error::ReadOnly { name: self.name.clone() }
    }
}
