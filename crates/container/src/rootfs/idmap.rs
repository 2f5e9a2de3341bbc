//! Mounts whose ids are mapped: a user namespace made only for its mapping.

use std::os::fd::{AsFd, OwnedFd};

use crate::error::{Context, Error, Result};
use crate::spec::IdMap;
use crate::sys::clone::{Side, exit_now, fork};
use crate::sys::mount::{self, Change};
use crate::sys::socket::Channel;

/// Maps the ids of a detached tree.
pub fn map(tree: &OwnedFd, uids: &[IdMap], gids: &[IdMap], recursive: bool) -> Result<()> {
    let userns = user_namespace(uids, gids)?;
    let change = Change { userns: Some(userns.as_fd()), recursive, ..Change::default() };
    mount::set_attributes(tree.as_fd(), change).map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) => Error::unsupported(
            "an id-mapped mount of this file system",
            "use a file system that supports it (ext4, xfs, btrfs, tmpfs, …); for overlayfs \
                 map the layers below it",
        ),
        _ => Error::System { what: "map the ids of a mount".into(), source },
    })
}

/// A user namespace with these mappings. It lives as long as its descriptor;
/// the process it was made in ends here.
pub fn user_namespace(uids: &[IdMap], gids: &[IdMap]) -> Result<OwnedFd> {
    let (ours, theirs) = Channel::pair().during(|| "make a socket pair")?;
    // SAFETY: the runtime has one thread; the child waits and exits.
    let side = unsafe { fork(libc::CLONE_NEWUSER as u64, None) }
        .during(|| "make a user namespace for an id-mapped mount")?;
    match side {
        Side::Child => {
            drop(ours);
            let _ = theirs.receive();
            exit_now(0)
        }
        Side::Parent(child) => {
            drop(theirs);
            let result =
                crate::namespaces::write_mappings(child.pid, uids, gids, false).and_then(|()| {
                    std::fs::File::open(format!("/proc/{}/ns/user", child.pid))
                        .during(|| "open a user namespace")
                });
            drop(ours);
            child.kill();
            Ok(result?.into())
        }
    }
}
