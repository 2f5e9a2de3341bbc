//! Programs that run in Linux guests: compiled here, static, from `guests/programs`.

use std::path::PathBuf;

use crate::TestkitError;
use crate::torture::compile;

/// Connects to the host through a virtio socket, or takes connections.
pub fn vsock() -> Result<PathBuf, TestkitError> {
    compile("programs/vsock.c", "programs/vsock", &["-O1", "-static"])
}
