//! What can go wrong, with the line of the Containerfile that it happened in.

use std::io;
use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("line {line}: {why}")]
    Syntax { line: usize, why: String },

    #[error("line {line}: {step}: {source}")]
    Step { line: usize, step: String, source: Box<Error> },

    #[error("{what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },

    #[error("{0}")]
    Refused(String),

    #[error("the command ended with status {status}{}", output_of(output))]
    Run { status: i32, output: String },

    #[error("{name} is not there to be copied{}", if *ignored { " (.dockerignore leaves it out)" } else { "" })]
    NoSource { name: String, ignored: bool },

    #[error("building needs root: overlayfs is mounted and commands run in containers (use sudo)")]
    NeedsRoot,

    #[error("interrupted")]
    Interrupted,

    #[error(transparent)]
    Image(#[from] guise_image::Error),

    #[error(transparent)]
    Container(#[from] guise_container::Error),
}

/// The end of a command's output, where nobody has seen it yet.
fn output_of(output: &str) -> String {
    if output.is_empty() { String::new() } else { format!("; it said: {}", output.trim_end()) }
}

impl Error {
    pub(crate) fn syntax(line: usize, why: impl Into<String>) -> Self {
        Error::Syntax { line, why: why.into() }
    }

    pub(crate) fn refused(why: impl Into<String>) -> Self {
        Error::Refused(why.into())
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
