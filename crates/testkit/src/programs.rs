//! Programs that run in Linux guests, and a WebAssembly program: compiled here, static, from
//! `guests/programs`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::TestkitError;
use crate::error::run;
use crate::initramfs::store;
use crate::torture::compile;

/// Connects to the host through a virtio socket, or takes connections.
pub fn vsock() -> Result<PathBuf, TestkitError> {
    compile("programs/vsock.c", "programs/vsock", &["-O1", "-static"])
}

/// Tries in a directory what programs expect of a file system.
pub fn files() -> Result<PathBuf, TestkitError> {
    compile("programs/files.c", "programs/files", &["-O1", "-static"])
}

/// Connections of many kinds, with the other end on the host.
pub fn net() -> Result<PathBuf, TestkitError> {
    compile("programs/net.c", "programs/net", &["-O2", "-static"])
}

/// Measures a disk.
pub fn io() -> Result<PathBuf, TestkitError> {
    compile("programs/io.c", "programs/io", &["-O1", "-static"])
}

/// Says hello as a WebAssembly program.
pub fn hello() -> Result<PathBuf, TestkitError> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/programs/hello.wat");
    let read = wat::parse_file(&source).map_err(std::io::Error::other);
    store("programs/hello.wasm", &read.map_err(TestkitError::file("compiling", &source))?)
}

/// The libraries that a program of the host loads, and what loads them.
pub fn libraries(program: &Path) -> Result<Vec<PathBuf>, TestkitError> {
    let listed = run(Command::new("ldd").arg(program))?;
    let paths = listed.lines().filter_map(|line| {
        line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from)
    });
    Ok(paths.collect())
}
