//! System calls that need unsafe code.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::user::User;

/// A descriptor that is readable when a child has ended, and never anything else.
pub struct ChildSignals(OwnedFd);

impl ChildSignals {
    /// Children get an empty signal mask from the standard library when they start.
    pub fn open() -> io::Result<Self> {
        // SAFETY: an all-zero `sigset_t` is a valid one, and the calls only write to it.
        let fd = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGCHLD);
            if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        owned(fd).map(ChildSignals)
    }

    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Takes the signals that are there; children are then looked for.
    pub fn clear(&self) {
        let mut buffer = [0; size_of::<libc::signalfd_siginfo>()];
        while rustix::io::read(&self.0, &mut buffer).is_ok_and(|length| length > 0) {}
    }
}

/// Connects to a vsock port of the host.
pub fn connect_to_host(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is handed over.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    let socket = owned(fd)?;
    // SAFETY: all-zero is a valid address structure.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_port = port;
    address.svm_cid = libc::VMADDR_CID_HOST;
    // SAFETY: the address is of the size that is stated and lives through the call.
    let result = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_vm>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

/// Lets the command begin as a user, in a session of its own, with its standard input as
/// terminal where it has one, in the control group whose list of processes is given, and
/// with no signal blocked or ignored, as a shell would start it.
pub fn prepare(command: &mut Command, user: &User, terminal: bool, cgroup: Option<BorrowedFd<'_>>) {
    let (uid, gid, groups) = (user.uid, user.gid, user.groups.clone());
    let cgroup = cgroup.map(|fd| fd.as_raw_fd());
    let prepare = move || {
        if let Some(cgroup) = cgroup {
            // SAFETY: the list of processes stays open as long as this program runs.
            let cgroup = unsafe { BorrowedFd::borrow_raw(cgroup) };
            rustix::io::write(cgroup, b"0")?;
        }
        rustix::process::setsid()?;
        if terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        // A user who may not change its groups runs the command as itself.
        if rustix::process::geteuid() != uid || rustix::process::geteuid().is_root() {
            rustix::thread::set_thread_groups(&groups)?;
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        }
        forget_signals()
    };
    // SAFETY: between fork and exec the closure makes plain system calls only. It takes no
    // locks and no memory, and this program has one thread.
    unsafe { command.pre_exec(prepare) };
}

/// Takes back what this program, or who started it, does with signals.
fn forget_signals() -> io::Result<()> {
    // The C library keeps two signals for itself, which its own call does not touch: the
    // kernel's is used, whose structure of four words is all zeros for the default action.
    let default = [0_u64; 4];
    for signal in 1..=64 {
        // SAFETY: the kernel only reads the structure, which lives through the call. The
        // default action is no code of this program. It is refused for the signals that
        // have no other.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0_usize, 8_usize)
        };
    }
    // SAFETY: the set lives through the calls, of which the first makes it valid.
    let result = unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Kills every process that this one may kill, but not itself.
pub fn kill_everybody_else() {
    // SAFETY: no memory is handed over. Where there is nobody, there is nothing to do.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
