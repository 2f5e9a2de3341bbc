//! WebAssembly programs: modules of WASI preview 1 and components of WASI 0.2.
//!
//! A program sees what it is given and nothing else: arguments, variables, three streams,
//! folders, and sockets where that was asked for. It is compiled to the host's code, so the
//! process that runs it should be one that may be lost.
//!
//! ```text
//! code     from a file's bytes to code that can be linked
//! context  what the program may import
//! running  the thread that runs it, and who holds, stops and awaits it
//! memory   what it takes, and where that ends
//! pipe     its streams
//! ```

mod code;
mod context;
mod memory;
mod pipe;
mod running;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub use running::{End, Running};

/// A program, and all that it gets.
#[derive(Debug)]
pub struct Program {
    /// A module or a component, as its file has it.
    pub code: Vec<u8>,
    /// What it is called comes first.
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub folders: Vec<Folder>,
    pub network: Network,
    /// Bytes of memory that it may have.
    pub memory: Option<u64>,
    /// The part of a processor that it may have; it never uses more than one.
    pub processors: Option<f64>,
    pub streams: Streams,
}

/// A folder of the host that the program sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    pub host: PathBuf,
    /// Its path in the program's eyes.
    pub guest: String,
    pub read_only: bool,
}

/// The sockets that a component may have; modules have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    None,
    /// To others, but not to this host's own loopback.
    Outwards,
    /// All that this user may.
    Host,
}

/// Pipes, or three times a terminal.
#[derive(Debug)]
pub struct Streams {
    /// Without one its input is at its end.
    pub input: Option<OwnedFd>,
    pub output: OwnedFd,
    pub errors: OwnedFd,
    pub terminal: bool,
}

/// Why a program does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It is none, or asks for what is not there.
    #[error("{0}")]
    NotExecutable(String),
    #[error("{what}: {why}")]
    Failed { what: &'static str, why: String },
}

impl StartError {
    fn failed(what: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
        move |why| StartError::Failed { what, why: why.to_string() }
    }
}

#[cfg(test)]
mod tests;
