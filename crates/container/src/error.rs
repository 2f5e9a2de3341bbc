//! What can go wrong, in words a person can act on.
//!
//! Every failing system call is wrapped with what was being done and to what;
//! the binary prints the chain on one line.

use std::io;

/// The result of anything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a container could not be made, changed or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call or file operation failed.
    #[error("{what}: {source}")]
    System { what: String, source: io::Error },
    /// The configuration says something that cannot be honoured as written.
    #[error("config.json: {field}: {why}")]
    Config { field: String, why: String },
    /// A JSON document could not be read.
    #[error("{what}: {source}")]
    Json { what: String, source: serde_json::Error },
    /// The identifier of a container is malformed.
    #[error(
        "container id {0:?} is not valid: use letters, digits, '_', '+', '-' and '.', \
         at most 255, not starting with '.'"
    )]
    Id(String),
    /// No container of this name.
    #[error("container {0} does not exist")]
    NotFound(String),
    /// A container of this name is there already.
    #[error("container {0} exists already: choose another id or delete it first")]
    Exists(String),
    /// The container's state does not allow this.
    #[error("container {id} is {status}: {wanted}")]
    State { id: String, status: &'static str, wanted: &'static str },
    /// This host or this runtime cannot do what was asked.
    #[error("{what} is not available here: {instead}")]
    Unsupported { what: String, instead: String },
    /// The container's first process reported why it could not go on.
    #[error("{text}")]
    Init { code: u8, text: String },
    /// The program does not exist in the container.
    // podman looks for these words to tell 127 from other failures.
    #[error("{0}: executable file not found in the container")]
    ProgramNotFound(String),
    /// The program exists but cannot be executed.
    #[error("{program}: cannot be executed in the container: {source}")]
    ProgramNotExecutable { program: String, source: io::Error },
    /// A hook ended badly.
    #[error("{kind} hook {path}: {why}")]
    Hook { kind: &'static str, path: String, why: String },
}

impl Error {
    /// A configuration error.
    pub fn config(field: impl Into<String>, why: impl Into<String>) -> Self {
        Error::Config { field: field.into(), why: why.into() }
    }

    /// Something this host lacks, and the way round it.
    pub fn unsupported(what: impl Into<String>, instead: impl Into<String>) -> Self {
        Error::Unsupported { what: what.into(), instead: instead.into() }
    }

    /// The exit code of the command that failed with this: 126 and 127 as
    /// shells use them, 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::ProgramNotFound(_) => 127,
            Error::ProgramNotExecutable { .. } => 126,
            Error::Init { code, .. } => *code,
            _ => 1,
        }
    }
}

/// Adds what was being done to the error of a system call.
pub trait Context<T> {
    /// Names the operation; the closure runs only on failure.
    fn during<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn during<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|source| Error::System { what: what().into(), source: source.into() })
    }
}
