//! The container's `/sys/fs/cgroup`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, mkdirat, symlinkat};

use super::mounts::new_filesystem;
use super::options::Options;
use super::path::{RootDir, open_host};
use crate::cgroup::{Cgroup, Hierarchy};
use crate::error::{Context, Result};
use crate::process::caps::Sets;
use crate::spec::{NamespaceKind, Spec};
use crate::sys::mount::{self, ATTR_RDONLY, Change};

/// Whether a mount shows cgroups.
pub fn is_cgroup(kind: &str) -> bool {
    matches!(kind, "cgroup" | "cgroup2")
}

/// How much of the file systems is the container's own.
#[derive(Clone, Copy)]
struct Own {
    /// It has a cgroup namespace.
    namespace: bool,
    /// Its programs may change what belongs to a file system and not to one mount of it.
    may_change: bool,
}

impl Own {
    fn of(spec: &Spec) -> Self {
        let capabilities = spec.process.as_ref().and_then(|p| p.capabilities.as_ref());
        Own {
            namespace: spec.makes(NamespaceKind::Cgroup),
            may_change: Sets::of(capabilities).lead_to_sys_admin(),
        }
    }

    /// Whether the container gets a file system of its own, which shows its part by the
    /// namespace. Making and ending one for each hierarchy takes a tenth of a container's time,
    /// and a mount of its part of the host's shows the same.
    fn needs_filesystem(self, hierarchy: &Hierarchy) -> bool {
        self.namespace && (self.may_change || hierarchy.directory().is_none())
    }
}

/// What the runtime can take of the host's mounts while the first process sets itself up: the
/// container's part of each hierarchy, if it is going to be mounted.
pub fn take_parts(spec: &Spec, cgroup: &Cgroup) -> Result<Vec<OwnedFd>> {
    let own = Own::of(spec);
    if !spec.mounts.iter().any(|m| m.kind.as_deref().is_some_and(is_cgroup)) {
        return Ok(Vec::new());
    }
    cgroup.own_hierarchies().filter(|h| !own.needs_filesystem(h)).map(part_of).collect()
}

/// Mounts the cgroup file systems as the container sees them: nothing but its own part, if
/// it has one. `parts` is what the runtime has taken; what it has not is taken here.
pub fn mount(
    root: &RootDir,
    destination: &str,
    spec: &Spec,
    cgroup: &Cgroup,
    options: &Options,
    parts: Vec<OwnedFd>,
) -> Result<()> {
    let own = Own::of(spec);
    let what = || format!("mount {destination}");
    if let [only] = cgroup.hierarchies()
        && only.is_unified()
    {
        let tree = tree_of(only, own)?;
        let place = root.make_dir(destination)?;
        mount::attach(tree.as_fd(), place.as_fd()).during(what)?;
        return set_options(tree.as_fd(), destination, options);
    }
    let data = ["mode=755".to_owned()];
    let base =
        new_filesystem("tmpfs", "tmpfs", &data, &[], options.set & !ATTR_RDONLY).during(what)?;
    let place = root.make_dir(destination)?;
    mount::attach(base.as_fd(), place.as_fd()).during(what)?;
    // Where the container has no cgroup there is only the host's to be seen.
    let mut parts = parts.into_iter();
    for hierarchy in cgroup.own_hierarchies() {
        let taken = if own.needs_filesystem(hierarchy) { None } else { parts.next() };
        let tree = match taken.map_or_else(|| tree_of(hierarchy, own), Ok) {
            Ok(tree) => tree,
            Err(e) => {
                tracing::warn!("the cgroup controllers {} stay away: {e}", hierarchy.name());
                continue;
            }
        };
        let name = hierarchy.name();
        let what = || format!("mount {destination}/{name}");
        new_or_there(mkdirat(&base, name, Mode::from_raw_mode(0o755))).during(what)?;
        mount::attach_at(tree.as_fd(), base.as_fd(), name).during(what)?;
        for alias in hierarchy.aliases() {
            new_or_there(symlinkat(name, &base, alias))
                .during(|| format!("link {destination}/{alias} to {name}"))?;
        }
    }
    set_options(base.as_fd(), destination, options)
}

fn new_or_there(made: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match made {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        other => other,
    }
}

fn tree_of(hierarchy: &Hierarchy, own: Own) -> Result<OwnedFd> {
    if !own.needs_filesystem(hierarchy) {
        return part_of(hierarchy);
    }
    let (kind, data) = hierarchy.filesystem();
    match new_filesystem(kind, "cgroup", &data, &[], 0) {
        Ok(tree) => Ok(tree),
        // In a user namespace that does not own the cgroup namespace.
        Err(_) => part_of(hierarchy),
    }
}

/// A mount of the container's part of the host's.
fn part_of(hierarchy: &Hierarchy) -> Result<OwnedFd> {
    let directory = hierarchy.directory().unwrap_or_else(|| hierarchy.mount_point());
    let place = open_host(directory).during(|| format!("open {}", directory.display()))?;
    mount::clone_tree(place.as_fd(), true).during(|| format!("take {}", directory.display()))
}

/// Sets the options of a mount and of all below it.
fn set_options(tree: BorrowedFd<'_>, destination: &str, options: &Options) -> Result<()> {
    let change = Change {
        set: options.set,
        clear: options.clear & !options.set,
        // What the host mounts in its cgroups is not the container's affair.
        propagation: libc::MS_PRIVATE,
        recursive: true,
        ..Change::default()
    };
    mount::set_attributes(tree, change).during(|| format!("set the options of {destination}"))
}
