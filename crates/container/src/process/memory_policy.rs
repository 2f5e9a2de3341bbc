//! On which nodes of a machine with several memories a container's memory is taken
//! (`linux.memoryPolicy`). The policy belongs to a process and to what it starts; executing a
//! program keeps it.

use super::schedule::{find, parse_cpus};
use crate::error::{Context, Error, Result};
use crate::spec::MemoryPolicy;
use crate::sys::sched;

const MODES: [(&str, u32); 7] = [
    ("MPOL_DEFAULT", 0),
    ("MPOL_PREFERRED", 1),
    ("MPOL_BIND", 2),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];

const FLAGS: [(&str, u32); 3] = [
    ("MPOL_F_NUMA_BALANCING", 1 << 13),
    ("MPOL_F_RELATIVE_NODES", 1 << 14),
    ("MPOL_F_STATIC_NODES", 1 << 15),
];

/// A policy as the kernel takes it.
#[derive(Debug, PartialEq, Eq)]
struct Policy {
    mode: u32,
    nodes: Vec<usize>,
}

fn parse(wanted: &MemoryPolicy) -> Result<Policy> {
    let mut mode = find(&MODES, &wanted.mode, "linux.memoryPolicy.mode")?;
    for flag in &wanted.flags {
        mode |= find(&FLAGS, flag, "linux.memoryPolicy.flags")?;
    }
    let nodes = match wanted.nodes.trim() {
        "" => Vec::new(),
        list => parse_cpus(list).ok_or_else(|| {
            Error::config("linux.memoryPolicy.nodes", format!("{list:?} is not a list of nodes"))
        })?,
    };
    Ok(Policy { mode, nodes })
}

/// Refuses names that no kernel has, before anything is made.
pub fn check(wanted: &MemoryPolicy) -> Result<()> {
    parse(wanted).map(drop)
}

/// Sets the policy of the calling process.
pub fn apply(wanted: &MemoryPolicy) -> Result<()> {
    let policy = parse(wanted)?;
    sched::set_memory_policy(policy.mode, &policy.nodes).during(|| {
        let flags = wanted.flags.join(", ");
        format!("set linux.memoryPolicy {} {} {flags}", wanted.mode, wanted.nodes)
    })
}

#[cfg(test)]
mod tests;
