//! Cgroups of processes that are no containers: limits for a program of our own, which goes
//! into them by itself.

use std::fs;
use std::os::fd::AsFd;

use super::{Cgroup, Hierarchy, detect, remove_tree, v2};
use crate::error::{Context, Result};
use crate::jail::keep_only;
use crate::sys::clone::{Side, fork};
use crate::sys::cred;

/// How a process got into its cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    Itself,
    /// It is another process now, which the first one waits for, and with which it ends.
    AsAnother,
}

/// The hierarchies that have these controllers: the unified one has what v1 has not.
fn those_with(controllers: &[&str]) -> Result<Vec<Hierarchy>> {
    let mut hierarchies = detect()?;
    hierarchies.retain(|h| controllers.iter().any(|controller| h.has_controller(controller)));
    Ok(hierarchies)
}

impl Cgroup {
    /// Names a directory below the root of each hierarchy that has one of these controllers;
    /// makes nothing yet.
    pub fn plan_for(name: &str, controllers: &[&str]) -> Result<Self> {
        let mut hierarchies = those_with(controllers)?;
        for hierarchy in &mut hierarchies {
            hierarchy.place(name.as_ref(), false);
        }
        Ok(Cgroup { hierarchies })
    }

    /// The names of all directories at the same places that begin so.
    pub fn names(prefix: &str, controllers: &[&str]) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for hierarchy in those_with(controllers)? {
            let entries = fs::read_dir(hierarchy.mount_point())
                .during(|| format!("list {}", hierarchy.mount_point().display()))?;
            let found = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
            names.extend(found.filter(|name| name.starts_with(prefix)));
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// The calling process goes on in the directories, which have been made. To be called while
    /// it has one thread.
    ///
    /// Where there is only v2 it goes on as a process that is made there: moving one that is
    /// there already waits for all processors, ten milliseconds and more.
    pub fn move_in(&self) -> Result<Moved> {
        let Some(directory) = self.open_for_clone() else {
            self.entrances(false, "")?.enter()?;
            return Ok(Moved::Itself);
        };
        let inside = Some(directory.as_fd());
        // SAFETY: the caller vouches for there being one thread.
        match unsafe { fork(0, inside) }.during(|| "make a process in its cgroup")? {
            Side::Parent(child) => {
                // It only waits: what it could do beyond that, nobody is to find there.
                let _ = keep_only(0);
                child.stand_for_it()
            }
            Side::Child => {
                cred::set_parent_death_signal(libc::SIGKILL)
                    .during(|| "end with the first process")?;
                Ok(Moved::AsAnother)
            }
        }
    }

    /// Takes the directories away in which no process is; says whether all are gone.
    pub fn remove_if_empty(&self) -> Result<bool> {
        let mut gone = true;
        for directory in self.hierarchies.iter().filter_map(Hierarchy::directory) {
            match remove_tree(directory) {
                Ok(()) => {}
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => gone = false,
                Err(e) => {
                    return Err(e).during(|| format!("remove the cgroup {}", directory.display()));
                }
            }
        }
        Ok(gone)
    }
}

/// A weight of processor time as cgroup v2 counts it (1 to 10000, 100 the default) as the shares
/// of a configuration, which this host's controller makes the same weight of.
pub fn cpu_shares(weight: u64) -> Result<u64> {
    let v1 = detect()?.iter().any(|h| !h.is_unified() && h.has_controller("cpu"));
    // v1 divides by shares; v2 turns them into weights along a curve.
    Ok(if v1 { of_v1(weight) } else { v2::shares_of_weight(weight) })
}

/// As the kernel does it: the defaults are the same, and between them it is one factor.
fn of_v1(weight: u64) -> u64 {
    const DEFAULT_WEIGHT: u64 = 100;
    const DEFAULT_SHARES: u64 = 1024;
    const LEAST: u64 = 2;
    let shares = (weight.saturating_mul(DEFAULT_SHARES) + DEFAULT_WEIGHT / 2) / DEFAULT_WEIGHT;
    shares.clamp(LEAST, 262_144)
}
