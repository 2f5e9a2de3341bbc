//! The root of a jail: empty but for the paths that are seen there.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount, unmount,
};

use super::{Access, Inside, Jail, Strangers, Visible};
use crate::error::{Context, Error, Result};
use crate::sys::mount::{
    self as mount_api, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, Change, clone_tree_at,
    set_attributes,
};

/// Makes the folder on which the root will be.
pub fn make_place(root: &Path) -> Result<()> {
    fs::create_dir_all(root).during(|| format!("make {}", root.display()))
}

pub fn open_path(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Mounts a tree at a folder or a file.
pub fn attach(tree: &OwnedFd, at: &Path) -> io::Result<()> {
    mount_api::attach(tree.as_fd(), open_path(at)?.as_fd())
}

impl Jail {
    /// The paths, a folder before what is in it.
    fn in_order(&self) -> Vec<&Visible> {
        let mut paths: Vec<&Visible> = self.paths.iter().collect();
        paths.sort_by_key(|visible| visible.path.as_os_str().len());
        paths
    }

    /// The trees of the paths as strangers see them, made by who may do that.
    pub(super) fn trees_for(&self, strangers: &Strangers) -> Result<Vec<OwnedFd>> {
        let tree = |visible: &&Visible| {
            let tree = visible.tree()?;
            visible.lend(&tree, strangers)?;
            Ok(tree)
        };
        self.in_order().iter().map(tree).collect()
    }

    /// Mounts the paths below an empty root, and makes that the root.
    pub(super) fn fill_root(&self, inside: Inside) -> Result<()> {
        let paths = self.in_order();
        let trees = match inside.trees {
            Some(trees) => trees,
            None => paths.iter().map(|visible| visible.tree()).collect::<Result<_>>()?,
        };
        // From here on all is named from the new root: strangers could not come here by name.
        enter_empty_root(&inside.place).during(|| "mount an empty root")?;
        for (visible, tree) in paths.iter().zip(trees) {
            place(&visible.path, &tree)
                .and_then(|place| attach(&tree, &place))
                .during(|| format!("show {}", visible.path.display()))?;
        }
        mount_proc()?;
        rustix::process::pivot_root(".", ".").during(|| "change the root")?;
        unmount(".", UnmountFlags::DETACH).during(|| "leave the old root")?;
        std::env::set_current_dir("/").during(|| "enter the new root")?;
        let change = Change { set: ATTR_RDONLY, ..Change::default() };
        open_path(Path::new("/"))
            .and_then(|slash| set_attributes(slash.as_fd(), change))
            .during(|| "close the new root")
    }
}

fn enter_empty_root(place: &OwnedFd) -> io::Result<()> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in [("source", "jail"), ("mode", "0755"), ("size", "1m")] {
        fsconfig_set_string(&context, name, value)?;
    }
    fsconfig_create(&context)?;
    let bare = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, bare)?;
    mount_api::attach(root.as_fd(), place.as_fd())?;
    Ok(rustix::process::fchdir(&root)?)
}

impl Visible {
    /// The path, as it is to be seen.
    fn tree(&self) -> Result<OwnedFd> {
        let what = || format!("show {}", self.path.display());
        let path = self.path.to_str().ok_or_else(|| {
            Error::unsupported(format!("the path {}", self.path.display()), "use UTF-8 in names")
        })?;
        // What is mounted in the process's own folders is not for it, unless that is named.
        let recursive = matches!(self.access, Access::Read | Access::Share);
        let tree = clone_tree_at(path, recursive, true).during(what)?;
        let mut set = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
        if self.access == Access::Read {
            set |= ATTR_RDONLY;
        }
        let change = Change { set, recursive: true, ..Change::default() };
        set_attributes(tree.as_fd(), change).during(what)?;
        Ok(tree)
    }

    /// Lets strangers use a tree as this process can.
    fn lend(&self, tree: &OwnedFd, strangers: &Strangers) -> Result<()> {
        let what = || format!("map the ids of {}", self.path.display());
        match strangers.map(tree.as_fd()) {
            // Its file system has no such mounts, or it is one already.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM)) => {}
            other => return other.during(what),
        }
        let found = fs::metadata(&self.path).during(what)?;
        let open_to_all = if found.is_dir() { 0o005 } else { 0o004 };
        let mode = found.permissions().mode();
        match self.access {
            // An overlay, say, of which the layers are mapped.
            _ if strangers.hold(found.uid()) => Ok(()),
            Access::Read if mode & open_to_all == open_to_all => Ok(()),
            Access::Scratch => strangers.take(&self.path),
            _ => Err(Error::unsupported(
                format!("an id-mapped mount of {}", self.path.display()),
                "use a file system that has it (ext4, xfs, btrfs, …)",
            )),
        }
    }
}

/// The mount point for a tree of the host, made below the new root, where this process is.
fn place(path: &Path, tree: &OwnedFd) -> io::Result<PathBuf> {
    let place = path.strip_prefix("/").map_err(io::Error::other)?.to_owned();
    if FileType::from_raw_mode(fstat(tree)?.st_mode) == FileType::Directory {
        fs::create_dir_all(&place)?;
    } else {
        place.parent().map_or(Ok(()), fs::create_dir_all)?;
        if fs::symlink_metadata(&place).is_err() {
            fs::File::create(&place)?;
        }
    }
    Ok(place)
}

/// What a process can see of itself in `/proc`, and nothing of others or of the system. Where
/// the host's own `/proc` has been covered in parts a new one is refused.
fn mount_proc() -> Result<()> {
    let what = || "mount /proc";
    let place = Path::new("proc");
    fs::create_dir_all(place).during(what)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if mount("proc", place, "proc", flags, Some(c"subset=pid")).is_ok() {
        return Ok(());
    }
    // As the host's knows this process.
    let own = fs::canonicalize("/proc/self").during(what)?;
    let tree = clone_tree_at(&own.to_string_lossy(), false, true).during(what)?;
    let set = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
    set_attributes(tree.as_fd(), Change { set, ..Change::default() }).during(what)?;
    let place = place.join("self");
    fs::create_dir_all(&place).and_then(|()| attach(&tree, &place)).during(what)
}
