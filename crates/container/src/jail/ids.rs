//! Ids of the host that stand for those in a jail of root.
//!
//! To the host, the process in a jail is a user that nobody else is: what it could do if it got
//! out of its namespaces is what any stranger can. What is shared with it is mounted with its ids
//! mapped, so that on disk everything has the owners that it would have without.
//!
//! The range is one that neither distributions nor systemd give to users or containers.

use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::chown;
use std::path::Path;

use crate::error::{Context, Result};
use crate::rootfs::idmap;
use crate::spec::IdMap;
use crate::sys::clone::setns;
use crate::sys::cred;
use crate::sys::mount::{Change, clone_tree_at, set_attributes};

/// Root in each jail is one of these.
const ROOTS: u32 = 0x7000_0000;
const ROOT_COUNT: u32 = 0x0100_0000;
/// Whoever is not root in a jail is one of these: they only own files.
const OTHERS: u32 = ROOTS + ROOT_COUNT;
const OTHER_COUNT: u32 = 0x0efd_0000;
/// All who are root in a jail.
pub const STRANGERS: RangeInclusive<u32> = ROOTS..=ROOTS + (ROOT_COUNT - 1);

/// The ids of one jail, and a user namespace that has them.
#[derive(Debug)]
pub struct Strangers {
    root: u32,
    namespace: OwnedFd,
}

impl Strangers {
    /// Those of the jail of this name. Two names may have the same ids, which takes nothing
    /// from the rest of their jails. To be called by the host's root, while it has one thread.
    pub fn of(name: &str) -> Result<Strangers> {
        let root = root_of(name);
        let mapping = [
            IdMap { container: 0, host: root, size: 1 },
            IdMap { container: 1, host: OTHERS + 1, size: OTHER_COUNT - 1 },
        ];
        Ok(Strangers { root, namespace: idmap::user_namespace(&mapping, &mapping)? })
    }

    /// Changes a detached tree so that who has an id on disk is seen as who has it in the jail.
    pub(super) fn map(&self, tree: BorrowedFd<'_>) -> io::Result<()> {
        let userns = Some(self.namespace.as_fd());
        set_attributes(tree, Change { userns, recursive: true, ..Change::default() })
    }

    /// A folder of the host as the jail's, to be shown with [`attach`](super::attach): for a
    /// file system that is made of it.
    pub fn folder(&self, path: &Path) -> io::Result<OwnedFd> {
        let tree = clone_tree_at(&path.to_string_lossy(), false, true)?;
        self.map(tree.as_fd())?;
        Ok(tree)
    }

    /// Does something to files as root in the jail would; what is made is that one's.
    pub fn acting<T>(&self, act: impl FnOnce() -> T) -> Result<T> {
        let held = cred::permitted_capabilities().during(|| "ask for capabilities")?;
        cred::set_file_ids(self.root);
        // The change has taken those that concern files.
        let kept = cred::set_capabilities(held, held, 0).during(|| "keep capabilities");
        let done = kept.map(|()| act());
        cred::set_file_ids(0);
        done
    }

    /// Whether what belongs to this id of the host belongs to somebody in the jail.
    pub fn hold(&self, id: u32) -> bool {
        holds(self.root, id)
    }

    /// This process, which has one thread, enters the namespace and keeps its id for now.
    pub(super) fn enter(&self) -> Result<()> {
        setns(self.namespace.as_fd(), libc::CLONE_NEWUSER).during(|| "enter a user namespace")
    }

    /// Makes a folder of the host the jail's own.
    pub(super) fn take(&self, folder: &Path) -> Result<()> {
        chown(folder, Some(self.root), Some(self.root))
            .during(|| format!("give {} away", folder.display()))
    }
}

/// This process becomes root in the user namespace that it has entered.
pub(super) fn become_root() -> Result<()> {
    let what = || "become a user that nobody else is";
    cred::set_groups(&[]).during(what)?;
    cred::set_gid(0).during(what)?;
    cred::set_uid(0).during(what)?;
    cred::set_dumpable().during(what)
}

fn root_of(name: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name.as_bytes());
    ROOTS + (hasher.finish() % u64::from(ROOT_COUNT)) as u32
}

fn holds(root: u32, id: u32) -> bool {
    id == root || (OTHERS + 1..OTHERS + OTHER_COUNT).contains(&id)
}

#[cfg(test)]
mod tests;
