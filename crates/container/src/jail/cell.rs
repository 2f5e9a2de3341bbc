//! A cell: one folder, for a process that lives as long as a piece of work on it takes.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::{Access, Identity, Jail, Visible};
use crate::error::{Context, Result};
use crate::seccomp::Filter;
use crate::spec::Seccomp;

/// What is left to the process.
#[derive(Debug)]
pub struct Cell {
    /// Its root from then on.
    pub folder: OwnedFd,
    /// Capabilities that it keeps, as bits.
    pub capabilities: u64,
    pub calls: Seccomp,
}

impl Cell {
    /// Enters it. To be called while this process has one thread and no other folder open.
    pub fn enter(self) -> Result<()> {
        let filter = Filter::compile(&self.calls)?;
        let what = || "make the folder the root";
        rustix::process::fchdir(&self.folder).during(what)?;
        rustix::process::chroot(".").during(what)?;
        drop(self.folder);
        let rest = Jail {
            root: PathBuf::from("/"),
            paths: vec![Visible { path: PathBuf::from("/"), access: Access::Share }],
            has_user_namespace: true,
            identity: Identity::Same,
            own_network: false,
            ends_with_parent: true,
            capabilities: self.capabilities,
            calls: self.calls,
        };
        rest.shed(&filter)
    }
}
