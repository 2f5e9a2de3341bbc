//! Landlock rules, which the specification has no field for: annotations say them.
//!
//! `org.guise.landlock.read` and `.write` are lists of paths in the container, separated by
//! colons: what is below the first may be read and executed, what is below the second may be
//! changed as well. `.bind` and `.connect` are lists of TCP ports, separated by commas. Where
//! one of the first two is given, all other paths are out of reach; where one of the last two
//! is, all other ports are for that.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};
use crate::spec::Process;
use crate::sys::landlock::Ruleset;

pub use crate::sys::landlock::version;

/// Begins the names of the annotations.
const PREFIX: &str = "org.guise.landlock.";

pub(crate) const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIRECTORY: u64 = 1 << 3;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEVICE: u64 = 1 << 15;

pub(crate) const READ: u64 = EXECUTE | READ_FILE | READ_DIRECTORY;
/// To make devices, pipes and symbolic links.
pub(crate) const MAKE_SPECIAL: u64 = 1 << 6 | 1 << 10 | 1 << 11 | 1 << 12;
/// What a rule about a single file may speak of.
pub(crate) const ON_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE;

const BIND: u64 = 1 << 0;
const CONNECT: u64 = 1 << 1;
/// The first version that knows ports.
const KNOWS_PORTS: u32 = 4;

/// Refuses rules that cannot be followed, and warns of what this kernel does not enforce.
pub fn check(annotations: &BTreeMap<String, String>, process: &Process) -> Result<()> {
    let Some(rules) = Landlock::of(annotations)? else { return Ok(()) };
    if !process.no_new_privileges {
        return Err(Error::config(
            "process.noNewPrivileges",
            "has to be true for the Landlock rules of the annotations",
        ));
    }
    rules.report_missing();
    Ok(())
}

/// What a container's processes may still do.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Landlock {
    read: Option<Vec<String>>,
    write: Option<Vec<String>>,
    bind: Option<Vec<u16>>,
    connect: Option<Vec<u16>>,
}

impl Landlock {
    /// What the annotations say; none if they say nothing.
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Option<Self>> {
        let mut rules = Landlock::default();
        for (key, value) in annotations {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            let wrong = |why: &str| Error::config(format!("annotations.{key}"), why);
            match name {
                "read" | "write" => {
                    let list: Vec<String> =
                        value.split(':').filter(|p| !p.is_empty()).map(str::to_owned).collect();
                    if let Some(path) = list.iter().find(|p| !p.starts_with('/')) {
                        return Err(wrong(&format!("{path:?} is not an absolute path")));
                    }
                    let place = if name == "read" { &mut rules.read } else { &mut rules.write };
                    *place = Some(list);
                }
                "bind" | "connect" => {
                    let list: Option<Vec<u16>> = value
                        .split(',')
                        .map(str::trim)
                        .filter(|p| !p.is_empty())
                        .map(|p| p.parse().ok())
                        .collect();
                    let list = list.ok_or_else(|| wrong("is not a list of ports"))?;
                    let place = if name == "bind" { &mut rules.bind } else { &mut rules.connect };
                    *place = Some(list);
                }
                _ => return Err(wrong("is unknown: there are read, write, bind and connect")),
            }
        }
        Ok(Some(rules).filter(|rules| *rules != Landlock::default()))
    }

    fn report_missing(&self) {
        let version = version();
        let ports = self.bind.is_some() || self.connect.is_some();
        if version == 0 {
            tracing::warn!("not enforced on this host: Landlock (this kernel runs without it)");
        } else if ports && version < KNOWS_PORTS {
            tracing::warn!("not enforced on this host: Landlock's ports (since Linux 6.7)");
        }
    }

    /// Gives up, for this process, what is not allowed.
    pub fn apply(&self) -> Result<()> {
        let version = version();
        if version == 0 {
            return Ok(());
        }
        let files = if self.read.is_some() || self.write.is_some() { known(version) } else { 0 };
        let mut network = 0;
        if version >= KNOWS_PORTS {
            network |= if self.bind.is_some() { BIND } else { 0 };
            network |= if self.connect.is_some() { CONNECT } else { 0 };
        }
        if files == 0 && network == 0 {
            return Ok(());
        }
        let ruleset = Ruleset::new(files, network).during(|| "make Landlock rules")?;
        for (list, allowed) in [(&self.read, READ), (&self.write, files)] {
            for path in list.iter().flatten() {
                allow_below(&ruleset, Path::new(path), allowed & files)?;
            }
        }
        for (list, allowed) in [(&self.bind, BIND), (&self.connect, CONNECT)] {
            for port in list.iter().flatten().filter(|_| network & allowed != 0) {
                ruleset
                    .allow_port(*port, allowed)
                    .during(|| format!("allow the port {port} (Landlock)"))?;
            }
        }
        ruleset.restrict().during(|| "apply the Landlock rules")
    }
}

/// All rights on files that a version knows: each new one appended a few.
pub(crate) fn known(version: u32) -> u64 {
    let bits = match version {
        1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    (1 << bits) - 1
}

/// What is not there needs no rule: nothing can be done with it, and what is made in its
/// place later was not meant.
pub(crate) fn allow_below(ruleset: &Ruleset, path: &Path, allowed: u64) -> Result<()> {
    let what = || format!("allow {} (Landlock)", path.display());
    let fd = match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(e) => return Err(e).during(what),
    };
    let stat = rustix::fs::fstat(&fd).during(what)?;
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let allowed = if is_directory { allowed } else { allowed & ON_FILES };
    ruleset.allow_below(fd.as_fd(), allowed).during(what)
}

#[cfg(test)]
mod tests;
