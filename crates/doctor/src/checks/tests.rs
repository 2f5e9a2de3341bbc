use guise_container::namespaces::ranges::{Ids, Lack};
use guise_container::spec::IdMap;
use rustix::process::Rlimit;

use super::*;
use crate::Status;

const OLD_INTEL: &str = "processor\t: 0\nmodel name\t: Old\nflags\t\t: fpu vmx sse2 cx16 lahf_lm \
popcnt sse4_1 sse4_2 ssse3 pni\nvmx flags\t: vnmi ept vpid\n";

#[test]
fn flags_come_from_both_lines() {
    let flags = cpu_flags(OLD_INTEL);
    assert!(flags.contains(&"vmx") && flags.contains(&"ept") && !flags.contains(&"avx"));
    assert_eq!(virtualization::extensions(&flags).status, Status::Found);
    assert_eq!(virtualization::nested_paging(&flags).status, Status::Found);
    assert_eq!(virtualization::extensions(&["hypervisor"]).status, Status::Missing);
}

#[test]
fn the_level_of_the_instruction_set_names_what_is_missing() {
    let finding = processor::level(OLD_INTEL);
    assert_eq!(finding.status, Status::Limited);
    assert!(finding.detail.starts_with("x86-64-v2; for v3 it lacks avx, avx2"), "{finding:?}");
    assert!(processor::level("flags : sse2").detail.contains("without cx16"));
}

#[test]
fn the_versions_of_control_groups_are_told_apart() {
    let first = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0";
    let second = "none /sys/fs/cgroup cgroup2 rw 0 0";
    let both = format!("{first}\n{second}");
    let status = |mounts: &str| cgroups::version(mounts, None).status;
    assert_eq!(status(first), Status::Found);
    assert_eq!(status(second), Status::Found);
    assert_eq!(status(&both), Status::Limited);
    assert_eq!(status("proc /proc proc rw 0 0"), Status::Missing);
    assert_eq!(cgroups::version_1_controllers("rw,nosuid,cpu,cpuacct"), ["cpu", "cpuacct"]);
}

#[test]
fn a_feature_of_the_processor_that_the_kernel_ignores_is_limited() {
    let status = |cpu, kernel| confidential::technology("X", cpu, kernel, "y").status;
    assert_eq!(status(true, true), Status::Found);
    assert_eq!(status(true, false), Status::Limited);
    assert_eq!(status(false, false), Status::Missing);
}

#[test]
fn numbers_of_meminfo_are_read_by_their_whole_name() {
    let meminfo = "MemTotal:       100 kB\nMemTotalOther:  7 kB\nHugePages_Total:       3";
    assert_eq!(memory::field(meminfo, "MemTotal"), 100);
    assert_eq!(memory::field(meminfo, "HugePages_Total"), 3);
    assert_eq!(memory::field(meminfo, "Mem"), 0);
}

#[test]
fn a_low_hard_limit_is_limited() {
    let status = |maximum| {
        let limit = Rlimit { current: Some(10), maximum };
        limits::limit("x", limit, 100, "y", "z").status
    };
    assert_eq!(status(Some(99)), Status::Limited);
    assert_eq!(status(Some(100)), Status::Found);
    assert_eq!(status(None), Status::Found);
}

#[test]
fn the_examination_of_this_host_is_complete() {
    let report = crate::examine();
    let namespaces = report.groups.iter().find(|group| group.name == "Namespaces").unwrap();
    assert_eq!(namespaces.findings.len(), 8);
    for finding in report.groups.iter().flat_map(|group| &group.findings) {
        assert_eq!(finding.remedy.is_none(), finding.status == Status::Found, "{finding:?}");
    }
}

#[test]
fn who_has_ranges_of_ids_is_told_how_far_they_go() {
    let map = |container, host, size| IdMap { container, host, size };
    let uids = vec![map(0, 1000, 1), map(1, 100_000, 65_536)];
    let gids = vec![map(0, 1000, 1), map(1, 100_000, 999)];
    let found = namespaces::users(Ok(Ids { uids, gids }));
    assert_eq!(found.status, Status::Found);
    assert!(found.detail.starts_with("0 to 999,"), "{found:?}");
    let lacking = namespaces::users(Err(Lack::Range("/etc/subuid")));
    assert_eq!(lacking.status, Status::Limited);
    assert!(lacking.detail.contains("/etc/subuid") && lacking.remedy.is_some(), "{lacking:?}");
}
