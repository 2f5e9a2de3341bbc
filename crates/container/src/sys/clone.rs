//! Making processes: `clone3` with namespaces, a pidfd and a cgroup at once.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::check;

/// The flag's bit does not fit the C integer that libc gives it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of the fork this is.
pub enum Side {
    Parent(Child),
    Child,
}

/// A child process, held by descriptor so that its id cannot be confused with
/// a later process's.
pub struct Child {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// Forks into new namespaces (`CLONE_NEW*`), optionally straight into a v2
/// cgroup, optionally as a sibling (`CLONE_PARENT`).
///
/// # Safety
///
/// The process must have one thread: the child is a copy with only the calling
/// thread, and goes on to allocate and run arbitrary code.
pub unsafe fn fork(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Side> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain integers, for which all-zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    if flags & libc::CLONE_PARENT as u64 == 0 {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: args outlives the call and names no stack, so this is a fork; the
    // caller vouches for there being one thread.
    let pid = check(unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>())
    })?;
    if pid == 0 {
        return Ok(Side::Child);
    }
    // SAFETY: the kernel stored a fresh descriptor in pidfd, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Side::Parent(Child { pid: pid as i32, pidfd }))
}

impl Child {
    /// Takes over a process that another made as our child.
    pub fn adopt(pid: i32) -> io::Result<Self> {
        Ok(Child { pid, pidfd: open_pidfd(pid)? })
    }

    /// Waits until the process ends; the status is as shells give it, 128 and
    /// the signal's number for a death by signal.
    pub fn wait(&self) -> io::Result<i32> {
        loop {
            match wait_pidfd(&self.pidfd, 0) {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The status if the process has ended.
    pub fn try_wait(&self) -> io::Result<Option<i32>> {
        wait_pidfd(&self.pidfd, libc::WNOHANG)
    }

    /// Does nothing more but wait for its end, with nothing open, and ends as it did.
    pub fn stand_for_it(self) -> ! {
        close_all_but(0, &mut [self.pidfd.as_raw_fd()]);
        exit_now(self.wait().unwrap_or(1))
    }

    /// Ends the process and reaps it.
    pub fn kill(&self) {
        let _ = signal_pidfd(&self.pidfd, libc::SIGKILL);
        let _ = self.wait();
    }
}

/// Closes all descriptors from `first` on but those that are `kept`. Nothing of this process
/// may use the others any more.
pub fn close_all_but(first: RawFd, kept: &mut [RawFd]) {
    kept.sort_unstable();
    let mut next = first.cast_unsigned();
    for kept in kept.iter().map(|fd| fd.cast_unsigned()).chain([u32::MAX]) {
        if next < kept {
            // SAFETY: the caller vouches for nobody using them.
            unsafe { libc::syscall(libc::SYS_close_range, next, kept - 1, 0) };
        }
        next = next.max(kept.saturating_add(1));
    }
}

/// A descriptor of a process.
pub fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes integers and returns a fresh descriptor.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: as above: nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends a signal to the process behind a descriptor.
pub fn signal_pidfd(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: integers and a null siginfo, which the call allows.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

fn wait_pidfd(pidfd: &OwnedFd, options: i32) -> io::Result<Option<i32>> {
    // SAFETY: siginfo_t is plain data, for which all-zero is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: info is writable for the whole call.
    let result = unsafe {
        libc::waitid(
            libc::P_PIDFD,
            pidfd.as_raw_fd() as libc::id_t,
            &mut info,
            libc::WEXITED | options,
        )
    };
    check(result.into())?;
    // SAFETY: waitid filled in the fields of a child's status, or left zeros.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok(match (pid, info.si_code) {
        (0, _) => None,
        (_, libc::CLD_EXITED) => Some(status),
        _ => Some(128 + status),
    })
}

/// Makes new namespaces for this process.
pub fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: takes flags only.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// Joins a namespace, or with a pidfd all the kinds given of that process.
pub fn setns(fd: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    // SAFETY: takes a descriptor and flags only.
    check(unsafe { libc::setns(fd.as_raw_fd(), flags) }.into()).map(drop)
}

/// Ends the process at once, running nothing that the parent registered.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: never returns; touches no memory.
    unsafe { libc::_exit(status) }
}
