//! Loading a seccomp filter.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use super::check;

/// One instruction of a classic BPF program, as the kernel lays it out.
pub type Instruction = libc::sock_filter;

/// Installs a filter on the calling thread; with the listener flag the
/// descriptor that reports system calls is returned.
pub fn load(program: &[Instruction], flags: u64) -> io::Result<Option<OwnedFd>> {
    let length = u16::try_from(program.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the filter is too long"))?;
    let fprog = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program outlives the call, which only reads it.
    let value = check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const fprog)
    })?;
    if flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: with this flag the call returns a fresh descriptor.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(value as RawFd) }))
}
