//! Limits on this process and its children.

use rustix::process::{Resource, Rlimit, getrlimit};

use crate::{Finding, Group};

pub fn examine() -> Group {
    let findings = vec![
        limit(
            "open files",
            getrlimit(Resource::Nofile),
            4096,
            "Each instance needs some dozens of descriptors",
            "ulimit -n, or LimitNOFILE= of the service",
        ),
        limit(
            "processes",
            getrlimit(Resource::Nproc),
            1024,
            "Each vCPU and each worker is a thread or a process",
            "ulimit -u, or LimitNPROC= of the service",
        ),
        limit(
            "locked memory",
            getrlimit(Resource::Memlock),
            8 << 20,
            "Rings to the kernel are locked memory; guests' memory is not",
            "ulimit -l, or LimitMEMLOCK= of the service",
        ),
    ];
    Group { name: "Limits", findings }
}

/// The hard limit counts: a program may raise its soft limit up to that.
pub(super) fn limit(
    name: &'static str,
    limit: Rlimit,
    wanted: u64,
    effect: &'static str,
    remedy: &'static str,
) -> Finding {
    let number = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |n| n.to_string());
    let detail = format!("{}, up to {}", number(limit.current), number(limit.maximum));
    match limit.maximum {
        Some(maximum) if maximum < wanted => Finding::limited(name, detail, effect, remedy),
        _ => Finding::found(name, detail, effect),
    }
}
