//! Scheduler, I/O priority, CPU affinity and execution domain of the program.

use crate::error::{Context, Error, Result};
use crate::spec::{IoPriority, Personality, Scheduler};
use crate::sys::sched::{self, SchedAttr};

const POLICIES: [(&str, u32); 7] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_ISO", 4),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];

const FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

/// Sets the calling process's scheduler.
pub fn apply_scheduler(wanted: &Scheduler) -> Result<()> {
    let mut attr = SchedAttr {
        policy: find(&POLICIES, &wanted.policy, "process.scheduler.policy")?,
        nice: wanted.nice,
        priority: u32::try_from(wanted.priority)
            .map_err(|_| Error::config("process.scheduler.priority", "is negative"))?,
        runtime: wanted.runtime,
        deadline: wanted.deadline,
        period: wanted.period,
        ..SchedAttr::default()
    };
    for flag in &wanted.flags {
        attr.flags |= find(&FLAGS, flag, "process.scheduler.flags")?;
    }
    sched::set_scheduler(attr).during(|| format!("set the scheduler {}", wanted.policy))
}

/// Sets the calling process's I/O priority.
pub fn apply_io_priority(wanted: &IoPriority) -> Result<()> {
    let classes = [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];
    let class = find(&classes, &wanted.class, "process.ioPriority.class")?;
    if !(0..=7).contains(&wanted.priority) {
        return Err(Error::config("process.ioPriority.priority", "is not between 0 and 7"));
    }
    sched::set_io_priority(class, wanted.priority as u32)
        .during(|| format!("set the I/O priority {}", wanted.class))
}

/// Sets the calling process's execution domain.
pub fn apply_personality(wanted: &Personality) -> Result<()> {
    let domain = match wanted.domain.as_str() {
        "LINUX" => 0,
        "LINUX32" => 8,
        other => {
            return Err(Error::config("linux.personality", format!("no domain {other:?}")));
        }
    };
    if !wanted.flags.is_empty() {
        return Err(Error::config("linux.personality.flags", "no flag is defined"));
    }
    crate::sys::cred::set_personality(domain).during(|| "set the personality")
}

/// Binds a process to a list of CPUs such as `0-2,5`.
pub fn apply_affinity(pid: i32, list: &str) -> Result<()> {
    let cpus = parse_cpus(list)
        .ok_or_else(|| Error::config("process.execCPUAffinity", format!("{list:?}")))?;
    sched::set_affinity(pid, &cpus).during(|| format!("bind to CPUs {list}"))
}

/// The numbers of a list such as `0-2,5`, of CPUs or of memory nodes.
pub fn parse_cpus(list: &str) -> Option<Vec<usize>> {
    const MOST: usize = 8192;
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// The value of a name, or an error that says in which field it was.
pub(super) fn find<T: Copy>(table: &[(&str, T)], name: &str, field: &str) -> Result<T> {
    table
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, value)| *value)
        .ok_or_else(|| Error::config(field, format!("{name:?} is not known")))
}
