//! The container's view of files: mounts in the order of the configuration,
//! devices, masked and read-only paths, and the change of root.
//!
//! Every path inside the root is resolved by `openat2` below the root's
//! descriptor (`path`), every mount is put onto a descriptor (`sys::mount`), so
//! links that an image brings lead nowhere outside.

pub mod cgroupfs;
pub mod copyup;
pub mod devices;
pub mod idmap;
pub mod mask;
pub mod mounts;
pub mod options;
pub mod path;
pub mod proc;

use std::os::fd::AsFd;

use rustix::fs::CWD;
use rustix::mount::UnmountFlags;

use crate::error::{Context, Error, Result};
use crate::spec::Spec;
use crate::sys::mount::{self, Change};
use path::RootDir;

/// Makes the mount namespace the container's: mount events of the host come in
/// as the configuration says, none go out, and the root is a mount of its own.
pub fn prepare(spec: &Spec, rootfs: &str) -> Result<RootDir> {
    let propagation = match spec.linux.rootfs_propagation.as_deref().filter(|p| !p.is_empty()) {
        None => libc::MS_SLAVE,
        Some(name) => propagation(name)?,
    };
    // The root could not be taken from a tree that cannot be bound.
    let around = if propagation == libc::MS_UNBINDABLE { libc::MS_PRIVATE } else { propagation };
    let all = Change { propagation: around, recursive: true, ..Change::default() };
    let slash = path::open_host("/").during(|| "open /")?;
    mount::set_attributes(slash.as_fd(), all).during(|| "set the propagation of /")?;
    let tree = mount::clone_tree_at(rootfs, true, true)
        .during(|| format!("take the root file system {rootfs}"))?;
    if propagation == libc::MS_SHARED || propagation == libc::MS_UNBINDABLE {
        // What is mounted below the root must not appear where the root came
        // from; the wanted propagation is set once the root is "/".
        let change = Change { propagation: libc::MS_PRIVATE, recursive: true, ..Change::default() };
        mount::set_attributes(tree.as_fd(), change).during(|| "make the root private")?;
        make_parent_private(rootfs)?;
    }
    rustix::mount::move_mount(
        &tree,
        c"",
        CWD,
        rootfs,
        rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .during(|| format!("mount the root file system {rootfs}"))?;
    Ok(RootDir::new(tree))
}

/// Makes the container's root the root of this process and lets go of the old
/// one.
pub fn change_root(root: &RootDir, spec: &Spec, how: ChangeRoot) -> Result<()> {
    rustix::process::fchdir(root.as_fd()).during(|| "enter the root file system")?;
    match how {
        ChangeRoot::Pivot => {
            rustix::process::pivot_root(c".", c".").during(
                || "pivot_root (a root file system on the host's initial ramfs needs --no-pivot)",
            )?;
            // The old root lies on top of the new one now; its events must not
            // travel back while it is taken off.
            let slash = path::open_host(".").during(|| "open the old root")?;
            let change =
                Change { propagation: libc::MS_SLAVE, recursive: true, ..Change::default() };
            // Refused where the old root's mounts are locked, which keeps their
            // events in as well.
            let _ = mount::set_attributes(slash.as_fd(), change);
            drop(slash);
            rustix::mount::unmount(c".", UnmountFlags::DETACH)
                .during(|| "take off the old root")?;
        }
        ChangeRoot::Move => {
            rustix::mount::mount_move(c".", c"/").during(|| "move the root to /")?;
            rustix::process::chroot(c".").during(|| "chroot")?;
        }
        ChangeRoot::Chroot => rustix::process::chroot(c".").during(|| "chroot")?,
    }
    rustix::process::chdir(c"/").during(|| "enter /")?;
    if let Some(name) = spec.linux.rootfs_propagation.as_deref().filter(|p| !p.is_empty())
        && how != ChangeRoot::Chroot
    {
        let slash = path::open_host("/").during(|| "open /")?;
        let recursive = name.starts_with('r');
        let change = Change { propagation: propagation(name)?, recursive, ..Change::default() };
        mount::set_attributes(slash.as_fd(), change).during(|| "set the root's propagation")?;
    }
    Ok(())
}

/// How the root changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeRoot {
    /// `pivot_root`, which leaves no way back.
    Pivot,
    /// Moving the mount, for roots on an initial ramfs.
    Move,
    /// Without a mount namespace of its own.
    Chroot,
}

/// The kernel's flag for a propagation by name.
pub fn propagation(name: &str) -> Result<u64> {
    match name.strip_prefix('r').unwrap_or(name) {
        "shared" => Ok(libc::MS_SHARED),
        "slave" => Ok(libc::MS_SLAVE),
        "private" => Ok(libc::MS_PRIVATE),
        "unbindable" => Ok(libc::MS_UNBINDABLE),
        _ => Err(Error::config("linux.rootfsPropagation", format!("{name:?} is not known"))),
    }
}

/// Makes the mount private that a directory lies on.
fn make_parent_private(rootfs: &str) -> Result<()> {
    let mut path = std::path::Path::new(rootfs);
    let private = Change { propagation: libc::MS_PRIVATE, ..Change::default() };
    loop {
        let at = path::open_host(path).during(|| format!("open {}", path.display()))?;
        match mount::set_attributes(at.as_fd(), private) {
            Ok(()) => return Ok(()),
            // Not a mount point: the mount is that of a directory above.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
            Err(e) => return Err(e).during(|| format!("make {} private", path.display())),
        }
        match path.parent() {
            Some(parent) => path = parent,
            None => return Ok(()),
        }
    }
}
