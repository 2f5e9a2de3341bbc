//! `Storage`: the bytes an image lives in, a file, a block device or memory.
//!
//! Storage knows nothing of formats. All I/O is positioned, so one object
//! serves several threads. Reading past the end gives zeroes, as sparse files
//! are grown by what is written; a file that became *shorter* than it was is
//! an error, since what was there is lost.

mod failing;
mod file;
mod lock;
mod memory;
mod record;
mod slice;

use std::io::IoSliceMut;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

pub use failing::FailingStorage;
pub use file::{Access, FileOptions, FileStorage};
pub use lock::{FileLock, Share};
pub use memory::MemoryStorage;
pub use record::{Operation, RecordingStorage};
pub use slice::SliceStorage;

use crate::error::Result;

/// A stretch of storage that is all data or all hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StorageRun {
    pub len: u64,
    pub data: bool,
}

/// Positioned bytes: see the module's text for the rules on the end.
pub trait Storage: Send + Sync {
    /// What to call it in messages.
    fn name(&self) -> &str;

    /// How long it is now.
    fn len(&self) -> Result<u64>;

    /// Whether nothing is in it.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Whether writes are possible.
    fn writable(&self) -> bool;

    /// Fills the buffer; zeroes stand past the end.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Fills the stretches, one after the other, if that takes no waiting. `false`: it may,
    /// and what the stretches hold means nothing.
    fn read_at_hand(&self, _offset: u64, _stretches: &mut [IoSliceMut<'_>]) -> Result<bool> {
        Ok(false)
    }

    /// Writes all of the buffer, growing the storage where needed.
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()>;

    /// Makes a stretch read as zeroes; with `unmap`, gives its space back
    /// where that can be done.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()>;

    /// Says that the contents are not needed. May do nothing.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;

    /// Returns when everything written is on stable storage.
    fn flush(&self) -> Result<()>;

    /// Cuts or grows (with zeroes).
    fn set_len(&self, len: u64) -> Result<()>;

    /// Reserves space, without changing contents.
    fn allocate(&self, offset: u64, len: u64) -> Result<()>;

    /// What stands at `offset`: a run of data or of holes, never empty for an
    /// offset before the end.
    fn run_at(&self, offset: u64) -> Result<StorageRun>;

    /// The bytes that the storage takes on the host.
    fn allocated_bytes(&self) -> Result<u64>;

    /// The smallest unit for writing without a read in between.
    fn block_size(&self) -> u32 {
        512
    }

    /// The file behind, for ring submissions and in-kernel copies.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Writes, if that is quicker than by a ring. `false`: a ring is to do it.
    fn write_here(&self, _offset: u64, _buf: &[u8]) -> Result<bool> {
        Ok(false)
    }

    /// Copies from another storage inside of the kernel. `Ok(0)`: cannot.
    fn copy_from(
        &self,
        _from: &dyn Storage,
        _from_offset: u64,
        _to: u64,
        _len: u64,
    ) -> Result<u64> {
        Ok(0)
    }
}

/// Storage as it is shared between the layers.
pub type SharedStorage = Arc<dyn Storage>;

/// Reads a stretch into a new buffer. The caller has bounded `len`.
pub(crate) fn read_vec(storage: &dyn Storage, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut buf = vec![0; len];
    storage.read_at(offset, &mut buf)?;
    Ok(buf)
}

#[cfg(test)]
mod tests;
