//! A file of nothing that takes a little space, to be thrown overboard.
//!
//! Where a file system is full to its last block, that something is to be removed cannot be
//! written down either, and so nothing could ever be. Then this file makes room for that.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

use super::Space;

/// Enough to write down many removals.
const SIZE: u64 = 1 << 20;

#[derive(Debug)]
pub struct Ballast(PathBuf);

impl Ballast {
    pub fn new(state: &Path) -> Ballast {
        Ballast(state.join("ballast"))
    }

    /// Has it there, where there is room for many times as much.
    pub fn keep(&self, space: &Space) {
        let size = SIZE.min(space.total / 64);
        if size == 0 || space.free / 8 < size || self.0.exists() {
            return;
        }
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.0);
        let made = made.and_then(|file| Ok(fallocate(&file, FallocateFlags::empty(), 0, size)?));
        if let Err(error) = made {
            // One that takes no space is of no use.
            tracing::debug!("make {}: {error}", self.0.display());
            let _ = fs::remove_file(&self.0);
        }
    }

    /// Gives its space away. Says whether there was any.
    pub fn throw_overboard(&self) -> bool {
        fs::remove_file(&self.0).is_ok()
    }
}

#[cfg(test)]
mod tests;
