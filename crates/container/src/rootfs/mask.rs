//! Paths that a container must not read, or not write.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::path::{RootDir, open_host};
use crate::error::{Context, Error, Result};
use crate::sys::mount::{self, ATTR_RDONLY, Change};

/// Hides paths: a file behind the null device, a directory behind an empty
/// read-only one. The null device is the host's, taken by descriptor and looked
/// at, not whatever the image has at `/dev/null` (CVE-2025-31133).
pub fn mask(root: &RootDir, paths: &[String]) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let null = open_null()?;
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let Some(place) = existing(root, path)? else { continue };
        let stat = rustix::fs::fstat(&place).during(|| format!("look at {path}"))?;
        let tree = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            match &empty {
                // One empty file system serves all masked directories.
                Some(first) => mount::clone_tree(first.as_fd(), false),
                None => empty_directory(),
            }
            .during(|| "make an empty directory")?
        } else {
            mount::clone_tree(null.as_fd(), false).during(|| "take the null device")?
        };
        mount::attach(tree.as_fd(), place.as_fd()).during(|| format!("mask {path}"))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && empty.is_none() {
            empty = Some(tree);
        }
    }
    Ok(())
}

/// Makes paths read-only, with what is mounted below them.
pub fn make_readonly(root: &RootDir, paths: &[String]) -> Result<()> {
    for path in paths {
        let Some(place) = existing(root, path)? else { continue };
        let tree = mount::clone_tree(place.as_fd(), true).during(|| format!("take {path}"))?;
        let change = Change { set: ATTR_RDONLY, recursive: true, ..Change::default() };
        mount::set_attributes(tree.as_fd(), change).during(|| format!("make {path} read-only"))?;
        mount::attach(tree.as_fd(), place.as_fd()).during(|| format!("make {path} read-only"))?;
    }
    Ok(())
}

/// The place of a path that may be missing: there is then nothing to hide.
fn existing(root: &RootDir, path: &str) -> Result<Option<OwnedFd>> {
    match root.place(path) {
        Ok(place) => Ok(Some(place)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(e) => Err(e).during(|| format!("open {path} in the root file system")),
    }
}

fn open_null() -> Result<OwnedFd> {
    let null = open_host("/dev/null").during(|| "open /dev/null of the host")?;
    let stat = rustix::fs::fstat(&null).during(|| "look at /dev/null")?;
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || device != (1, 3) {
        return Err(Error::unsupported(
            "the null device",
            "/dev/null of the host is something else: make it anew with mknod",
        ));
    }
    Ok(null)
}

fn empty_directory() -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "size", "0k")?;
    rustix::mount::fsconfig_set_string(&context, "nr_inodes", "2")?;
    rustix::mount::fsconfig_create(&context)?;
    Ok(rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?)
}

/// Makes the root itself read-only.
pub fn make_root_readonly(root: &RootDir) -> Result<()> {
    let change = Change { set: ATTR_RDONLY, ..Change::default() };
    let place = root.open("/", OFlags::PATH, rustix::fs::Mode::empty());
    let place = place.during(|| "open the root file system")?;
    mount::set_attributes(place.as_fd(), change).during(|| "make the root read-only")
}
