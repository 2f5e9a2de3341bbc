//! Seccomp profiles: from the configuration to a filter the kernel takes.

mod cache;
mod compile;
mod table;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::error::Result;
use crate::spec::Seccomp;
use crate::sys::seccomp::{self as sys, Instruction};

pub use table::{ACTIONS, ARCHITECTURES, FLAGS, OPERATORS};

/// A compiled profile.
#[derive(Debug)]
pub struct Filter {
    program: Vec<Instruction>,
    flags: u64,
    listener: Option<Listener>,
}

/// Who is asked about system calls that the profile passes on.
#[derive(Debug, Clone)]
pub struct Listener {
    pub path: String,
    pub metadata: Option<String>,
}

/// Whether a profile can be compiled.
pub fn check(profile: &Seccomp) -> Result<()> {
    compile::compile(profile).map(drop)
}

impl Filter {
    /// Compiles a profile; what comes of it is kept below the state's root.
    pub fn of(profile: &Seccomp, root: &Path) -> Result<Self> {
        let compiled = cache::compile(profile, root)?;
        let listener = profile
            .listener_path
            .clone()
            .filter(|p| !p.is_empty() && compiled.notifies)
            .map(|path| Listener { path, metadata: profile.listener_metadata.clone() });
        if compiled.notifies && listener.is_none() {
            return Err(crate::error::Error::config(
                "linux.seccomp.listenerPath",
                "SCMP_ACT_NOTIFY needs somebody to notify",
            ));
        }
        let mut flags = compiled.flags;
        if listener.is_some() {
            flags |= libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        }
        Ok(Filter { program: compiled.program, flags, listener })
    }

    /// Compiles a profile that asks nobody, and keeps nothing of it.
    pub fn compile(profile: &Seccomp) -> Result<Self> {
        let compile::Compiled { program, flags, .. } = compile::compile(profile)?;
        Ok(Filter { program, flags, listener: None })
    }

    pub fn program(&self) -> &[Instruction] {
        &self.program
    }

    pub fn flags(&self) -> u64 {
        self.flags
    }

    pub fn listener(&self) -> Option<&Listener> {
        self.listener.as_ref()
    }

    pub fn has_listener(&self) -> bool {
        self.listener.is_some()
    }

    /// Loads it into this process.
    pub fn load(&self) -> io::Result<Option<OwnedFd>> {
        sys::load(&self.program, self.flags)
    }
}
