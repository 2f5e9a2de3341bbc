//! An image and the images below it.

use std::io::IoSliceMut;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Node, Status, check_range};
use crate::error::{Error, Result};
use crate::format::{Below, Format, FormatKind, Preallocation, State};
use crate::storage::SharedStorage;

/// An open image with its backing chain. Closing it explicitly tells errors;
/// dropping it closes it as well.
pub struct Image {
    format: Box<dyn Format>,
    backing: Option<Arc<Image>>,
    path: PathBuf,
    writable: bool,
    closed: AtomicBool,
}

/// What an image has below: its backing file, or nothing.
pub struct ImageBelow<'a>(Option<&'a Image>);

impl Below for ImageBelow<'_> {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let Some(image) = self.0 else {
            buf.fill(0);
            return Ok(());
        };
        let inside = image.size().saturating_sub(offset).min(buf.len() as u64) as usize;
        let (here, past) = buf.split_at_mut(inside);
        past.fill(0);
        if here.is_empty() { Ok(()) } else { image.read(offset, here) }
    }

    fn is_zero(&self, mut offset: u64, len: u64) -> Result<bool> {
        let Some(image) = self.0 else { return Ok(true) };
        let end = (offset + len).min(image.size());
        while offset < end {
            let status = image.status(offset, end - offset)?;
            if !status.zero {
                return Ok(false);
            }
            offset += status.len;
        }
        Ok(true)
    }
}

impl Image {
    /// Puts an open format over what is below it.
    pub fn new(
        format: Box<dyn Format>,
        backing: Option<Arc<Image>>,
        path: &Path,
        writable: bool,
    ) -> Self {
        Self { format, backing, path: path.to_owned(), writable, closed: AtomicBool::new(false) }
    }

    /// The format, for operations that are its own.
    pub fn format(&self) -> &dyn Format {
        &*self.format
    }

    /// The format's name.
    pub fn kind(&self) -> FormatKind {
        self.format.kind()
    }

    /// The image below.
    pub fn backing(&self) -> Option<&Arc<Image>> {
        self.backing.as_ref()
    }

    /// Where it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What shows through where this layer has nothing.
    pub fn below(&self) -> ImageBelow<'_> {
        ImageBelow(self.backing.as_deref())
    }

    /// The layer at a depth as a status tells it.
    pub fn layer(&self, depth: usize) -> Option<&Image> {
        let mut image = self;
        for _ in 0..depth {
            image = image.backing()?;
        }
        Some(image)
    }

    /// How many layers there are.
    pub fn depth(&self) -> usize {
        1 + self.backing().map_or(0, |image| image.depth())
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        check_range(offset, len, self.size())
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<()> {
        if !self.writable {
            return Err(Error::ReadOnly { name: self.path.display().to_string() });
        }
        self.check(offset, len)
    }

    /// Changes the size. What a backing file has beyond the old end must not
    /// show through the new part.
    pub fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        if !self.writable {
            return Err(Error::ReadOnly { name: self.path.display().to_string() });
        }
        let old = self.size();
        self.format.resize(size, preallocation)?;
        let below = self.backing().map_or(0, |image| image.size());
        let shown = below.min(size);
        if shown > old {
            self.format.write_zeroes(old, shown - old, true, &self.below())?;
        }
        Ok(())
    }

    /// Stores a packed cluster.
    pub fn write_packed(&self, offset: u64, packed: &[u8]) -> Result<()> {
        self.check_write(offset, 1)?;
        self.format.write_packed(offset, packed)
    }

    /// Brings everything to stable storage and marks the image as closed.
    pub fn close(&self) -> Result<()> {
        if self.writable && !self.closed.swap(true, Ordering::AcqRel) {
            return self.format.close();
        }
        Ok(())
    }

    /// The bytes the image takes on the host.
    pub fn allocated_bytes(&self) -> Result<u64> {
        self.format.storages().iter().map(|storage| storage.allocated_bytes()).sum()
    }
}

impl Node for Image {
    fn size(&self) -> u64 {
        self.format.size()
    }

    fn writable(&self) -> bool {
        self.writable
    }

    fn status(&self, offset: u64, len: u64) -> Result<Status> {
        self.check(offset, len)?;
        let extent = self.format.map(offset, len)?;
        let mut status = Status {
            len: extent.len,
            zero: false,
            data: false,
            present: true,
            compressed: false,
            depth: 0,
            place: None,
        };
        match extent.state {
            State::Zero { at } => {
                status.zero = true;
                status.place = at;
            }
            State::Data { at } => {
                status.data = true;
                status.place = Some(at);
            }
            State::Packed { compressed } => {
                status.data = true;
                status.compressed = compressed;
            }
            State::Unallocated => match self.backing() {
                Some(backing) if offset < backing.size() => {
                    let inside = extent.len.min(backing.size() - offset);
                    let below = backing.status(offset, inside)?;
                    return Ok(Status { depth: below.depth + 1, ..below });
                }
                Some(_) => {
                    // Past the end of a shorter backing file.
                    status.zero = true;
                    status.present = false;
                }
                None => {
                    status.zero = true;
                    status.present = false;
                }
            },
        }
        Ok(status)
    }

    fn storage(&self, _offset: u64, status: &Status) -> Option<SharedStorage> {
        let file = usize::from(status.place?.file);
        self.layer(status.depth)?.format.storages().get(file).cloned()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check(offset, buf.len() as u64)?;
        self.format.read(offset, buf, &self.below())
    }

    /// Only of a raw disk it is known without a look at metadata where its bytes are.
    fn read_at_hand(&self, offset: u64, stretches: &mut [IoSliceMut<'_>]) -> Result<bool> {
        self.check(offset, stretches.iter().map(|stretch| stretch.len() as u64).sum())?;
        let storage = self.format.storages().first();
        match storage.filter(|_| self.format.kind() == FormatKind::Raw) {
            Some(storage) => storage.read_at_hand(offset, stretches),
            None => Ok(false),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.check_write(offset, data.len() as u64)?;
        self.format.write(offset, data, &self.below())
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.check_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        self.format.write_zeroes(offset, len, unmap, &self.below())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        self.format.discard(offset, len, &self.below())
    }

    fn flush(&self) -> Result<()> {
        self.format.flush()
    }

    fn pass(&self, _write: bool, _len: u64) -> bool {
        true
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // Errors of a close that matters are told by calling `close`.
        let _told_elsewhere = self.close();
    }
}
