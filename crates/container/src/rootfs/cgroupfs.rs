//! The container's `/sys/fs/cgroup`.

use std::os::fd::{AsFd, OwnedFd};

use super::mounts::new_filesystem;
use super::options::Options;
use super::path::{RootDir, open_host};
use crate::cgroup::{Cgroup, Hierarchy};
use crate::error::{Context, Result};
use crate::sys::mount::{self, ATTR_RDONLY, Change};

/// How much of the file systems is the container's own.
#[derive(Clone, Copy)]
pub struct Own {
    /// It has a cgroup namespace.
    pub namespace: bool,
    /// Its programs may change what belongs to a file system and not to one mount of it.
    pub may_change: bool,
}

impl Own {
    /// Whether the container gets a file system of its own, which shows its part by the
    /// namespace. Making and ending one for each hierarchy takes a tenth of a container's time,
    /// and a mount of its part of the host's shows the same.
    fn needs_filesystem(self, hierarchy: &Hierarchy) -> bool {
        self.namespace && (self.may_change || hierarchy.directory().is_none())
    }
}

/// Mounts the cgroup file systems as the container sees them: nothing but its own part, if
/// it has one.
pub fn mount(
    root: &RootDir,
    destination: &str,
    cgroup: &Cgroup,
    options: &Options,
    own: Own,
) -> Result<()> {
    let hierarchies = cgroup.hierarchies();
    if let [only] = hierarchies
        && only.is_unified()
    {
        let tree = tree_of(only, own)?;
        return finish(root, destination, &tree, options);
    }
    let data = ["mode=755".to_owned()];
    let base = new_filesystem("tmpfs", "tmpfs", &data, &[], options.set & !ATTR_RDONLY)
        .during(|| format!("mount {destination}"))?;
    let place = root.make_dir(destination)?;
    mount::attach(base.as_fd(), place.as_fd()).during(|| format!("mount {destination}"))?;
    // Where the container has no cgroup there is only the host's to be seen.
    for hierarchy in hierarchies.iter().filter(|h| h.directory().is_some()) {
        let tree = match tree_of(hierarchy, own) {
            Ok(tree) => tree,
            Err(e) => {
                tracing::warn!("the cgroup controllers {} stay away: {e}", hierarchy.name());
                continue;
            }
        };
        finish(root, &format!("{destination}/{}", hierarchy.name()), &tree, options)?;
        for alias in hierarchy.aliases() {
            root.make_link(hierarchy.name(), &format!("{destination}/{alias}"))?;
        }
    }
    if options.set & ATTR_RDONLY != 0 {
        let change = Change { set: ATTR_RDONLY, ..Change::default() };
        mount::set_attributes(base.as_fd(), change)
            .during(|| format!("make {destination} read-only"))?;
    }
    Ok(())
}

fn tree_of(hierarchy: &Hierarchy, own: Own) -> Result<OwnedFd> {
    let part = || -> Result<OwnedFd> {
        let directory = hierarchy.directory().unwrap_or_else(|| hierarchy.mount_point());
        let place = open_host(directory).during(|| format!("open {}", directory.display()))?;
        mount::clone_tree(place.as_fd(), true).during(|| format!("take {}", directory.display()))
    };
    if !own.needs_filesystem(hierarchy) {
        return part();
    }
    let (kind, data) = hierarchy.filesystem();
    match new_filesystem(kind, "cgroup", &data, &[], 0) {
        Ok(tree) => Ok(tree),
        // In a user namespace that does not own the cgroup namespace.
        Err(_) => part(),
    }
}

fn finish(root: &RootDir, destination: &str, tree: &OwnedFd, options: &Options) -> Result<()> {
    // What the host mounts in its cgroups is not the container's affair.
    let change = Change {
        set: options.set,
        clear: options.clear & !options.set,
        propagation: libc::MS_PRIVATE,
        recursive: true,
        ..Change::default()
    };
    mount::set_attributes(tree.as_fd(), change)
        .during(|| format!("set the options of {destination}"))?;
    let place = root.make_dir(destination)?;
    mount::attach(tree.as_fd(), place.as_fd()).during(|| format!("mount {destination}"))
}
