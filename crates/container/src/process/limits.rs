//! Resource limits by name.

use std::io;

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

/// So many open files are allowed on any machine that was not told otherwise.
const SURELY_ALLOWED: u64 = 4096;

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
        if limit.kind == "RLIMIT_NOFILE" && limit.hard > SURELY_ALLOWED {
            let most = most_open_files();
            if limit.hard > most {
                return Err(Error::config(
                    "process.rlimits",
                    format!(
                        "RLIMIT_NOFILE {}: this kernel allows {most} (sysctl fs.nr_open)",
                        limit.hard
                    ),
                ));
            }
        }
    }
    Ok(())
}

/// Sets the limits of a process.
pub fn apply(pid: i32, limits: &[Rlimit]) -> Result<()> {
    for limit in limits {
        set(pid, limit)?.during(|| {
            format!(
                "set {} to {}:{} (raising a hard limit needs CAP_SYS_RESOURCE on the host)",
                limit.kind, limit.soft, limit.hard
            )
        })?;
    }
    Ok(())
}

/// Sets those of the calling process, as far as it may; whether it may set all. A process may
/// always do with less, and in a user namespace not with more.
pub fn apply_own(limits: &[Rlimit]) -> Result<bool> {
    const THIS_PROCESS: i32 = 0;
    let mut all = true;
    for limit in limits {
        all &= set(THIS_PROCESS, limit)?.is_ok();
    }
    Ok(all)
}

fn set(pid: i32, limit: &Rlimit) -> Result<io::Result<()>> {
    Ok(cred::set_rlimit(pid, number(&limit.kind)?, limit.soft, limit.hard))
}

/// The number of open files that no limit may pass, for anybody.
fn most_open_files() -> u64 {
    // Every kernel's least; the file is only there to raise it.
    const USUAL: u64 = 1 << 20;
    let said = std::fs::read_to_string("/proc/sys/fs/nr_open").ok();
    said.and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL)
}

fn number(name: &str) -> Result<u32> {
    LIMITS
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, number)| *number)
        .ok_or_else(|| Error::config("process.rlimits", format!("no limit {name:?}")))
}
