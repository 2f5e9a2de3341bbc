//! Whose a file is.
//!
//! A server that runs as root passes owners on. One that runs as a plain user can make
//! files of that user only; in the guest they belong to root, which is who the user is
//! there. Root of a user namespace that knows a few users only is such a user too.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Gid, Uid, chownat};
use rustix::io::Errno;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// The same numbers on both sides.
    Same,
    /// This user and group of the host are root in the guest.
    Root { uid: u32, gid: u32 },
}

impl Owners {
    pub fn of_this_process() -> Self {
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        let known = std::fs::read_to_string("/proc/self/uid_map");
        // Without such a file there are no namespaces.
        if user.is_root() && known.map_or(true, |map| knows_many(&map)) {
            return Owners::Same;
        }
        Owners::Root { uid: user.as_raw(), gid: group.as_raw() }
    }

    /// What the guest sees of an owner and a group.
    pub fn shown(self, uid: u32, gid: u32) -> (u32, u32) {
        match self {
            Owners::Same => (uid, gid),
            Owners::Root { uid: ours, gid: our_group } => {
                (if uid == ours { 0 } else { uid }, if gid == our_group { 0 } else { gid })
            }
        }
    }

    /// Gives a file to whom the guest says.
    pub fn change(self, file: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        if self != Owners::Same && uid.is_none_or(|uid| uid == 0) && gid.is_none_or(|gid| gid == 0)
        {
            return Ok(());
        }
        let valid = |id: u32| if id == u32::MAX { Err(Errno::INVAL) } else { Ok(id) };
        let uid = uid.map(valid).transpose()?.map(Uid::from_raw);
        let gid = gid.map(valid).transpose()?.map(Gid::from_raw);
        chownat(file, c"", uid, gid, AtFlags::EMPTY_PATH)
    }

    /// Gives a new file to the one who made it.
    pub fn assign(
        self,
        file: impl AsFd,
        uid: u32,
        gid: u32,
        inherits_group: bool,
    ) -> Result<(), Errno> {
        match self {
            Owners::Same => self.change(file, Some(uid), (!inherits_group).then_some(gid)),
            // It is this process's user's, whoever made it.
            Owners::Root { .. } => Ok(()),
        }
    }
}

/// Whether a namespace has as many users as a system needs: a line of its map has the first
/// number inside, the first outside, and how many there are.
fn knows_many(map: &str) -> bool {
    const SYSTEM: u64 = 1 << 16;
    let counts = map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse().ok());
    counts.fold(0, u64::saturating_add) >= SYSTEM
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_of_a_small_namespace_is_a_plain_user() {
        assert!(knows_many("         0          0 4294967295\n"));
        assert!(knows_many("0 1000 1\n1 100000 65536\n"));
        assert!(!knows_many("         0       1000          1\n"));
        assert!(!knows_many(""));
        let root = Owners::Root { uid: 0, gid: 0 };
        assert_eq!(root.shown(0, 5), (0, 5));
    }
}
