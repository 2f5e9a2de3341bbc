//! What can go wrong, with what it happened to.

use std::io;
use std::path::{Path, PathBuf};

use crate::Digest;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },

    #[error("it was cancelled")]
    Cancelled,

    #[error("{0:?} is not an image name: {1}")]
    BadName(String, &'static str),

    #[error(
        "image {0} is not in the store (`guise image ls` lists what is, `guise image pull {0}` fetches it)"
    )]
    NoSuchImage(String),

    #[error("{what} {digest} is missing from the store (pull the image again)")]
    MissingBlob { what: &'static str, digest: Digest },

    #[error("{what} has digest {}, not {}: refused", .digests.found, .digests.expected)]
    WrongDigest { what: String, digests: Box<Mismatch> },

    #[error("{what} has {found} bytes, not {expected}: refused")]
    WrongSize { what: String, expected: u64, found: u64 },

    #[error("{what} is malformed: {why}")]
    Malformed { what: String, why: String },

    #[error("{image} has no image for {wanted}; it has {available}")]
    NoPlatform { image: String, wanted: String, available: String },

    #[error("layer {layer}: {source}")]
    Layer { layer: Digest, source: Box<LayerError> },

    #[error("{0}")]
    Registry(#[from] crate::registry::RegistryError),

    #[error("{0}")]
    Debian(#[from] crate::debian::DebianError),

    #[error("{}: {why}", path.display())]
    BadArchive { path: PathBuf, why: String },

    #[error("{0} is a kernel, not a root file system")]
    IsKernel(String),

    #[error("{0} is not a kernel image (`guise image pull kernel:debian-12` makes one)")]
    IsNotKernel(String),

    #[error("the image store {} was made by a newer Guise (format {found}, this one knows {known})", path.display())]
    NewerStore { path: PathBuf, found: String, known: u32 },

    #[error("{0} is not built from Debian packages, so --include means nothing for it")]
    NoInclude(String),
}

/// Two digests that should be the same.
#[derive(Debug)]
pub struct Mismatch {
    pub expected: Digest,
    pub found: Digest,
}

/// Why a layer cannot become a root file system. The store keeps nothing of it.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error("{0}")]
    Tar(#[from] crate::tar::TarError),

    #[error("{path:?} {why}")]
    Hostile { path: String, why: &'static str },

    #[error(
        "{path:?} is a device file, which only root can make (pull as root, or run the image as a machine)"
    )]
    Device { path: String },

    #[error("it unpacks to more than {limit} bytes (the limit; --max-unpacked raises it)")]
    TooBig { limit: u64 },

    #[error("it holds more than {limit} files (the limit)")]
    TooMany { limit: u64 },

    #[error("it is compressed as {0:?}, which is not supported")]
    Compression(String),

    #[error("its contents have digest {}, the configuration says {}: refused", .0.found, .0.expected)]
    WrongDiffId(Box<Mismatch>),

    #[error("{what} {path:?}: {source}")]
    Io { what: &'static str, path: String, source: io::Error },
}

impl LayerError {
    pub(crate) fn io(what: &'static str, path: &[u8], source: impl Into<io::Error>) -> Self {
        Self::Io { what, path: String::from_utf8_lossy(path).into_owned(), source: source.into() }
    }

    pub(crate) fn hostile(path: &[u8], why: &'static str) -> Self {
        Self::Hostile { path: String::from_utf8_lossy(path).into_owned(), why }
    }
}

/// Puts what was being done, and to which file, around an I/O error.
pub(crate) trait IoContext<T> {
    fn at(self, what: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn at(self, what: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::Io { what, path: path.as_ref().to_owned(), source: e.into() })
    }
}

impl Error {
    pub(crate) fn wrong_digest(what: impl Into<String>, expected: Digest, found: Digest) -> Self {
        Self::WrongDigest { what: what.into(), digests: Box::new(Mismatch { expected, found }) }
    }

    pub(crate) fn malformed(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Malformed { what: what.into(), why: why.to_string() }
    }
}
