//! Storage in memory: for tests, for fuzzing, and for changes that are to be
//! thrown away. Sparse, in pages that exist once written.

use std::collections::BTreeMap;

use parking_lot::RwLock;

use super::{Storage, StorageRun};
use crate::error::{Error, Result};

const PAGE: u64 = 4096;

#[derive(Clone, Default)]
struct Contents {
    len: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

/// A sparse, growing array of bytes.
pub struct MemoryStorage {
    name: String,
    writable: bool,
    contents: RwLock<Contents>,
}

impl MemoryStorage {
    /// Empty and writable.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), writable: true, contents: RwLock::default() }
    }

    /// With these bytes, writable.
    pub fn from_bytes(name: impl Into<String>, bytes: &[u8]) -> Self {
        let storage = Self::new(name);
        storage.contents.write().put(0, bytes);
        storage
    }

    /// The same bytes in a storage of its own.
    pub fn duplicate(&self) -> Self {
        Self {
            name: self.name.clone(),
            writable: true,
            contents: RwLock::new(self.contents.read().clone()),
        }
    }
}

impl Contents {
    fn put(&mut self, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let within = (offset % PAGE) as usize;
            let take = bytes.len().min(PAGE as usize - within);
            let page = self
                .pages
                .entry(offset / PAGE)
                .or_insert_with(|| vec![0; PAGE as usize].into_boxed_slice());
            page[within..within + take].copy_from_slice(&bytes[..take]);
            offset += take as u64;
            bytes = &bytes[take..];
        }
        self.len = self.len.max(offset);
    }

    fn get(&self, mut offset: u64, buf: &mut [u8]) {
        let inside = self.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (mut buf, past) = buf.split_at_mut(inside);
        past.fill(0);
        while !buf.is_empty() {
            let within = (offset % PAGE) as usize;
            let take = buf.len().min(PAGE as usize - within);
            let (head, rest) = buf.split_at_mut(take);
            match self.pages.get(&(offset / PAGE)) {
                Some(page) => head.copy_from_slice(&page[within..within + take]),
                None => head.fill(0),
            }
            offset += take as u64;
            buf = rest;
        }
    }

    fn clear(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        let touched: Vec<u64> =
            self.pages.range(offset / PAGE..end.div_ceil(PAGE)).map(|(&page, _)| page).collect();
        for page in touched {
            let start = page * PAGE;
            if start >= offset && start + PAGE <= end {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                let from = offset.max(start) - start;
                let to = end.min(start + PAGE) - start;
                bytes[from as usize..to as usize].fill(0);
            }
        }
    }
}

impl MemoryStorage {
    /// Where a stretch ends, if a file could have it.
    fn end(&self, offset: u64, len: u64) -> Result<u64> {
        offset.checked_add(len).filter(|&end| end <= i64::MAX as u64).ok_or_else(|| {
            let source = std::io::Error::from_raw_os_error(libc::EFBIG);
            Error::io("write to", &self.name, source)
        })
    }
}

impl Storage for MemoryStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Result<u64> {
        Ok(self.contents.read().len)
    }

    fn writable(&self) -> bool {
        self.writable
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.contents.read().get(offset, buf);
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.end(offset, buf.len() as u64)?;
        self.contents.write().put(offset, buf);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<()> {
        let end = self.end(offset, len)?;
        let mut contents = self.contents.write();
        contents.clear(offset, len);
        contents.len = contents.len.max(end);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.end(offset, len)?;
        self.contents.write().clear(offset, len);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut contents = self.contents.write();
        if len < contents.len {
            let old = contents.len;
            contents.clear(len, old - len);
        }
        contents.len = len;
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        let end = self.end(offset, len)?;
        let mut contents = self.contents.write();
        contents.len = contents.len.max(end);
        Ok(())
    }

    fn run_at(&self, offset: u64) -> Result<StorageRun> {
        let contents = self.contents.read();
        let end = contents.len;
        if offset >= end {
            return Ok(StorageRun { len: 0, data: false });
        }
        let first = offset / PAGE;
        let data = contents.pages.contains_key(&first);
        let last = if data {
            let mut page = first + 1;
            while contents.pages.contains_key(&page) {
                page += 1;
            }
            page
        } else {
            contents.pages.range(first..).next().map_or(u64::MAX / PAGE, |(&page, _)| page)
        };
        Ok(StorageRun { len: end.min(last * PAGE).saturating_sub(offset), data })
    }

    fn allocated_bytes(&self) -> Result<u64> {
        Ok(self.contents.read().pages.len() as u64 * PAGE)
    }
}
