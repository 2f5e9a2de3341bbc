//! Disks made of others: several behind one another, or a part of one.

use super::{Image, Node, Status, check_range};
use crate::error::{Error, Result};
use crate::storage::SharedStorage;

/// Images one behind the other, as one disk for reading.
pub struct Join<'a> {
    /// Where each starts.
    parts: Vec<(u64, &'a Image)>,
    size: u64,
}

impl<'a> Join<'a> {
    pub fn new(images: &'a [Image]) -> Self {
        let mut size = 0;
        let mut parts = Vec::with_capacity(images.len());
        for image in images {
            parts.push((size, image));
            size += image.size();
        }
        Self { parts, size }
    }

    fn part(&self, offset: u64) -> Option<(u64, &'a Image)> {
        let after = self.parts.partition_point(|&(start, _)| start <= offset);
        let &(start, image) = self.parts.get(after.checked_sub(1)?)?;
        (offset - start < image.size()).then_some((offset - start, image))
    }
}

fn read_only() -> Error {
    Error::ReadOnly { name: "a view of other disks".to_owned() }
}

impl Node for Join<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn writable(&self) -> bool {
        false
    }

    fn status(&self, offset: u64, len: u64) -> Result<Status> {
        check_range(offset, len, self.size)?;
        let Some((within, image)) = self.part(offset) else {
            return Err(Error::OutOfRange { offset, len, size: self.size });
        };
        image.status(within, len.min(image.size() - within))
    }

    fn storage(&self, offset: u64, status: &Status) -> Option<SharedStorage> {
        let (within, image) = self.part(offset)?;
        image.storage(within, status)
    }

    fn read(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len() as u64, self.size)?;
        while let Some((within, image)) = self.part(offset).filter(|_| !buf.is_empty()) {
            let len = (image.size() - within).min(buf.len() as u64) as usize;
            let (part, rest) = buf.split_at_mut(len);
            image.read(within, part)?;
            offset += len as u64;
            buf = rest;
        }
        Ok(())
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Result<()> {
        Err(read_only())
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> Result<()> {
        Err(read_only())
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(read_only())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

/// A part of a disk, as a disk.
pub struct Window<'a> {
    node: &'a dyn Node,
    start: u64,
    size: u64,
}

impl<'a> Window<'a> {
    /// The part is cut to what the disk has.
    pub fn new(node: &'a dyn Node, start: u64, size: u64) -> Self {
        let start = start.min(node.size());
        Self { node, start, size: size.min(node.size() - start) }
    }
}

impl Node for Window<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn writable(&self) -> bool {
        self.node.writable()
    }

    fn status(&self, offset: u64, len: u64) -> Result<Status> {
        check_range(offset, len, self.size)?;
        self.node.status(self.start + offset, len)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len() as u64, self.size)?;
        self.node.read(self.start + offset, buf)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        check_range(offset, data.len() as u64, self.size)?;
        self.node.write(self.start + offset, data)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        check_range(offset, len, self.size)?;
        self.node.write_zeroes(self.start + offset, len, unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        check_range(offset, len, self.size)?;
        self.node.discard(self.start + offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.node.flush()
    }
}
