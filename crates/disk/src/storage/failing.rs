//! Storage that runs out of space when a test says so.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{SharedStorage, Storage, StorageRun};
use crate::error::{Error, Result};

/// Passes everything on, until the writes that there is room for are used up.
pub struct FailingStorage {
    inner: SharedStorage,
    room: AtomicU64,
}

impl FailingStorage {
    /// With room for everything.
    pub fn new(inner: SharedStorage) -> Self {
        Self { inner, room: AtomicU64::new(u64::MAX) }
    }

    /// From now on only so many writes succeed; `u64::MAX` for all.
    pub fn leave_room_for(&self, writes: u64) {
        self.room.store(writes, Ordering::Relaxed);
    }

    fn take_room(&self) -> Result<()> {
        let take = |room: u64| match room {
            u64::MAX => Some(room),
            room => room.checked_sub(1),
        };
        self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map(drop).map_err(|_| {
            Error::io("write to", self.name(), io::Error::from_raw_os_error(libc::ENOSPC))
        })
    }
}

impl Storage for FailingStorage {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn len(&self) -> Result<u64> {
        self.inner.len()
    }

    fn writable(&self) -> bool {
        self.inner.writable()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.take_room()?;
        self.inner.write_at(offset, buf)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.take_room()?;
        self.inner.write_zeroes(offset, len, unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.discard(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.inner.set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.take_room()?;
        self.inner.allocate(offset, len)
    }

    fn run_at(&self, offset: u64) -> Result<StorageRun> {
        self.inner.run_at(offset)
    }

    fn allocated_bytes(&self) -> Result<u64> {
        self.inner.allocated_bytes()
    }
}
