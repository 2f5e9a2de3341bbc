//! Descriptors: which survive an exec, standard streams, signals read from
//! one, and the kernel's text files.

use std::fs::File;
use std::io;
use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use super::check;

/// Reads a text file of procfs or a cgroup, at most a mebibyte. Such files tell
/// no size, for which the standard library would start with tiny reads.
pub fn read_text(path: &Path) -> io::Result<String> {
    const USUAL: usize = 8 << 10;
    const MOST: u64 = 1 << 20;
    let mut text = Vec::with_capacity(USUAL);
    File::open(path)?.take(MOST).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Marks every descriptor from `first` on to be closed by the next exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: takes integers.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
    })
    .map(drop)
}

/// Lets one descriptor survive an exec.
pub fn keep_on_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes integers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) }.into()).map(drop)
}

/// Makes standard stream 0, 1 or 2 the given file.
pub fn become_standard(fd: BorrowedFd<'_>, stream: RawFd) -> io::Result<()> {
    // SAFETY: replaces one of the standard streams, which nothing in this crate
    // owns as an OwnedFd.
    check(unsafe { libc::dup2(fd.as_raw_fd(), stream) }.into()).map(drop)
}

/// Moves a descriptor up so that it does not sit among the first `lowest`.
pub fn move_above(fd: OwnedFd, lowest: RawFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() >= lowest {
        return Ok(fd);
    }
    // SAFETY: duplicates; the old one is closed when `fd` is dropped.
    let new = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) }.into())?;
    // SAFETY: the duplicate is fresh.
    Ok(unsafe { OwnedFd::from_raw_fd(new as RawFd) })
}

/// Blocks the signals given and returns a descriptor that reads them.
pub fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: sigset_t is plain data that sigemptyset initialises.
    let set = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        set
    };
    // SAFETY: the set is initialised; the old mask is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) }.into())?;
    // SAFETY: the set is initialised; a fresh descriptor is returned.
    let fd =
        check(unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) }.into())?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The next signal read from such a descriptor, if one waits.
pub fn next_signal(fd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(fd, &mut info) {
        Ok(n) if n == info.len() => {
            let [a, b, c, d, ..] = info;
            Ok(Some(u32::from_ne_bytes([a, b, c, d]) as i32))
        }
        Ok(_) => Ok(None),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Restores what a program expects at its start: no signal blocked, none
/// ignored (the Rust runtime ignores SIGPIPE).
pub fn reset_signals() {
    // SAFETY: an empty set is a valid mask, SIG_DFL a valid disposition; neither
    // refers to memory.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
        for signal in 1..=64 {
            if signal != libc::SIGKILL && signal != libc::SIGSTOP && !(32..34).contains(&signal) {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}
