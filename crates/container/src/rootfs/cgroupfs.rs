//! The container's `/sys/fs/cgroup`.

use std::os::fd::{AsFd, OwnedFd};

use super::mounts::new_filesystem;
use super::options::Options;
use super::path::{RootDir, open_host};
use crate::cgroup::{Cgroup, Hierarchy};
use crate::error::{Context, Result};
use crate::sys::mount::{self, ATTR_RDONLY, Change};

/// Mounts the cgroup file systems as the container sees them: with a cgroup
/// namespace the file systems themselves, without one only the container's own
/// part of them.
pub fn mount(
    root: &RootDir,
    destination: &str,
    cgroup: &Cgroup,
    options: &Options,
    own_namespace: bool,
) -> Result<()> {
    let hierarchies = cgroup.hierarchies();
    if let [only] = hierarchies
        && only.is_unified()
    {
        let tree = tree_of(only, own_namespace)?;
        return finish(root, destination, &tree, options);
    }
    let data = ["mode=755".to_owned()];
    let base = new_filesystem("tmpfs", "tmpfs", &data, &[], options.set & !ATTR_RDONLY)
        .during(|| format!("mount {destination}"))?;
    let place = root.make_dir(destination)?;
    mount::attach(base.as_fd(), place.as_fd()).during(|| format!("mount {destination}"))?;
    // Where the container has no cgroup there is only the host's to be seen.
    for hierarchy in hierarchies.iter().filter(|h| h.directory().is_some()) {
        let tree = match tree_of(hierarchy, own_namespace) {
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

fn tree_of(hierarchy: &Hierarchy, own_namespace: bool) -> Result<OwnedFd> {
    let own = || -> Result<OwnedFd> {
        let directory = hierarchy.directory().unwrap_or_else(|| hierarchy.mount_point());
        let place = open_host(directory).during(|| format!("open {}", directory.display()))?;
        mount::clone_tree(place.as_fd(), true).during(|| format!("take {}", directory.display()))
    };
    if !own_namespace {
        return own();
    }
    let (kind, data) = hierarchy.filesystem();
    match new_filesystem(kind, "cgroup", &data, &[], 0) {
        Ok(tree) => Ok(tree),
        // In a user namespace that does not own the cgroup namespace.
        Err(_) => own(),
    }
}

fn finish(root: &RootDir, destination: &str, tree: &OwnedFd, options: &Options) -> Result<()> {
    let change = Change {
        set: options.set,
        clear: options.clear & !options.set,
        recursive: true,
        ..Change::default()
    };
    if change.set | change.clear != 0 {
        mount::set_attributes(tree.as_fd(), change)
            .during(|| format!("set the options of {destination}"))?;
    }
    let place = root.make_dir(destination)?;
    mount::attach(tree.as_fd(), place.as_fd()).during(|| format!("mount {destination}"))
}
