//! Raw: the file is the disk.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::format::{Below, Extent, Format, FormatKind, Place, Preallocation, Run, State};
use crate::storage::{SharedStorage, Storage};

/// A disk byte for byte.
pub struct Raw {
    storages: [SharedStorage; 1],
    size: AtomicU64,
}

impl Raw {
    /// Any storage is a raw disk.
    pub fn open(storage: SharedStorage) -> Result<Self> {
        let size = storage.len()?;
        Ok(Self { storages: [storage], size: AtomicU64::new(size) })
    }

    /// Sizes an empty storage.
    pub fn create(storage: &dyn Storage, size: u64, preallocation: Preallocation) -> Result<()> {
        storage.set_len(size)?;
        preallocate(storage, 0, size, preallocation)
    }

    fn storage(&self) -> &dyn Storage {
        &*self.storages[0]
    }
}

/// Reserves or writes a stretch, as asked for.
pub(crate) fn preallocate(
    storage: &dyn Storage,
    offset: u64,
    len: u64,
    how: Preallocation,
) -> Result<()> {
    match how {
        Preallocation::Off | Preallocation::Metadata => Ok(()),
        Preallocation::Falloc => storage.allocate(offset, len),
        Preallocation::Full => {
            let zeroes = vec![0; 1 << 20];
            let mut at = offset;
            while at < offset + len {
                let step = (offset + len - at).min(zeroes.len() as u64);
                storage.write_at(at, &zeroes[..step as usize])?;
                at += step;
            }
            storage.flush()
        }
    }
}

impl Format for Raw {
    fn kind(&self) -> FormatKind {
        FormatKind::Raw
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn cluster_size(&self) -> u64 {
        4096
    }

    fn storages(&self) -> &[SharedStorage] {
        &self.storages
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        let run = self.storage().run_at(offset)?;
        let at = Place { file: 0, offset };
        let state = if run.data { State::Data { at } } else { State::Zero { at: Some(at) } };
        // A file shorter than it was reads as an error, not as zeroes.
        let run_len = if run.len == 0 { len } else { run.len };
        let state = if run.len == 0 { State::Data { at } } else { state };
        Ok(Extent { len: run_len.min(len), state })
    }

    fn read(&self, offset: u64, buf: &mut [u8], _below: &dyn Below) -> Result<()> {
        self.storage().read_at(offset, buf)
    }

    fn write(&self, offset: u64, data: &[u8], _below: &dyn Below) -> Result<()> {
        self.storage().write_at(offset, data)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool, _below: &dyn Below) -> Result<()> {
        self.storage().write_zeroes(offset, len, unmap)
    }

    fn discard(&self, offset: u64, len: u64, _below: &dyn Below) -> Result<()> {
        self.storage().discard(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.storage().flush()
    }

    fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        if preallocation == Preallocation::Metadata {
            return Err(Error::option("preallocation", "raw disks have no metadata"));
        }
        let old = self.size();
        self.storage().set_len(size)?;
        self.size.store(size, Ordering::Relaxed);
        if size > old {
            preallocate(self.storage(), old, size - old, preallocation)?;
        }
        Ok(())
    }

    fn write_in_place(&self, offset: u64, len: u64, to: &mut Vec<Run>) -> Result<bool> {
        to.push((Place { file: 0, offset }, len));
        Ok(true)
    }
}
