//! Storage in a file or a block device.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, IFlags, SeekFrom};
use rustix::io::ReadWriteFlags;

use super::{FileLock, Share, Storage, StorageRun};
use crate::error::{Error, Result};

/// Zeroes for file systems that cannot make holes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    /// Makes the file, or empties the one that is there.
    Create,
}

/// Everything about opening a file besides its name.
#[derive(Clone, Copy, Debug)]
pub struct FileOptions {
    pub access: Access,
    pub share: Share,
    /// Past the page cache (`O_DIRECT`): for guests that cache by themselves.
    pub direct: bool,
    /// Flushes do nothing: for files that can be made again.
    pub never_flush: bool,
    /// A new file that btrfs shall not copy on write; other file systems have no need.
    pub no_cow: bool,
}

impl FileOptions {
    const DEFAULT: Self = Self {
        access: Access::Read,
        share: Share::Safely,
        direct: false,
        never_flush: false,
        no_cow: false,
    };

    /// For reading, locked.
    pub const fn read() -> Self {
        Self { access: Access::Read, ..Self::DEFAULT }
    }

    /// For reading and writing, locked.
    pub const fn write() -> Self {
        Self { access: Access::Write, ..Self::DEFAULT }
    }

    /// A new and empty file, locked.
    pub const fn create() -> Self {
        Self { access: Access::Create, ..Self::DEFAULT }
    }
}

/// A file or a block device, locked while it is open.
pub struct FileStorage {
    file: File,
    name: String,
    path: PathBuf,
    writable: bool,
    direct: bool,
    never_flush: bool,
    block_device: bool,
    /// The length as last seen or made: a shorter file has lost data.
    known_len: AtomicU64,
    /// Cleared when the file system turns out not to make holes.
    can_punch: AtomicBool,
    /// Whether the file system writes to its cache without waiting. Where it
    /// does not (ext4), a ring leaves every write to a worker thread.
    takes_ring_writes: OnceLock<bool>,
    _lock: Option<FileLock>,
}

impl FileStorage {
    /// Opens the file that the path names.
    pub fn open(path: &Path, options: FileOptions) -> Result<Self> {
        let name = path.display().to_string();
        let writable = options.access != Access::Read;
        let mut how = OpenOptions::new();
        how.read(true).write(writable);
        if options.access == Access::Create {
            how.create(true);
        }
        if options.direct {
            how.custom_flags(libc::O_DIRECT);
        }
        let file = how.open(path).map_err(|e| Error::io("open", &name, e))?;
        let metadata = file.metadata().map_err(|e| Error::io("stat", &name, e))?;
        if metadata.is_dir() {
            return Err(Error::io("open", &name, io::Error::from(ErrorKind::IsADirectory)));
        }
        let lock = match options.share {
            Share::Safely => Some(FileLock::take(&file, &name, writable)?),
            Share::Freely => None,
        };
        let block_device = metadata.file_type().is_block_device();
        if options.access == Access::Create && !block_device {
            // After the lock: an image in use elsewhere must not be emptied.
            file.set_len(0).map_err(|e| Error::io("empty", &name, e))?;
            if options.no_cow
                && let Ok(flags) = rustix::fs::ioctl_getflags(&file)
            {
                // Where the flag means nothing it cannot be set.
                let _not_btrfs = rustix::fs::ioctl_setflags(&file, flags | IFlags::NOCOW);
            }
        }
        let storage = Self {
            file,
            name,
            path: path.to_owned(),
            writable,
            direct: options.direct,
            never_flush: options.never_flush,
            block_device,
            known_len: AtomicU64::new(0),
            can_punch: AtomicBool::new(true),
            takes_ring_writes: OnceLock::new(),
            _lock: lock,
        };
        storage.known_len.store(storage.current_len()?, Ordering::Relaxed);
        Ok(storage)
    }

