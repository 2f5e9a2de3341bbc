//! The front ends' view of a disk: size, block size, and requests from several
//! threads.
//!
//! A [`BlockDevice`] does requests at once, on the calling thread. A [`Queue`]
//! belongs to one thread and has many requests under way in an io_uring; what
//! needs a change of metadata goes the synchronous way inside of it, so both
//! share one logic.

mod options;
mod queue;

use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::Arc;

pub use options::DeviceOptions;
pub use queue::{Buffer, Completion, Queue, Request};

use crate::error::Result;
use crate::formats::qcow2::{self, Qcow2};
use crate::graph::{Image, Node, OpenOptions};
use crate::storage::{FileStorage, SharedStorage};

/// A disk that is open for a guest or a client. Cloning gives another handle
/// to the same disk.
#[derive(Clone)]
pub struct BlockDevice {
    image: Arc<Image>,
    block_size: u32,
}

impl BlockDevice {
    /// Opens a disk.
    pub fn open(options: &DeviceOptions) -> Result<Self> {
        let open = OpenOptions {
            format: options.format,
            write: !options.readonly && !options.snapshot,
            direct: options.direct,
            unsafe_cache: options.unsafe_cache,
            backing: options.backing.clone(),
            passphrases: options.passphrases.clone(),
            ..OpenOptions::default()
        };
        let image = Image::open(&options.path, &open)?;
        let image = if options.snapshot { throw_away(image)? } else { image };
        Ok(Self::over(Arc::new(image)))
    }

    /// A device over an image that is open already.
    pub fn over(image: Arc<Image>) -> Self {
        let sizes = image.format().storages().iter().map(|storage| storage.block_size());
        let block_size = sizes.max().unwrap_or(512);
        Self { image, block_size }
    }

    /// The image behind.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.image.size()
    }

    /// Requests in multiples of this go without a detour.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// The unit in which space is taken: discards of less do nothing.
    pub fn discard_granularity(&self) -> u64 {
        self.image.format().cluster_size()
    }

    /// Whether the disk can be written.
    pub fn writable(&self) -> bool {
        self.image.writable()
    }

    /// Fills the buffers, one after the other, from `offset` on.
    pub fn read_vectored(&self, mut offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        for buffer in buffers {
            self.image.read(offset, buffer)?;
            offset += buffer.len() as u64;
        }
        Ok(())
    }

    /// Writes the buffers, one after the other, from `offset` on.
    pub fn write_vectored(&self, mut offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        // Pieces below a block each would be read, changed and written.
        let small = |buffer: &IoSlice<'_>| buffer.len() < self.block_size as usize;
        if buffers.len() > 1 && buffers.iter().any(small) {
            let whole: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.iter().copied()).collect();
            return self.image.write(offset, &whole);
        }
        for buffer in buffers {
            self.image.write(offset, buffer)?;
            offset += buffer.len() as u64;
        }
        Ok(())
    }

    /// Makes a stretch read as zeroes; with `unmap` its space may be given up.
    pub fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.image.write_zeroes(offset, len, unmap)
    }

    /// Says that the contents of a stretch are not needed any more.
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.image.discard(offset, len)
    }

    /// Returns when everything that was acknowledged is on stable storage.
    pub fn flush(&self) -> Result<()> {
        self.image.flush()
    }

    /// A queue of its own for one thread, with so many requests under way.
    pub fn queue(&self, depth: u32) -> Queue {
        Queue::new(Arc::clone(&self.image), depth)
    }

    /// Brings everything to stable storage and marks the image as closed.
    pub fn close(&self) -> Result<()> {
        self.image.close()
    }
}

/// A layer above the image that vanishes with the process.
fn throw_away(image: Image) -> Result<Image> {
    let dir = std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into());
    let storage: SharedStorage = Arc::new(FileStorage::temporary(Path::new(&dir))?);
    Qcow2::create(&storage, None, &qcow2::CreateOptions::new(image.size()))?;
    let open = qcow2::Open { write: true, ..qcow2::Open::default() };
    let layer = Qcow2::open(storage, open)?;
    let path = image.path().to_owned();
    Ok(Image::new(Box::new(layer), Some(Arc::new(image)), &path, true))
}

#[cfg(test)]
mod tests;
