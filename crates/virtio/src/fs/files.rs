//! Open files: reading, writing, space.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Arc, PoisonError};

use rustix::fs::{
    CWD, FallocateFlags, FileType, Mode, OFlags, SeekFrom, copy_file_range, fallocate, fdatasync,
    fsync, openat, seek, syncfs,
};
use rustix::io::Errno;

use super::Cache;
use super::handles::Handle;
use super::inodes::{Inode, Version, attributes_of, path_of};
use super::locks::Owner;
use super::protocol::{Answer, Arguments, Header};
use super::server::{Data, Server};
use crate::queue::QueueError;
use crate::queue::chain::Segment;
use crate::queue::host::{mark, stretches};

/// The guest's pages of the file are still good.
const KEEP_CACHE: u32 = 1 << 1;
/// The data come from pages that the guest changed some time ago.
const FROM_CACHE: u32 = 1 << 0;
/// Only the data are to be made safe.
const DATA_ONLY: u32 = 1;
/// Pieces of memory that a system call takes at once.
const MOST_PIECES: usize = 1024;

fn broken(error: QueueError) -> Errno {
    tracing::debug!(%error, "a request's data are not in guest memory");
    Errno::FAULT
}

impl Server {
    /// Opens the file behind a number. Devices and the like are never opened: they would
    /// be the host's.
    pub fn reopen(&self, inode: &Arc<Inode>, flags: OFlags) -> Result<OwnedFd, Errno> {
        match inode.kind {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        let fd = self.inodes.descriptor(inode)?;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        openat(CWD, path_of(&fd), flags, Mode::empty())
    }

    /// Opens a file with the guest's flags. Returns its number, and what the guest may do.
    pub fn open_file(&self, inode: &Arc<Inode>, flags: u32) -> Result<(u64, u32), Errno> {
        let wanted = OFlags::from_bits_retain(flags);
        let writes = wanted.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC);
        if writes {
            self.may_change()?;
        }
        let fd = self.reopen(inode, passed_flags(flags))?;
        self.keep_open(inode, fd, flags)
    }

    pub fn keep_open(&self, inode: &Inode, fd: OwnedFd, flags: u32) -> Result<(u64, u32), Errno> {
        let options = self.cache_options(inode, &fd)?;
        let append = OFlags::from_bits_retain(flags).contains(OFlags::APPEND);
        Ok((self.handles.add(Handle::File { fd, append })?, options))
    }

    /// Whether the guest's pages are those of the file as it is now.
    fn cache_options(&self, inode: &Inode, fd: &OwnedFd) -> Result<u32, Errno> {
        match self.cache {
            Cache::Always => return Ok(KEEP_CACHE),
            Cache::Never => return Ok(0),
            Cache::Auto => {}
        }
        let now = attributes_of(fd)?;
        let changed = now.stx_mtime;
        let version = Version { size: now.stx_size, changed: (changed.tv_sec, changed.tv_nsec) };
        let mut seen = inode.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let same = seen.replace(version) == Some(version);
        Ok(if same { KEEP_CACHE } else { 0 })
    }

    pub fn open(&self, header: &Header, arguments: &mut Arguments) -> Result<Answer, Errno> {
        let (handle, options) = self.open_file(&self.node(header)?, arguments.word()?)?;
        Ok(Answer::default().long(handle).word(options).word(0))
    }

    pub fn release(&self, arguments: &mut Arguments) -> Result<(), Errno> {
        self.handles.remove(arguments.long()?);
        Ok(())
    }

    /// Reads into guest memory. Returns how many bytes there were.
    pub fn read(&self, arguments: &mut Arguments, data: &Data) -> Result<u64, Errno> {
        let handle = self.handles.get(arguments.long()?)?;
        let (offset, size) = (arguments.long()?, arguments.word()?);
        let result = transfer(handle.file()?, &data.stretches(size.into())?, offset, Way::FromFile);
        mark(data.memory, data.front(size.into()));
        result
    }

    pub fn write(
        &self,
        header: &Header,
        arguments: &mut Arguments,
        data: &Data,
    ) -> Result<Answer, Errno> {
        let handle = self.handles.get(arguments.long()?)?;
        let (offset, size, flags) = (arguments.long()?, arguments.word()?, arguments.word()?);
        let pieces = data.stretches(size.into())?;
        let written = match &*handle {
            // Pages go where they belong, also in a file that is otherwise appended to.
            Handle::File { append: true, .. } if flags & FROM_CACHE != 0 => {
                let file = self.reopen(&self.node(header)?, OFlags::WRONLY)?;
                transfer(&file, &pieces, offset, Way::ToFile)?
            }
            handle => transfer(handle.file()?, &pieces, offset, Way::ToFile)?,
        };
        Ok(Answer::default().word(written as u32).word(0))
    }

