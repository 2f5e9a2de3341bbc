//! What is done with whole images: the work of `guise disk`, without its
//! arguments and its output.

mod bitmaps;
mod chain;
mod compare;
mod copy;
mod create;
mod info;
mod map;
mod measure;
mod rate;
mod size;

pub use bitmaps::{copy_bitmaps, measure_bitmaps};
pub use chain::{CommitOptions, commit, rebase};
pub use compare::{Comparison, compare};
pub use copy::{CopyOptions, copy};
pub use create::{
    CreateRequest, OptionHelp, Takes, amend_options, create, create_options, qcow2_options,
};
pub use info::{ImageInfo, SnapshotEntry, info};
pub use map::{MapEntry, map};
pub use measure::{Measurement, measure, measure_size};
pub use size::parse_size;

use crate::error::{Error, Result};

/// Told how far a long operation is, and asked whether to go on.
pub trait Progress: Sync {
    fn at(&self, done: u64, total: u64);

    /// Whether the user wants to stop: the operation ends at a safe place.
    fn stop(&self) -> bool {
        false
    }
}

/// Nobody is watching.
pub struct Quiet;

impl Progress for Quiet {
    fn at(&self, _done: u64, _total: u64) {}
}

pub(crate) fn step(progress: &dyn Progress, done: u64, total: u64, name: &str) -> Result<()> {
    progress.at(done, total);
    if progress.stop() {
        return Err(Error::Interrupted { name: name.to_owned() });
    }
    Ok(())
}
