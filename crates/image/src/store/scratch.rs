//! A directory of the store for work in progress, gone when it is dropped; what
//! a killed process leaves goes at the next collection.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::{Session, remove_tree, unique_name};
use crate::error::{IoContext, Result};

#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Session<'_> {
    /// Makes a directory on the file system of the layers.
    pub fn scratch(&self) -> Result<Scratch> {
        let path = self.path("tmp").join(unique_name());
        fs::DirBuilder::new().mode(0o700).create(&path).at("making", &path)?;
        Ok(Scratch { path })
    }
}

impl Scratch {
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now goes at the next collection.
        let _ = remove_tree(&self.path);
    }
}