    /// One of the descriptors of an open file is closed in the guest.
    pub fn flush(&self, header: &Header, arguments: &mut Arguments) -> Result<(), Errno> {
        arguments.skip(16)?;
        let owner = Owner(arguments.long()?);
        self.node(header)?.lock_owners.release(owner);
        Ok(())
    }

    pub fn sync(&self, arguments: &mut Arguments) -> Result<(), Errno> {
        let handle = self.handles.get(arguments.long()?)?;
        match arguments.word()? & DATA_ONLY {
            0 => fsync(handle.fd()),
            _ => fdatasync(handle.fd()),
        }
    }

    pub fn sync_all(&self, header: &Header) -> Result<(), Errno> {
        let directory = self.inodes.descriptor(&self.node(header)?)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        syncfs(openat(directory, c".", flags, Mode::empty())?)
    }

    pub fn allocate(&self, arguments: &mut Arguments) -> Result<(), Errno> {
        let handle = self.handles.get(arguments.long()?)?;
        let (offset, length) = (arguments.long()?, arguments.long()?);
        let mode = FallocateFlags::from_bits_retain(arguments.word()?);
        fallocate(handle.file()?, mode, offset, length)
    }

    pub fn seek(&self, arguments: &mut Arguments) -> Result<Answer, Errno> {
        let handle = self.handles.get(arguments.long()?)?;
        let (offset, whence) = (arguments.long()?, arguments.word()?);
        let place = match whence {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            // The guest counts positions itself.
            _ => return Err(Errno::INVAL),
        };
        Ok(Answer::default().long(seek(handle.file()?, place)?))
    }

    pub fn copy(&self, arguments: &mut Arguments) -> Result<Answer, Errno> {
        let from = self.handles.get(arguments.long()?)?;
        let mut from_offset = arguments.long()?;
        arguments.skip(8)?;
        let to = self.handles.get(arguments.long()?)?;
        let (mut to_offset, length) = (arguments.long()?, arguments.long()?);
        // A signal does not get through meanwhile, so it is done in parts.
        let length = length.min(64 << 20) as usize;
        let (offset, to_offset) = (Some(&mut from_offset), Some(&mut to_offset));
        let copied = copy_file_range(from.file()?, offset, to.file()?, to_offset, length)?;
        Ok(Answer::default().word(copied as u32).word(0))
    }
}

/// Of the guest's flags those that mean something to the host's kernel.
pub fn passed_flags(flags: u32) -> OFlags {
    let passed = OFlags::RWMODE | OFlags::APPEND | OFlags::TRUNC | OFlags::SYNC | OFlags::DSYNC;
    OFlags::from_bits_retain(flags) & passed
}

impl Data<'_> {
    /// The first bytes, as pieces.
    fn front(&self, length: u64) -> impl Iterator<Item = Segment> {
        let mut left = length;
        self.segments.iter().map_while(move |segment| {
            let length = u64::from(segment.length).min(left);
            let ended = left == 0;
            left -= length;
            (!ended).then_some(Segment { length: length as u32, ..*segment })
        })
    }

    /// Where the first bytes are in this process.
    fn stretches(&self, length: u64) -> Result<Vec<libc::iovec>, Errno> {
        let mut list = Vec::with_capacity(self.segments.len());
        stretches(self.memory, self.front(length), &mut list).map_err(broken)?;
        Ok(list)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    FromFile,
    ToFile,
}

/// Moves data between a file and memory until there is no more. Returns how many bytes.
fn transfer(file: &OwnedFd, pieces: &[libc::iovec], offset: u64, way: Way) -> Result<u64, Errno> {
    let mut done = 0_u64;
    for batch in pieces.chunks(MOST_PIECES) {
        let wanted: u64 = batch.iter().map(|piece| piece.iov_len as u64).sum();
        let at = offset.checked_add(done).and_then(|at| i64::try_from(at).ok());
        let at = at.ok_or(Errno::INVAL)?;
        let moved = loop {
            let (fd, first, count) = (file.as_raw_fd(), batch.as_ptr(), batch.len() as i32);
            // SAFETY: the pieces lie in guest memory, which the queue of the request holds
            // while this runs. The guest may change them meanwhile, and gets what it
            // deserves; nothing here looks at them.
            let moved = unsafe {
                match way {
                    Way::FromFile => libc::preadv(fd, first, count, at),
                    Way::ToFile => libc::pwritev(fd, first, count, at),
                }
            };
            match (moved, io::Error::last_os_error()) {
                (0.., _) => break moved as u64,
                (_, error) if error.kind() == io::ErrorKind::Interrupted => {}
                (_, _) if done > 0 => return Ok(done),
                (_, error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
            }
        };
        done += moved;
        if moved < wanted {
            break;
        }
    }
    Ok(done)
}
