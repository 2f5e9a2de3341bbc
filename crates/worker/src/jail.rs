//! What is left to a worker: that of a machine reads what a guest wrote, a WebAssembly program
//! runs in its own, and a container's has its output, its packets and its archives to read.
//!
//! It sees its own folders (`place`), what its machine or program is made of and what is shared with it;
//! root's is a user to the host that nobody else is. Outwards lead sockets in the host's network, and where none are wanted,
//! nothing: a network namespace of its own. A guest's requests to the disk go to the kernel in
//! rings (`io_uring`), which ask no filter of system calls: what they can open and reach is
//! bounded by the rest. Programs have no rings.

mod calls;

use std::path::{Path, PathBuf};

use guise_container::Error;
use guise_container::jail::{Access, Entered, Identity, Jail, Strangers, Visible};
use guise_container::namespaces::in_user_namespace;
use guise_container::spec::Seccomp;

use crate::job::{Job, Network};

/// Capabilities with which a folder is shared, its owners included: to change owners
/// (0), to pass over what they allow (1) and whose a file is (3), to keep set-id bits (4).
const OF_SHARES: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4;

/// What a user is told where a host is not able to do all of it.
#[must_use]
pub fn warnings(entered: Entered) -> Vec<String> {
    let missing = entered
        .missing
        .map(|what| format!("its worker is shut in less than it could be: this host lacks {what}"));
    let same = entered
        .kept_its_id
        .map(|what| format!("its worker goes on as the host's root: this host lacks {what}"));
    missing.into_iter().chain(same).collect()
}

pub(crate) fn is_host_root() -> bool {
    rustix::process::geteuid().is_root() && !in_user_namespace()
}

/// To the host, root's workers are users that nobody else is.
#[must_use]
pub fn identity(job: &Job) -> Identity {
    if !is_host_root() {
        return Identity::Same;
    }
    let why = |error: Error| format!("user namespaces for them ({error})");
    Strangers::of(&job.id).map_or_else(|e| Identity::NoStranger(why(e)), Identity::Stranger)
}

fn visible(path: impl Into<PathBuf>, access: Access) -> Visible {
    Visible { path: path.into(), access }
}

fn shared(path: impl Into<PathBuf>, read_only: bool) -> Visible {
    visible(path, if read_only { Access::Read } else { Access::Share })
}

/// What a worker sees that makes its form itself: its own folders and those that were mounted.
fn own_paths(job: &Job) -> Vec<Visible> {
    let place = job.place();
    let mut paths =
        vec![visible(place.kept(), Access::Write), visible(place.fleeting(), Access::Scratch)];
    paths.extend(job.mounts.iter().map(|mount| shared(&mount.source, mount.read_only)));
    paths
}

/// A switch that begins again has a new socket in its folder.
fn of_plug(job: &Job) -> Option<Visible> {
    let folder = job.plug.as_ref()?.socket.parent()?;
    Some(visible(folder, Access::Read))
}

/// The jail of a machine's worker; `files` are what it is made of.
#[must_use]
pub fn of_machine(job: &Job, files: &[&Path]) -> Jail {
    let mut paths = own_paths(job);
    paths.extend(files.iter().map(|path| visible(*path, Access::Read)));
    paths.extend(of_plug(job));
    let root = rustix::process::geteuid().is_root();
    Jail {
        root: job.run.join("jail"),
        paths,
        has_user_namespace: false,
        identity: identity(job),
        ends_with_parent: false,
        own_network: job.network != Network::User,
        // A plain user's worker can do what this user can.
        capabilities: if root && !job.mounts.is_empty() { OF_SHARES } else { 0 },
        calls: calls::allowed(calls::Of { rings: true, shares: !job.mounts.is_empty() }),
    }
}

/// The jail of a container's worker: its log, and the switch that it is plugged into. All that
/// needs more is done by its keeper, whose files are out of its sight.
#[must_use]
pub fn of_container(job: &Job, identity: Identity) -> Jail {
    let mut paths = vec![visible(job.place().kept(), Access::Write)];
    paths.extend(of_plug(job));
    Jail {
        root: job.run.join("jail"),
        paths,
        has_user_namespace: true,
        identity,
        ends_with_parent: true,
        own_network: job.network != Network::User,
        capabilities: 0,
        calls: calls::allowed(calls::Of { rings: false, shares: false }),
    }
}

/// Capabilities of the process that copies files for a container's user who is not its own: to
/// pass over what files allow (1, 2) and whose they are (3), to keep set-id bits (4).
pub(crate) const OF_COPIES: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4;

pub(crate) fn calls_of_copies() -> Seccomp {
    calls::of_copies()
}

/// What names are resolved with, where there is a network.
const OF_RESOLVERS: [&str; 4] =
    ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/services"];

/// The jail of a WebAssembly program's worker; `root` is its root file system, and `file` the
/// program where that is not in it. A plain user's may be in its user namespace already.
#[must_use]
pub fn of_program(
    job: &Job,
    root: &Path,
    file: Option<&Path>,
    identity: Identity,
    has_user_namespace: bool,
) -> Jail {
    let mut paths = own_paths(job);
    paths.push(shared(root, job.read_only));
    paths.extend(file.map(|file| visible(file, Access::Read)));
    let networked = job.network != Network::None;
    if networked {
        let there = OF_RESOLVERS.into_iter().filter(|path| Path::new(path).exists());
        paths.extend(there.map(|path| visible(path, Access::Read)));
    }
    let is_root = rustix::process::geteuid().is_root() && !has_user_namespace;
    Jail {
        root: job.run.join("jail"),
        paths,
        has_user_namespace,
        identity,
        ends_with_parent: false,
        own_network: !networked,
        capabilities: if is_root { OF_SHARES } else { 0 },
        calls: calls::allowed(calls::Of { rings: false, shares: true }),
    }
}
