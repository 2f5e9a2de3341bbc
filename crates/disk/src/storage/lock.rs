//! Locks that keep two programs from writing one image.
//!
//! Open-file-description locks on the bytes that QEMU uses as well, so that
//! Guise and QEMU keep out of each other's way: a byte from 100 on says "I do
//! this", a byte from 200 on says "nobody else may do this".

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::error::{Error, Result};

const DO: i64 = 100;
const FORBID: i64 = 200;
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// What others may do with an image while it is open here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// A reader tolerates readers; a writer tolerates nobody.
    Safely,
    /// No lock is taken or looked at.
    Freely,
}

/// Held for as long as the image is open.
pub struct FileLock {
    holder: File,
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // A program that another thread starts at this moment has the description too, until
        // it is executed: closing ours would leave the lock to it for that long.
        let mut all = region(libc::F_UNLCK as i16, DO);
        all.l_len = FORBID - DO + RESIZE + 1;
        // SAFETY: the descriptor is open and `all` outlives the call. Should it fail, the lock
        // goes with the last descriptor.
        unsafe { libc::fcntl(self.holder.as_raw_fd(), libc::F_OFD_SETLK, &all) };
    }
}

impl FileLock {
    /// Locks a file for reading, or for writing.
    pub fn take(file: &File, name: &str, write: bool) -> Result<Self> {
        // A description of its own keeps the lock when `file` is duplicated
        // into rings and children, and drops it when this object goes.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let holder = match std::fs::OpenOptions::new().read(true).open(&path) {
            Ok(holder) => holder,
            Err(_) => file.try_clone().map_err(|e| Error::io("lock", name, e))?,
        };
        let lock = |byte| set(&holder, byte).map_err(|e| Error::io("lock", name, e));
        lock(DO + READ)?;
        if write {
            lock(DO + WRITE)?;
            lock(DO + RESIZE)?;
        }
        lock(FORBID + WRITE)?;
        lock(FORBID + RESIZE)?;
        let held = |byte| held_by_other(&holder, byte).map_err(|e| Error::io("lock", name, e));
        if held(DO + WRITE)? {
            return Err(Error::Locked { name: name.to_owned(), by: "writing" });
        }
        if write && held(FORBID + WRITE)? {
            return Err(Error::Locked { name: name.to_owned(), by: "reading" });
        }
        if held(FORBID + READ)? {
            return Err(Error::Locked { name: name.to_owned(), by: "use by itself alone" });
        }
        Ok(Self { holder })
    }
}

fn region(kind: i16, byte: i64) -> libc::flock {
    // SAFETY: `flock` is plain integers, for which zero is a valid value.
    let mut region: libc::flock = unsafe { std::mem::zeroed() };
    region.l_type = kind;
    region.l_whence = libc::SEEK_SET as i16;
    region.l_start = byte;
    region.l_len = 1;
    region
}

/// Read locks never exclude one another: they are flags that others can see.
fn set(file: &File, byte: i64) -> io::Result<()> {
    let region = region(libc::F_RDLCK as i16, byte);
    // SAFETY: the descriptor is open and `region` outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &region) } {
        -1 => match io::Error::last_os_error() {
            // File systems without locks: nothing to keep, nothing to fear.
            e if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOLCK | libc::ENOSYS)) => {
                Ok(())
            }
            e => Err(e),
        },
        _ => Ok(()),
    }
}

fn held_by_other(file: &File, byte: i64) -> io::Result<bool> {
    let mut region = region(libc::F_WRLCK as i16, byte);
    // SAFETY: the descriptor is open and `region` outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut region) } {
        -1 => match io::Error::last_os_error() {
            e if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOLCK | libc::ENOSYS)) => {
                Ok(false)
            }
            e => Err(e),
        },
        _ => Ok(region.l_type != libc::F_UNLCK as i16),
    }
}

#[cfg(test)]
mod tests;
