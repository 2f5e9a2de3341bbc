//! The block graph: images over their backing files, and filters on top.
//!
//! Everything that can be read and written as a disk is a [`Node`]. An
//! [`Image`] is a node made of a format and, below it, the image that it is a
//! copy-on-write layer of; [`Throttle`] and [`Mirror`] stand over a disk.

mod image;
mod join;
mod mirror;
mod open;
mod throttle;

pub use image::{Image, ImageBelow};
pub use join::{Join, Window};
pub use mirror::{Mirror, MirrorState};
pub use open::{BackingPolicy, MAX_DEPTH, OpenOptions, Passphrases};
pub use throttle::{Limits, Throttle};

use std::io::IoSliceMut;

use crate::error::{Error, Result};
use crate::format::Place;
use crate::storage::SharedStorage;

/// What a stretch of a disk is, and which layer says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub len: u64,
    /// Reads as zeroes.
    pub zero: bool,
    /// Some layer has bytes for it.
    pub data: bool,
    /// Some layer has an entry for it, data or zeroes.
    pub present: bool,
    pub compressed: bool,
    /// Which layer: 0 is the top.
    pub depth: usize,
    /// Where the bytes are as they are read, if they are so anywhere.
    pub place: Option<Place>,
}

/// A disk.
pub trait Node: Send + Sync {
    fn size(&self) -> u64;
    fn writable(&self) -> bool;
    /// The status from `offset` on, at most `len` long, never empty.
    fn status(&self, offset: u64, len: u64) -> Result<Status>;
    /// The file that a status' place is in, where others may copy from it.
    fn storage(&self, _offset: u64, _status: &Status) -> Option<SharedStorage> {
        None
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
    /// Fills the stretches if that takes no waiting. `false`: it may, so `read` is to do it,
    /// and what the stretches hold means nothing.
    fn read_at_hand(&self, _offset: u64, _stretches: &mut [IoSliceMut<'_>]) -> Result<bool> {
        Ok(false)
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<()>;
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()>;
    fn discard(&self, offset: u64, len: u64) -> Result<()>;
    fn flush(&self) -> Result<()>;
    /// Whether a transfer may go past this node to the image under all nodes;
    /// what the node has to do for it (waiting, for instance) is done then.
    fn pass(&self, _write: bool, _len: u64) -> bool {
        false
    }
}

/// Refuses what does not lie in a disk.
pub(crate) fn check_range(offset: u64, len: u64, size: u64) -> Result<()> {
    if offset.checked_add(len).is_none_or(|end| end > size) {
        return Err(Error::OutOfRange { offset, len, size });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