    /// A file without a name, gone when it is closed.
    pub fn temporary(dir: &Path) -> Result<Self> {
        let name = dir.display().to_string();
        let mut how = OpenOptions::new();
        how.read(true).write(true).custom_flags(libc::O_TMPFILE);
        let file = how.open(dir).map_err(|e| Error::io("make a temporary file in", &name, e))?;
        Ok(Self {
            file,
            name,
            path: dir.to_owned(),
            writable: true,
            direct: false,
            never_flush: true,
            block_device: false,
            known_len: AtomicU64::new(0),
            can_punch: AtomicBool::new(true),
            takes_ring_writes: OnceLock::new(),
            _lock: None,
        })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn current_len(&self) -> Result<u64> {
        if self.block_device {
            return rustix::fs::seek(&self.file, SeekFrom::End(0)).map_err(|e| self.io("size", e));
        }
        Ok(self.file.metadata().map_err(|e| self.io("stat", e))?.len())
    }

    fn io(&self, action: &'static str, source: impl Into<io::Error>) -> Error {
        Error::io(action, &self.name, source)
    }

    fn grew_to(&self, end: u64) {
        self.known_len.fetch_max(end, Ordering::Relaxed);
    }

    /// What to do with a read that met the end: zeroes, unless it moved.
    fn at_end(&self) -> Result<()> {
        let now = self.current_len()?;
        let before = self.known_len.load(Ordering::Relaxed);
        if now < before {
            return Err(Error::Truncated { name: self.name.clone(), before, now });
        }
        Ok(())
    }

    fn read_plain(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        while !buf.is_empty() {
            match self.file.read_at(buf, offset) {
                Ok(0) => {
                    self.at_end()?;
                    buf.fill(0);
                    return Ok(());
                }
                Ok(n) => {
                    buf = &mut buf[n..];
                    offset += n as u64;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.io("read", e)),
            }
        }
        Ok(())
    }

    /// `O_DIRECT` takes aligned buffers and offsets only: go through one.
    fn read_direct(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let start = offset & !(DIRECT_ALIGN - 1);
        let end = (offset + buf.len() as u64).next_multiple_of(DIRECT_ALIGN);
        let mut bounce = AlignedBuffer::new((end - start) as usize);
        self.read_plain(start, bounce.bytes())?;
        let skip = (offset - start) as usize;
        buf.copy_from_slice(&bounce.bytes()[skip..skip + buf.len()]);
        Ok(())
    }

    fn write_direct(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let start = offset & !(DIRECT_ALIGN - 1);
        let end = (offset + buf.len() as u64).next_multiple_of(DIRECT_ALIGN);
        let mut bounce = AlignedBuffer::new((end - start) as usize);
        let whole = start == offset && end == offset + buf.len() as u64;
        if !whole {
            self.read_plain(start, bounce.bytes())?;
        }
        let skip = (offset - start) as usize;
        bounce.bytes()[skip..skip + buf.len()].copy_from_slice(buf);
        self.file.write_all_at(bounce.bytes(), start).map_err(|e| self.io("write to", e))
    }

    fn fallocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> Result<bool> {
        loop {
            match rustix::fs::fallocate(&self.file, flags, offset, len) {
                Ok(()) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(
                    rustix::io::Errno::OPNOTSUPP
                    | rustix::io::Errno::NODEV
                    | rustix::io::Errno::NOSYS
                    | rustix::io::Errno::INVAL,
                ) => return Ok(false),
                Err(e) => return Err(self.io("allocate in", e)),
            }
        }
    }
}

const DIRECT_ALIGN: u64 = 4096;

/// Bytes that start at a multiple of what `O_DIRECT` wants.
struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    fn new(len: usize) -> Self {
        let bytes = vec![0; len + DIRECT_ALIGN as usize];
        let start = bytes.as_ptr().align_offset(DIRECT_ALIGN as usize);
        Self { bytes, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

impl Storage for FileStorage {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> Result<u64> {
        self.current_len()
    }

    fn writable(&self) -> bool {
        self.writable
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let aligned = buf.as_ptr() as u64 | offset | buf.len() as u64;
        if self.direct && !aligned.is_multiple_of(DIRECT_ALIGN) {
            return self.read_direct(offset, buf);
        }
        self.read_plain(offset, buf)
    }

    /// What the page cache has. `O_DIRECT` goes past it, and waits for the disk.
    fn read_at_hand(&self, offset: u64, stretches: &mut [io::IoSliceMut<'_>]) -> Result<bool> {
        if self.direct {
            return Ok(false);
        }
        let length = stretches.iter().map(|stretch| stretch.len()).sum();
        let read = rustix::io::preadv2(&self.file, stretches, offset, ReadWriteFlags::NOWAIT);
        // Whatever else it says, the long way finds out again.
        Ok(read == Ok(length))
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        if !self.writable {
            return Err(Error::ReadOnly { name: self.name.clone() });
        }
        let aligned = buf.as_ptr() as u64 | offset | buf.len() as u64;
        if self.direct && !aligned.is_multiple_of(DIRECT_ALIGN) {
            self.write_direct(offset, buf)?;
        } else {
            self.file.write_all_at(buf, offset).map_err(|e| self.io("write to", e))?;
        }
        self.grew_to(offset + buf.len() as u64);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        if !self.writable {
            return Err(Error::ReadOnly { name: self.name.clone() });
        }
        if len == 0 {
            return Ok(());
        }
        let Some(end) = offset.checked_add(len) else {
            return Err(self.io("write to", io::Error::from_raw_os_error(libc::EFBIG)));
        };
        if !self.block_device && offset >= self.current_len()? && unmap {
            self.file.set_len(end).map_err(|e| self.io("grow", e))?;
            self.grew_to(end);
            return Ok(());
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let flags = if unmap { punch } else { FallocateFlags::ZERO_RANGE };
        if self.can_punch.load(Ordering::Relaxed) {
            if self.fallocate(flags, offset, len)? {
                if !self.block_device && self.current_len()? < end {
                    self.file.set_len(end).map_err(|e| self.io("grow", e))?;
                }
                self.grew_to(end);
                return Ok(());
            }
            self.can_punch.store(false, Ordering::Relaxed);
        }
        let mut at = offset;
        while at < end {
            let take = (end - at).min(ZEROES.len() as u64);
            self.write_at(at, &ZEROES[..take as usize])?;
            at += take;
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        if !self.writable || len == 0 || !self.can_punch.load(Ordering::Relaxed) {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if !self.fallocate(flags, offset, len)? {
            self.can_punch.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        if !self.writable || self.never_flush {
            return Ok(());
        }
        self.file.sync_data().map_err(|e| self.io("flush", e))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if self.block_device {
            let have = self.current_len()?;
            if len > have {
                let source = io::Error::from_raw_os_error(libc::ENOSPC);
                return Err(self.io("grow the device", source));
            }
            return Ok(());
        }
        self.file.set_len(len).map_err(|e| self.io("resize", e))?;
        self.known_len.store(len, Ordering::Relaxed);
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        if !self.block_device && len > 0 {
            self.fallocate(FallocateFlags::empty(), offset, len)?;
            self.grew_to(self.current_len()?);
        }
        Ok(())
    }

    fn run_at(&self, offset: u64) -> Result<StorageRun> {
        let len = self.current_len()?;
        let rest = len.saturating_sub(offset);
        if self.block_device || rest == 0 {
            return Ok(StorageRun { len: rest, data: true });
        }
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(at) if at > offset => Ok(StorageRun { len: at - offset, data: false }),
            Ok(_) => {
                let hole =
                    rustix::fs::seek(&self.file, SeekFrom::Hole(offset)).unwrap_or(len).min(len);
                Ok(StorageRun { len: hole.saturating_sub(offset).max(1).min(rest), data: true })
            }
            Err(rustix::io::Errno::NXIO) => Ok(StorageRun { len: rest, data: false }),
            Err(_) => Ok(StorageRun { len: rest, data: true }),
        }
    }

    fn allocated_bytes(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(|e| self.io("stat", e))?.blocks() * 512)
    }

    fn block_size(&self) -> u32 {
        if self.direct { DIRECT_ALIGN as u32 } else { 512 }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn write_here(&self, offset: u64, buf: &[u8]) -> Result<bool> {
        if self.direct || !self.writable {
            return Ok(false);
        }
        let takes = *self.takes_ring_writes.get_or_init(|| {
            let parts = [io::IoSlice::new(buf)];
            let asked = rustix::io::pwritev2(&self.file, &parts, offset, ReadWriteFlags::NOWAIT);
            asked != Err(rustix::io::Errno::OPNOTSUPP)
        });
        if !takes {
            self.write_at(offset, buf)?;
        }
        Ok(!takes)
    }

    fn copy_from(
        &self,
        from: &dyn Storage,
        mut from_offset: u64,
        to: u64,
        len: u64,
    ) -> Result<u64> {
        let Some(source) = from.fd() else { return Ok(0) };
        if source.as_raw_fd() == self.file.as_raw_fd() || self.direct {
            return Ok(0);
        }
        let mut at = to;
        let mut left = len;
        while left > 0 {
            let step = left.min(1 << 30) as usize;
            match rustix::fs::copy_file_range(
                source,
                Some(&mut from_offset),
                &self.file,
                Some(&mut at),
                step,
            ) {
                Ok(0) => break,
                Ok(n) => left -= n as u64,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::NOSPC) => {
                    return Err(self.io("write to", rustix::io::Errno::NOSPC));
                }
                Err(_) => break,
            }
        }
        self.grew_to(at);
        Ok(len - left)
    }
}
