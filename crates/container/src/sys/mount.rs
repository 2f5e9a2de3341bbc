//! The mount calls, by descriptor: trees are cloned, changed while detached and
//! then moved to a place that was resolved beforehand, so that no path a
//! container controls is walked twice.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::check;

pub const ATTR_RDONLY: u64 = 0x1;
pub const ATTR_NOSUID: u64 = 0x2;
pub const ATTR_NODEV: u64 = 0x4;
pub const ATTR_NOEXEC: u64 = 0x8;
/// The bits that say how access times are kept; relatime is none of them.
pub const ATTR_ATIME: u64 = 0x70;
pub const ATTR_NOATIME: u64 = 0x10;
pub const ATTR_STRICTATIME: u64 = 0x20;
pub const ATTR_NODIRATIME: u64 = 0x80;
pub const ATTR_IDMAP: u64 = 0x10_0000;
pub const ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// What to change on a mount.
#[derive(Default, Clone, Copy)]
pub struct Change<'a> {
    pub set: u64,
    pub clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE` or 0.
    pub propagation: u64,
    pub userns: Option<BorrowedFd<'a>>,
    pub recursive: bool,
}

/// Changes the mount a descriptor stands at.
pub fn set_attributes(mount: BorrowedFd<'_>, change: Change<'_>) -> io::Result<()> {
    let mut attr = MountAttr {
        set: change.set,
        clear: change.clear,
        propagation: change.propagation,
        userns: 0,
    };
    if attr.set & ATTR_ATIME != 0 {
        attr.clear |= ATTR_ATIME;
    }
    if let Some(userns) = change.userns {
        attr.set |= ATTR_IDMAP;
        attr.userns = userns.as_raw_fd() as u64;
    }
    let mut flags = libc::AT_EMPTY_PATH;
    if change.recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is an empty NUL-terminated string, the structure has the
    // size given; both outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw mut attr,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// A detached copy of the mount at a descriptor.
pub fn clone_tree(at: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(at, c"", flags)?)
}

/// A detached copy of the mount at a path of the runtime's own namespace.
pub fn clone_tree_at(path: &str, recursive: bool, follow: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if !follow {
        flags |= OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    }
    Ok(open_tree(CWD, path, flags)?)
}

/// Puts a detached tree onto an entry of a directory that nobody else changes.
pub fn attach_at(tree: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    Ok(move_mount(tree, c"", directory, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Puts a detached tree onto the place a descriptor stands at.
pub fn attach(tree: BorrowedFd<'_>, onto: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_mount(
        tree,
        c"",
        onto,
        c"",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )?)
}
