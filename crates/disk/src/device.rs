//! The front ends' view of a disk: size, block size, and requests from several
//! threads.
//!
//! A [`BlockDevice`] does requests at once, on the calling thread. A [`Queue`]
//! belongs to one thread and has many requests under way in an io_uring; what
//! needs a change of metadata goes the synchronous way inside of it, so both
//! share one logic. Limits and a mirror stand between them and the image.

mod options;
mod queue;

use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::Arc;

pub use options::DeviceOptions;
pub use queue::{Buffer, Completion, Queue, Request};

use crate::error::{Error, Result};
use crate::formats::qcow2::{self, Qcow2};
use crate::graph::{Image, Limits, Mirror, MirrorState, Node, OpenOptions, Status, Throttle};
use crate::ops::SnapshotEntry;
use crate::storage::{FileStorage, SharedStorage};

/// A disk that is open for a guest or a client. Cloning gives another handle
/// to the same disk.
#[derive(Clone)]
pub struct BlockDevice {
    /// What requests go through: filters, then the image.
    node: Arc<dyn Node>,
    image: Arc<Image>,
    mirror: Option<Arc<Mirror>>,
    block_size: u32,
    /// The top layer is thrown away in the end.
    fleeting: bool,
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
        let device = Self { fleeting: options.snapshot, ..Self::over(Arc::new(image)) };
        match &options.mirror {
            Some((path, kind)) => {
                let open = OpenOptions { format: Some(*kind), write: true, ..open };
                device.mirrored(path, &open)
            }
            None => Ok(device),
        }
    }

    /// A device over an image that is open already.
    pub fn over(image: Arc<Image>) -> Self {
        let sizes = image.format().storages().iter().map(|storage| storage.block_size());
        let block_size = sizes.max().unwrap_or(512);
        Self { node: image.clone(), image, mirror: None, block_size, fleeting: false }
    }

    /// The same disk, with its contents brought to another image.
    pub fn mirrored(self, path: &Path, open: &OpenOptions) -> Result<Self> {
        let target = Image::open(path, open)?;
        let mirror = Arc::new(Mirror::start(Arc::clone(&self.image), target)?);
        Ok(Self { node: mirror.clone(), mirror: Some(mirror), ..self })
    }

    /// The same disk, no faster than this.
    pub fn limited(self, limits: Limits) -> Self {
        if limits.is_none() {
            return self;
        }
        Self { node: Arc::new(Throttle::new(self.node, limits)), ..self }
    }

    /// How far the copy in another image is.
    pub fn mirror_state(&self) -> Option<MirrorState> {
        self.mirror.as_ref().map(|mirror| mirror.state())
    }

    /// The disk as its requests see it.
    pub fn node(&self) -> Arc<dyn Node> {
        self.node.clone()
    }

    /// The image behind.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The internal snapshots that are in the image.
    pub fn snapshots(&self) -> Vec<SnapshotEntry> {
        let image = self.image.layer(usize::from(self.fleeting));
        let Some(qcow2) = image.and_then(|image| image.format().as_qcow2()) else {
            return Vec::new();
        };
        qcow2.snapshots().iter().map(SnapshotEntry::from).collect()
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.node.size()
    }

    /// Requests in multiples of this go without a detour.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// The unit in which space is taken: discards of less do nothing.
    pub fn discard_granularity(&self) -> u64 {
        self.image.format().cluster_size()
    }

    /// What a stretch of the disk is.
    pub fn status(&self, offset: u64, len: u64) -> Result<Status> {
        self.node.status(offset, len)
    }

    /// Fills a buffer from `offset` on.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.node.read(offset, buf)
    }

    /// Does a read at once on this thread if that takes no waiting: the host has it in
    /// memory. `false`: a queue is to do it, and what the buffer holds means nothing.
    pub fn read_at_hand(&self, offset: u64, buffer: &mut Buffer) -> Result<bool> {
        self.node.read_at_hand(offset, &mut buffer.slices())
    }

    /// Writes a buffer from `offset` on.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.node.write(offset, data)
    }

    /// Whether the disk can be written.
    pub fn writable(&self) -> bool {
        self.node.writable()
    }

    /// Fills the buffers, one after the other, from `offset` on.
    pub fn read_vectored(&self, mut offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        for buffer in buffers {
            self.node.read(offset, buffer)?;
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
            return self.node.write(offset, &whole);
        }
        for buffer in buffers {
            self.node.write(offset, buffer)?;
            offset += buffer.len() as u64;
        }
        Ok(())
    }

    /// Makes a stretch read as zeroes; with `unmap` its space may be given up.
    pub fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.node.write_zeroes(offset, len, unmap)
    }

    /// Says that the contents of a stretch are not needed any more.
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.node.discard(offset, len)
    }

    /// Returns when everything that was acknowledged is on stable storage.
    pub fn flush(&self) -> Result<()> {
        self.node.flush()
    }

    /// A queue of its own for one thread, with so many requests under way.
    pub fn queue(&self, depth: u32) -> Queue {
        Queue::new(Arc::clone(&self.node), Arc::clone(&self.image), depth)
    }

    /// Brings everything to stable storage and marks the image as closed. A
    /// mirror that does not have everything is an error.
    pub fn close(&self) -> Result<()> {
        self.node.flush()?;
        self.image.close()?;
        let what = match self.mirror_state() {
            None | Some(MirrorState::Same) => return Ok(()),
            Some(MirrorState::Failed(what)) => what,
            Some(MirrorState::Copying { done, total }) => {
                format!("the disk was closed when {done} of {total} bytes were there")
            }
        };
        Err(Error::Mirror { what })
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
