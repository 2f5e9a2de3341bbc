//! Debian's package archive as a source of images.
//!
//! `debian:12`, `debian:bookworm`, `debian:12-slim` and the bare code names
//! are root file systems that `mmdebstrap` builds; `kernel:debian-12` is the
//! archive's kernel for machines. Both come from the mirrors that this host's
//! apt is configured for, in any suite those mirrors have, and apt checks
//! signatures and checksums of all of it.

mod apt;
mod kernel;
mod rootfs;
mod sources;

pub(crate) use kernel::build as build_kernel;
pub use kernel::{Kernel, KernelConfig};
pub use rootfs::RootFs;

use std::io;
use std::path::PathBuf;

use crate::Name;

#[derive(Debug, thiserror::Error)]
pub enum DebianError {
    #[error("{0} is not installed, and images from Debian's archive need it (apt install {1})")]
    NoTool(&'static str, &'static str),

    #[error("cannot run {tool}: {source}")]
    Run { tool: &'static str, source: io::Error },

    #[error("{tool} failed: {why}")]
    Failed { tool: &'static str, why: String },

    #[error(
        "{0:?} names no Debian suite (12, bookworm, 13, trixie, sid, with -slim for fewer files)"
    )]
    NoSuchSuite(String),

    #[error("{0:?} names no kernel (debian-12, debian-12-generic, debian-13, debian-13-generic)")]
    NoSuchKernel(String),

    #[error("{0:?} is no package name")]
    BadPackage(String),

    #[error("package {package} of {suite} has no {missing}")]
    OddPackage { package: String, suite: String, missing: &'static str },

    #[error("{what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

/// A release of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suite {
    /// What the archive calls it.
    pub code_name: &'static str,
    /// Its number; none for the ever rolling one.
    pub version: Option<&'static str>,
}

const SUITES: [Suite; 5] = [
    Suite { code_name: "bullseye", version: Some("11") },
    Suite { code_name: "bookworm", version: Some("12") },
    Suite { code_name: "trixie", version: Some("13") },
    Suite { code_name: "forky", version: Some("14") },
    Suite { code_name: "sid", version: None },
];

/// What `latest` and `stable` mean.
const STABLE: Suite = SUITES[2];

impl Suite {
    fn find(text: &str) -> Option<Self> {
        match text {
            "latest" | "stable" => Some(STABLE),
            "unstable" => Some(SUITES[4]),
            _ => SUITES.into_iter().find(|s| s.code_name == text || s.version == Some(text)),
        }
    }
}

/// What of Debian's archive a name asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    RootFs { suite: Suite, slim: bool },
    Kernel { suite: Suite, flavour: Flavour },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// Drivers for virtual hardware only: small, quick to boot.
    Cloud,
    /// Drivers for everything.
    Generic,
}

impl Wanted {
    /// What a name asks for; none if it is no name of Debian's.
    pub fn of(name: &Name) -> Result<Option<Self>, DebianError> {
        if name.host().is_some() || name.digest().is_some() {
            return Ok(None);
        }
        let tag = name.tag().unwrap_or("latest");
        match name.path() {
            "debian" => {
                let (suite, slim) = match tag.strip_suffix("-slim") {
                    Some(suite) => (suite, true),
                    None => (tag, tag == "slim"),
                };
                let suite = if suite == "slim" { "stable" } else { suite };
                Suite::find(suite)
                    .map(|suite| Some(Self::RootFs { suite, slim }))
                    .ok_or_else(|| DebianError::NoSuchSuite(tag.to_owned()))
            }
            "kernel" => {
                let suite = tag.strip_prefix("debian-").unwrap_or(tag);
                let (suite, flavour) = if let Some(suite) = suite.strip_suffix("-generic") {
                    (suite, Flavour::Generic)
                } else {
                    (suite.strip_suffix("-cloud").unwrap_or(suite), Flavour::Cloud)
                };
                Suite::find(suite)
                    .map(|suite| Some(Self::Kernel { suite, flavour }))
                    .ok_or_else(|| DebianError::NoSuchKernel(tag.to_owned()))
            }
            path => Ok(SUITES
                .into_iter()
                .find(|suite| suite.code_name == path && matches!(tag, "latest" | "slim"))
                .map(|suite| Self::RootFs { suite, slim: tag == "slim" })),
        }
    }
}

#[cfg(test)]
mod tests;
