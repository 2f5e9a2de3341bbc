//! Control groups: the version, the controllers, and whether they can be used.

use std::path::Path;

use rustix::fs::Access;

use super::read;
use crate::{Finding, Group};

pub fn examine() -> Group {
    let mounts = read("/proc/self/mounts").unwrap_or_default();
    let unified = read("/sys/fs/cgroup/cgroup.controllers");
    let findings = vec![version(&mounts, unified.as_deref()), controllers(&mounts), writable()];
    Group { name: "Control groups", findings }
}

/// Where each kind of hierarchy is mounted: kind and controllers.
fn hierarchies(mounts: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        kind.starts_with("cgroup").then_some((path, kind, options))
    })
}

pub(super) fn version(mounts: &str, unified: Option<&str>) -> Finding {
    let first = hierarchies(mounts).any(|(_, kind, _)| kind == "cgroup");
    let second = hierarchies(mounts).any(|(_, kind, _)| kind == "cgroup2");
    match (first, second || unified.is_some()) {
        (false, true) => Finding::found(
            "version",
            "2, for everything",
            "CPU, memory, processes and I/O of each instance are limited and measured",
        ),
        (true, false) => Finding::found(
            "version",
            "1",
            "CPU, memory and processes of each instance are limited and measured",
        ),
        (true, true) => Finding::limited(
            "version",
            "1 and 2 side by side",
            "Guise uses version 1 for what is not in version 2",
            "boot with systemd.unified_cgroup_hierarchy=1",
        ),
        (false, false) => Finding::missing(
            "version",
            "No hierarchy is mounted",
            "Instances run without limits, and a limit that is asked for is refused",
            "mount -t cgroup2 none /sys/fs/cgroup",
        ),
    }
}

const WANTED: [&str; 5] = ["cpu", "cpuset", "memory", "pids", "io"];

fn controllers(mounts: &str) -> Finding {
    let mut names: Vec<String> = Vec::new();
    for (path, kind, options) in hierarchies(mounts) {
        if kind == "cgroup2" {
            let listed = read(&format!("{path}/cgroup.controllers")).unwrap_or_default();
            names.extend(listed.split_whitespace().map(str::to_owned));
        } else {
            names.extend(version_1_controllers(options));
        }
    }
    names.sort();
    names.dedup();
    // Version 1's name for the same thing.
    let has =
        |wanted: &str| names.iter().any(|name| name == wanted || wanted == "io" && name == "blkio");
    let absent: Vec<_> = WANTED.into_iter().filter(|wanted| !has(wanted)).collect();
    if absent.is_empty() {
        return Finding::found("controllers", names.join(", "), "Every limit can be set");
    }
    Finding::limited(
        "controllers",
        format!("{}; missing: {}", names.join(", "), absent.join(", ")),
        "Limits of the missing kinds are refused",
        "write +NAME into cgroup.subtree_control of the group above, as root",
    )
}

pub(super) fn version_1_controllers(options: &str) -> Vec<String> {
    const KNOWN: [&str; 12] = [
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "devices",
        "freezer",
        "blkio",
        "pids",
        "net_cls",
        "net_prio",
        "perf_event",
        "hugetlb",
    ];
    options.split(',').filter(|option| KNOWN.contains(option)).map(str::to_owned).collect()
}

/// Whether groups can be made by this user.
fn writable() -> Finding {
    let own = read("/proc/self/cgroup").unwrap_or_default();
    let group = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let unified = format!("/sys/fs/cgroup{}", group.trim_end_matches('/'));
    let places = [unified.as_str(), "/sys/fs/cgroup/memory", "/sys/fs/cgroup"];
    let writable = places.into_iter().find(|path| {
        Path::new(path).is_dir() && rustix::fs::access(*path, Access::WRITE_OK).is_ok()
    });
    match writable {
        Some(path) => Finding::found("delegation", path, "Instances get groups of their own"),
        None => Finding::missing(
            "delegation",
            "This user may not make groups",
            "Instances run in the group of whoever started them",
            "run the daemon as a systemd user service with Delegate=yes",
        ),
    }
}
