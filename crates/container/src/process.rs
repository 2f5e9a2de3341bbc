//! Turning the container's first process into the program it is for:
//! credentials, limits, scheduling, terminal, and the final exec.

pub mod caps;
pub mod enter;
pub mod labels;
pub mod landlock;
pub mod limits;
pub mod lookup;
pub mod memory_policy;
pub mod schedule;
pub mod terminal;

use std::collections::BTreeMap;

use crate::error::Result;
use crate::spec::Process;

/// Refuses what no process can be given, before anything is made: whether it is a container's
/// first or one that joins it.
pub fn check(process: &Process, annotations: &BTreeMap<String, String>) -> Result<()> {
    limits::check(&process.rlimits)?;
    process.capabilities.as_ref().map_or(Ok(()), caps::check)?;
    landlock::check(annotations, process)
}
