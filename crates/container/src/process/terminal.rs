//! The container's terminal: made inside, its master handed out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::error::{Context, Error, Result};
use crate::rootfs::path::RootDir;
use crate::spec::ConsoleSize;
use crate::sys::{files, mount, terminal};

/// A pseudo-terminal of the container's own devpts.
pub struct Terminal {
    pub master: OwnedFd,
    slave: OwnedFd,
}

impl Terminal {
    /// Makes one, by the container's `/dev/ptmx`, which must be the real device:
    /// a file or a link in its place is an attempt to be handed another one.
    pub fn open(root: &RootDir, size: Option<ConsoleSize>) -> Result<Self> {
        let master = root
            .open("/dev/pts/ptmx", OFlags::RDWR | OFlags::NOCTTY, Mode::empty())
            .or_else(|_| root.open("/dev/ptmx", OFlags::RDWR | OFlags::NOCTTY, Mode::empty()))
            .during(|| "open /dev/ptmx of the container (is a devpts mounted on /dev/pts?)")?;
        let stat = rustix::fs::fstat(&master).during(|| "look at /dev/ptmx")?;
        if rustix::fs::major(stat.st_rdev) != 5 || rustix::fs::minor(stat.st_rdev) != 2 {
            return Err(Error::config("process.terminal", "/dev/ptmx is not a terminal device"));
        }
        let slave = terminal::open_peer(master.as_fd()).during(|| "open the terminal")?;
        if let Some(size) = size.filter(|s| s.height > 0 || s.width > 0) {
            terminal::set_size(slave.as_fd(), size.height, size.width)
                .during(|| "set the terminal's size")?;
        }
        Ok(Terminal { master, slave })
    }

    /// The name under which the container sees it.
    pub fn name(&self) -> String {
        let number = terminal::number(self.master.as_fd()).unwrap_or(0);
        format!("/dev/pts/{number}")
    }

    /// Puts it onto `/dev/console`, by descriptor on both sides.
    pub fn mount_console(&self, root: &RootDir) -> Result<()> {
        let place = root.make_file("/dev/console")?;
        let tree =
            mount::clone_tree(self.slave.as_fd(), false).during(|| "take the terminal's node")?;
        mount::attach(tree.as_fd(), place.as_fd()).during(|| "mount /dev/console")
    }

    /// Gives it to the user, makes it the session's terminal and the standard
    /// streams.
    pub fn take(self, uid: u32) -> Result<()> {
        let user = rustix::fs::Uid::from_raw(uid);
        // Fails on an id that is not mapped, where there is nothing to give.
        let _ = rustix::fs::fchown(&self.slave, Some(user), None);
        terminal::make_controlling(self.slave.as_fd())
            .during(|| "make the terminal the controlling one")?;
        for stream in 0..3 {
            files::become_standard(self.slave.as_fd(), stream)
                .during(|| "put the terminal on the standard streams")?;
        }
        Ok(())
    }
}

/// Gives inherited pipes on the standard streams to the program's user, so
/// that it can open `/dev/stdout` again. Devices stay as they are.
pub fn own_standard_streams(uid: u32) {
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        own_stream(stream, uid);
    }
}

fn own_stream(stream: BorrowedFd<'_>, uid: u32) {
    use rustix::fs::FileType;
    let Ok(stat) = rustix::fs::fstat(stream) else { return };
    let kind = FileType::from_raw_mode(stat.st_mode);
    if stat.st_uid != uid && matches!(kind, FileType::Fifo | FileType::Socket) {
        // An id that is not mapped cannot own it; the program then has the
        // descriptor and nothing more.
        let _ = rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(uid)), None);
    }
}
