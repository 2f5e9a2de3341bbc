//! Memory: how much, huge pages, merging of equal pages, page faults in user space.

use super::read;
use crate::{Finding, Group};

pub fn examine() -> Group {
    let meminfo = read("/proc/meminfo").unwrap_or_default();
    let findings =
        vec![amount(&meminfo), transparent(), huge_pages(&meminfo), merging(), userfaultfd()];
    Group { name: "Memory", findings }
}

/// A line of /proc/meminfo: its number.
pub(super) fn field(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn amount(meminfo: &str) -> Finding {
    let mebibytes = |name| field(meminfo, name) / 1024;
    let (total, free) = (mebibytes("MemTotal"), mebibytes("MemAvailable"));
    Finding::found(
        "memory",
        format!("{total} MiB, {free} MiB of it free"),
        "A guest's memory takes what the guest has touched",
    )
}

fn transparent() -> Finding {
    const NAME: &str = "transparent huge";
    const REMEDY: &str = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
    match read("/sys/kernel/mm/transparent_hugepage/enabled") {
        Some(modes) if !modes.contains("[never]") => {
            Finding::found(NAME, modes, "Guest memory gets large pages by itself")
        }
        Some(modes) => {
            Finding::limited(NAME, modes, "Guest memory is in small pages, a little slower", REMEDY)
        }
        None => Finding::missing(
            NAME,
            "The kernel has none",
            "Guest memory is in small pages, a little slower",
            "a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        ),
    }
}

fn huge_pages(meminfo: &str) -> Finding {
    let (total, size) = (field(meminfo, "HugePages_Total"), field(meminfo, "Hugepagesize"));
    match total {
        0 => Finding::missing(
            "huge pages",
            "None are set aside",
            "Guest memory is ordinary memory, which is the default anyway",
            "sysctl vm.nr_hugepages=512",
        ),
        _ => Finding::found(
            "huge pages",
            format!("{total} of {size} KiB"),
            "They are set aside for programs that ask; Guise uses ordinary memory",
        ),
    }
}

fn merging() -> Finding {
    match read("/sys/kernel/mm/ksm/run").as_deref() {
        Some("1") => Finding::found("KSM", "It runs", "Equal pages of guests are stored once"),
        Some(_) => Finding::limited(
            "KSM",
            "The kernel has it and it is off",
            "Equal pages of guests are stored as often as there are guests",
            "echo 1 > /sys/kernel/mm/ksm/run",
        ),
        None => Finding::missing(
            "KSM",
            "The kernel has none",
            "Equal pages of guests are stored as often as there are guests",
            "a kernel with CONFIG_KSM",
        ),
    }
}

fn userfaultfd() -> Finding {
    use rustix::mm::UserfaultfdFlags;
    // SAFETY: this makes a descriptor and registers no memory with it; it is closed
    // again at once, so no page fault of this process can ever wait for it.
    let attempt = unsafe {
        rustix::mm::userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::from_bits_retain(1))
    };
    match attempt {
        Ok(_) => Finding::found(
            "userfaultfd",
            "It can be made",
            "A restored machine starts before its memory has been read",
        ),
        Err(error) => Finding::missing(
            "userfaultfd",
            format!("The kernel refuses: {error}"),
            "A restored machine starts after its memory has been read",
            "sysctl vm.unprivileged_userfaultfd=1",
        ),
    }
}
