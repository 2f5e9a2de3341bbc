//! What is left to the worker of a machine, which reads what a guest wrote, and to that of a
//! WebAssembly program, which runs in it.
//!
//! It sees its own two folders, what its machine or program is made of and the folders that are
//! shared with it. Outwards lead sockets in the host's network, and where none are wanted,
//! nothing: a network namespace of its own. A guest's requests to the disk go to the kernel in
//! rings (`io_uring`), which ask no filter of system calls: what they can open and reach is
//! bounded by the rest. Programs have no rings.

mod calls;

use std::path::{Path, PathBuf};

use guise_container::jail::{Access, Jail, Visible};

use crate::job::{Engine, Job, Network};

/// Capabilities with which a folder is shared, its owners included: to change owners
/// (0), to pass over what they allow (1) and whose a file is (3), to keep set-id bits (4).
const OF_SHARES: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4;

/// What a user is told where a host is not able to do all of it.
#[must_use]
pub fn missing(what: String) -> String {
    format!("its worker is shut in less than it could be: this host lacks {what}")
}

fn visible(path: impl Into<PathBuf>, access: Access) -> Visible {
    Visible { path: path.into(), access }
}

fn shared(path: impl Into<PathBuf>, read_only: bool) -> Visible {
    visible(path, if read_only { Access::Read } else { Access::Share })
}

/// What every worker sees: its own folders and those that were mounted.
fn own_paths(job: &Job) -> Vec<Visible> {
    let mut paths = vec![visible(&job.state, Access::Write), visible(&job.run, Access::Write)];
    paths.extend(job.mounts.iter().map(|mount| shared(&mount.source, mount.read_only)));
    paths
}

/// The jail of a machine's worker; `files` are what it is made of.
#[must_use]
pub fn of_machine(job: &Job, files: &[&Path], engine: Engine) -> Jail {
    let mut paths = own_paths(job);
    paths.extend(files.iter().map(|path| visible(*path, Access::Read)));
    // A switch that begins again has a new socket in its folder.
    if let Some(folder) = job.plug.as_ref().and_then(|plug| plug.socket.parent()) {
        paths.push(visible(folder, Access::Read));
    }
    let kvm = PathBuf::from("/dev/kvm");
    if engine != Engine::Soft && kvm.exists() {
        paths.push(visible(kvm, Access::Device));
    }
    let root = rustix::process::geteuid().is_root();
    Jail {
        root: job.run.join("jail"),
        paths,
        has_user_namespace: false,
        own_network: job.network != Network::User,
        // A plain user's worker can do what this user can.
        capabilities: if root && !job.mounts.is_empty() { OF_SHARES } else { 0 },
        calls: calls::allowed(calls::Of { rings: true, shares: !job.mounts.is_empty() }),
    }
}

/// What names are resolved with, where there is a network.
const OF_RESOLVERS: [&str; 4] =
    ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/services"];

/// The jail of a WebAssembly program's worker; `root` is its root file system, and `file` the
/// program where that is not in it. A plain user's may be in its user namespace already.
#[must_use]
pub fn of_program(job: &Job, root: &Path, file: Option<&Path>, has_user_namespace: bool) -> Jail {
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
        own_network: !networked,
        capabilities: if is_root { OF_SHARES } else { 0 },
        calls: calls::allowed(calls::Of { rings: false, shares: true }),
    }
}
