//! Resource limits by name.

use crate::error::{Context, Error, Result};
use crate::spec::Rlimit;
use crate::sys::cred;

/// Names and the kernel's numbers.
const LIMITS: [(&str, u32); 16] = [
    ("RLIMIT_CPU", libc::RLIMIT_CPU),
    ("RLIMIT_FSIZE", libc::RLIMIT_FSIZE),
    ("RLIMIT_DATA", libc::RLIMIT_DATA),
    ("RLIMIT_STACK", libc::RLIMIT_STACK),
    ("RLIMIT_CORE", libc::RLIMIT_CORE),
    ("RLIMIT_RSS", libc::RLIMIT_RSS),
    ("RLIMIT_NPROC", libc::RLIMIT_NPROC),
    ("RLIMIT_NOFILE", libc::RLIMIT_NOFILE),
    ("RLIMIT_MEMLOCK", libc::RLIMIT_MEMLOCK),
    ("RLIMIT_AS", libc::RLIMIT_AS),
    ("RLIMIT_LOCKS", libc::RLIMIT_LOCKS),
    ("RLIMIT_SIGPENDING", libc::RLIMIT_SIGPENDING),
    ("RLIMIT_MSGQUEUE", libc::RLIMIT_MSGQUEUE),
    ("RLIMIT_NICE", libc::RLIMIT_NICE),
    ("RLIMIT_RTPRIO", libc::RLIMIT_RTPRIO),
    ("RLIMIT_RTTIME", libc::RLIMIT_RTTIME),
];

/// Refuses limits that no kernel has, before anything is made.
pub fn check(limits: &[Rlimit]) -> Result<()> {
    for limit in limits {
        number(&limit.kind)?;
        if limit.soft > limit.hard {
            return Err(Error::config(
                "process.rlimits",
                format!("{}: the soft limit is above the hard one", limit.kind),
            ));
        }
    }
    Ok(())
}

/// Sets the limits of a process; 0 is the calling one.
pub fn apply(pid: i32, limits: &[Rlimit]) -> Result<()> {
    for limit in limits {
        cred::set_rlimit(pid, number(&limit.kind)?, limit.soft, limit.hard).during(|| {
            format!(
                "set {} to {}:{} (raising a hard limit needs CAP_SYS_RESOURCE on the host)",
                limit.kind, limit.soft, limit.hard
            )
        })?;
    }
    Ok(())
}

fn number(name: &str) -> Result<u32> {
    LIMITS
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, number)| *number)
        .ok_or_else(|| Error::config("process.rlimits", format!("no limit {name:?}")))
}
