//! What is left to the worker of a machine, which reads what a guest wrote.
//!
//! It sees its own two folders, what its machine is made of and the folders that are shared
//! with it. Outwards lead a user-mode network's sockets, in the host's network, and where
//! there is none, nothing: a network namespace of its own. The guest's requests to the disk go
//! to the kernel in rings (`io_uring`), which ask no filter of system calls: what they can open
//! and reach is bounded by the rest.

mod calls;

use std::path::{Path, PathBuf};

use guise_container::jail::{Access, Jail, Visible};
use guise_microvm::PreparedKernel;

use crate::job::{Engine, Job, Network};

/// Capabilities with which a folder is shared, its owners included: to change owners
/// (0), to pass over what they allow (1) and whose a file is (3), to keep set-id bits (4).
const OF_SHARES: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4;

/// The jail of a job's worker; `root` is its image.
#[must_use]
pub fn of(job: &Job, root: &Path, kernel: &PreparedKernel, engine: Engine) -> Jail {
    let visible = |path: &Path, access| Visible { path: path.to_owned(), access };
    let mut paths = vec![
        visible(&job.state, Access::Write),
        visible(&job.run, Access::Write),
        visible(root, Access::Read),
        visible(&kernel.kernel, Access::Read),
        visible(&kernel.initrd, Access::Read),
    ];
    for mount in &job.mounts {
        let access = if mount.read_only { Access::Read } else { Access::Share };
        paths.push(visible(&mount.source, access));
    }
    // A switch that begins again has a new socket in its folder.
    if let Some(folder) = job.plug.as_ref().and_then(|plug| plug.socket.parent()) {
        paths.push(visible(folder, Access::Read));
    }
    let kvm = PathBuf::from("/dev/kvm");
    if engine != Engine::Soft && kvm.exists() {
        paths.push(Visible { path: kvm, access: Access::Device });
    }
    let root = rustix::process::geteuid().is_root();
    Jail {
        root: job.run.join("jail"),
        paths,
        own_network: job.network != Network::User,
        // A plain user's worker can do what this user can.
        capabilities: if root && !job.mounts.is_empty() { OF_SHARES } else { 0 },
        calls: calls::allowed(!job.mounts.is_empty()),
    }
}
