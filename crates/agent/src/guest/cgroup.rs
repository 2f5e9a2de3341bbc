//! The control group of what the host starts, where its processes are limited in number.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

const TREE: &str = "/sys/fs/cgroup";

pub struct Cgroup {
    /// Whoever writes `0` here is in it.
    processes: File,
}

impl Cgroup {
    /// Makes it, for so many processes. The tree is mounted, and the root entered.
    pub fn limited_to(processes: u64) -> io::Result<Self> {
        Self::make(processes).map_err(|error| {
            io::Error::new(error.kind(), format!("limiting the number of processes: {error}"))
        })
    }

    fn make(processes: u64) -> io::Result<Self> {
        let tree = Path::new(TREE);
        fs::write(tree.join("cgroup.subtree_control"), "+pids")?;
        let group = tree.join("instance");
        fs::create_dir(&group)?;
        fs::write(group.join("pids.max"), processes.to_string())?;
        let processes = File::options().write(true).open(group.join("cgroup.procs"))?;
        Ok(Cgroup { processes })
    }

    pub fn processes(&self) -> BorrowedFd<'_> {
        self.processes.as_fd()
    }
}
