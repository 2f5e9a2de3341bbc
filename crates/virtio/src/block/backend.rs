//! What stands behind a disk on the host.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use guise_engine::memory::WriteTracker;
use guise_engine::memory::vm_memory::VolatileSlice;
use guise_engine::memory::vm_memory::bitmap::Bitmap;
use rustix::fs::FallocateFlags;

/// A piece of guest memory for data.
pub type Buffer<'a> = VolatileSlice<'a, WriteTracker>;

/// A disk's contents. Accesses come from several threads at once. Those that were
/// acknowledged survive the end of the process; after a flush, the end of the host.
pub trait BlockBackend: Send + Sync {
    /// In bytes.
    fn size(&self) -> u64;
    /// Fills all buffers from `offset` on. The range lies inside of the disk.
    fn read(&self, offset: u64, buffers: &[Buffer<'_>]) -> io::Result<()>;
    /// Writes all buffers from `offset` on. The range lies inside of the disk.
    fn write(&self, offset: u64, buffers: &[Buffer<'_>]) -> io::Result<()>;
    fn flush(&self) -> io::Result<()>;
    /// Contents may be forgotten.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Contents become zeros; where `unmap`, their space may be given back.
    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()>;
}

/// An image file without a format, or a block device.
pub struct RawFile {
    file: File,
    size: u64,
}

/// The most pieces that one system call takes.
const LARGEST_VECTOR: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    FromFile,
    ToFile,
}

impl RawFile {
    /// The size is the file's now; a device's is where its end is.
    pub fn new(mut file: File) -> io::Result<Self> {
        let size = io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
        Ok(Self { file, size })
    }

    fn transfer(
        &self,
        direction: Direction,
        mut offset: u64,
        buffers: &[Buffer<'_>],
    ) -> io::Result<()> {
        for buffers in buffers.chunks(LARGEST_VECTOR) {
            let guards: Vec<_> = buffers.iter().map(|buffer| buffer.ptr_guard_mut()).collect();
            let mut vector: Vec<_> = guards
                .iter()
                .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
                .collect();
            let mut rest = &mut vector[..];
            while let Some(first) = rest.first_mut() {
                if first.iov_len == 0 {
                    rest = &mut rest[1..];
                    continue;
                }
                let moved = self.transfer_some(direction, offset, rest)?;
                offset += moved as u64;
                rest = advance(rest, moved);
            }
            if direction == Direction::FromFile {
                for buffer in buffers {
                    buffer.bitmap().mark_dirty(0, buffer.len());
                }
            }
        }
        Ok(())
    }

    /// One system call, which may move less than all.
    fn transfer_some(
        &self,
        direction: Direction,
        offset: u64,
        vector: &[libc::iovec],
    ) -> io::Result<usize> {
        let (fd, count) = (self.file.as_raw_fd(), vector.len() as libc::c_int);
        loop {
            // SAFETY: each entry is a slice of guest memory that its guard in `transfer`
            // keeps mapped; guest memory is shared with the guest anyway, and nobody has
            // Rust references into it.
            let moved = unsafe {
                match direction {
                    Direction::FromFile => {
                        libc::preadv64(fd, vector.as_ptr(), count, offset as i64)
                    }
                    Direction::ToFile => libc::pwritev64(fd, vector.as_ptr(), count, offset as i64),
                }
            };
            match usize::try_from(moved) {
                // The file became shorter than the disk.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(moved) => return Ok(moved),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn write_plain_zeroes(&self, mut offset: u64, mut length: u64) -> io::Result<()> {
        let zeroes = vec![0; length.min(1 << 20) as usize];
        while length > 0 {
            let part = length.min(zeroes.len() as u64);
            std::os::unix::fs::FileExt::write_all_at(&self.file, &zeroes[..part as usize], offset)?;
            offset += part;
            length -= part;
        }
        Ok(())
    }
}

/// What is left of a vector after so many bytes.
fn advance(mut vector: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    while let Some(first) = vector.first_mut() {
        if moved < first.iov_len {
            first.iov_base = first.iov_base.wrapping_byte_add(moved);
            first.iov_len -= moved;
            break;
        }
        moved -= first.iov_len;
        vector = &mut vector[1..];
    }
    vector
}

fn unsupported(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    matches!(error, Errno::OPNOTSUPP | Errno::NODEV | Errno::NOSYS | Errno::INVAL)
}

impl BlockBackend for RawFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, buffers: &[Buffer<'_>]) -> io::Result<()> {
        self.transfer(Direction::FromFile, offset, buffers)
    }

    fn write(&self, offset: u64, buffers: &[Buffer<'_>]) -> io::Result<()> {
        self.transfer(Direction::ToFile, offset, buffers)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, offset, length) {
            // Discarding is advice: where it cannot be had, nothing happens.
            Err(error) if unsupported(error) => Ok(()),
            result => result.map_err(io::Error::from),
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        let flags = if unmap {
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
        } else {
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE
        };
        match rustix::fs::fallocate(&self.file, flags, offset, length) {
            Err(error) if unsupported(error) => self.write_plain_zeroes(offset, length),
            result => result.map_err(io::Error::from),
        }
    }
}
