//! Fetching an image from wherever its name says it comes from.
//!
//! A name resolves in this order:
//! 1. one with a host is in that registry, reached by way of its mirrors;
//! 2. `kernel:…`, `debian:…` and Debian's code names come from Debian's
//!    package archive, built on this host;
//! 3. an alias of `registries.conf` stands for the name it gives;
//! 4. otherwise the registries of `unqualified-search-registries` are asked
//!    in turn, and Docker Hub if there are none.

use crate::debian::{self, RootFs, Wanted};
use crate::progress::Progress;
use crate::spec::{Descriptor, Platform};
use crate::store::Store;
use crate::{Error, Name, Result};

/// How to pull.
#[derive(Debug, Clone, Default)]
pub struct Pull {
    /// For another platform than this host's.
    pub platform: Option<Platform>,
    /// Debian packages beyond the minimum.
    pub include: Vec<String>,
    /// The name to store it under, if not its own.
    pub name: Option<Name>,
    /// Do nothing if the store has the name already.
    pub missing: bool,
}

impl Pull {
    /// Pulls an image and names it. Gives what the name now points at.
    pub fn run(&self, store: &Store, name: &Name, progress: &dyn Progress) -> Result<Descriptor> {
        let stored_as = self.name.as_ref().unwrap_or(name);
        if self.missing
            && let Ok(reference) = store.reference(stored_as)
        {
            return Ok(reference.target);
        }
        let session = store.session()?;
        let target = match Wanted::of(name)? {
            Some(wanted) => {
                if let Some(platform) = &self.platform
                    && !Platform::host().serves(platform)
                {
                    return Err(Error::NoPlatform {
                        image: name.to_string(),
                        wanted: platform.to_string(),
                        available: Platform::host().to_string(),
                    });
                }
                match wanted {
                    Wanted::RootFs { suite, slim } => {
                        RootFs { suite, slim, include: self.include.clone() }
                            .build(&session, progress)?
                    }
                    Wanted::Kernel { .. } if !self.include.is_empty() => {
                        return Err(Error::NoInclude(name.to_string()));
                    }
                    Wanted::Kernel { suite, flavour } => {
                        debian::build_kernel(&session, suite, flavour, progress)?
                    }
                }
            }
            None if !self.include.is_empty() => return Err(Error::NoInclude(name.to_string())),
            None => crate::registry::pull(&session, name, self.platform.as_ref(), progress)?,
        };
        session.set_reference(stored_as, &target)?;
        Ok(target)
    }
}
