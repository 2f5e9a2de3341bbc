//! A part of another storage, as a storage of its own: a file in an archive.

use super::{SharedStorage, Storage, StorageRun};
use crate::error::{Error, Result};

/// From an offset on; up to a length, or open-ended for one that grows.
pub struct SliceStorage {
    inner: SharedStorage,
    name: String,
    start: u64,
    len: Option<u64>,
}

impl SliceStorage {
    /// With `len` the part is read only; without, it ends where the storage
    /// does and can grow.
    pub fn new(
        inner: SharedStorage,
        name: impl Into<String>,
        start: u64,
        len: Option<u64>,
    ) -> Self {
        Self { inner, name: name.into(), start, len }
    }

    fn writing(&self) -> Result<()> {
        if self.writable() { Ok(()) } else { Err(Error::ReadOnly { name: self.name.clone() }) }
    }
}

impl Storage for SliceStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Result<u64> {
        match self.len {
            Some(len) => Ok(len),
            None => Ok(self.inner.len()?.saturating_sub(self.start)),
        }
    }

    fn writable(&self) -> bool {
        self.len.is_none() && self.inner.writable()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let inside = self.len()?.saturating_sub(offset).min(buf.len() as u64) as usize;
        buf[inside..].fill(0);
        if inside == 0 {
            Ok(())
        } else {
            self.inner.read_at(self.start + offset, &mut buf[..inside])
        }
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.writing()?;
        self.inner.write_at(self.start + offset, buf)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.writing()?;
        self.inner.write_zeroes(self.start + offset, len, unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.writing()?;
        self.inner.discard(self.start + offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.writing()?;
        self.inner.set_len(self.start + len)
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.writing()?;
        self.inner.allocate(self.start + offset, len)
    }

    fn run_at(&self, offset: u64) -> Result<StorageRun> {
        let run = self.inner.run_at(self.start + offset)?;
        Ok(StorageRun { len: run.len.min(self.len()?.saturating_sub(offset)), ..run })
    }

    fn allocated_bytes(&self) -> Result<u64> {
        self.inner.allocated_bytes()
    }
}
