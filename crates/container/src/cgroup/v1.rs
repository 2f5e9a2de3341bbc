//! Limits in the files of v1 controllers.

use std::path::Path;

use super::{Cgroup, write};
use crate::error::{Error, Result};
use crate::spec::{BlockIo, Cpu, Memory, Resources};

/// Writes every limit whose controller is mounted as v1.
pub fn apply(cgroup: &Cgroup, resources: &Resources) -> Result<()> {
    if let Some(directory) = cgroup.controller("memory") {
        memory(directory, &resources.memory)?;
    }
    if let Some(directory) = cgroup.controller("cpu") {
        cpu(directory, &resources.cpu)?;
    }
    if let Some(directory) = cgroup.controller("cpuset") {
        for (file, value) in
            [("cpuset.cpus", &resources.cpu.cpus), ("cpuset.mems", &resources.cpu.mems)]
        {
            if let Some(value) = value.as_deref().filter(|v| !v.is_empty()) {
                write(directory, file, value)?;
            }
        }
    }
    if let (Some(directory), Some(pids)) = (cgroup.controller("pids"), resources.pids)
        && pids.limit != 0
    {
        write(directory, "pids.max", &limit_or_max(pids.limit))?;
    }
    if let Some(directory) = cgroup.controller("blkio") {
        block_io(directory, &resources.block_io)?;
    }
    if let Some(directory) = cgroup.controller("hugetlb") {
        for limit in &resources.hugepage_limits {
            let size = checked_page_size(&limit.page_size)?;
            write(directory, &format!("hugetlb.{size}.limit_in_bytes"), &limit.limit.to_string())?;
        }
    }
    if let Some(network) = &resources.network {
        if let (Some(directory), Some(class)) = (cgroup.controller("net_cls"), network.class_id) {
            write(directory, "net_cls.classid", &class.to_string())?;
        }
        if let Some(directory) = cgroup.controller("net_prio") {
            for p in &network.priorities {
                write(directory, "net_prio.ifpriomap", &format!("{} {}", p.name, p.priority))?;
            }
        }
    }
    if let Some(directory) = cgroup.controller("rdma") {
        for (device, limits) in &resources.rdma {
            write(directory, "rdma.max", &super::v2::rdma_line(device, limits))?;
        }
    }
    Ok(())
}

/// A page size as it appears in file names, such as `2MB`.
pub fn checked_page_size(size: &str) -> Result<&str> {
    if size.is_empty() || !size.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(Error::config("linux.resources.hugepageLimits", format!("{size:?}")));
    }
    Ok(size)
}

/// `max` for anything that is not a limit.
pub fn limit_or_max(limit: i64) -> String {
    if limit < 0 { "max".into() } else { limit.to_string() }
}

fn memory(directory: &Path, memory: &Memory) -> Result<()> {
    let limit = memory.limit.filter(|l| *l != 0);
    let swap = memory.swap.filter(|s| *s != 0);
    let set = |file: &str, value: i64| write(directory, file, &value.to_string());
    // The limit may never be above memory plus swap: the order of the two
    // writes depends on which way the values move.
    match (limit, swap) {
        (Some(limit), Some(swap)) => {
            let current = super::stats::number(directory, "memory.memsw.limit_in_bytes");
            let grows = swap == -1 || current.is_some_and(|c| c < swap as u64);
            if grows {
                set_swap(directory, swap)?;
                set("memory.limit_in_bytes", limit)?;
            } else {
                set("memory.limit_in_bytes", limit)?;
                set_swap(directory, swap)?;
            }
        }
        (Some(limit), None) => set("memory.limit_in_bytes", limit)?,
        (None, Some(swap)) => set_swap(directory, swap)?,
        (None, None) => {}
    }
    if let Some(value) = memory.reservation.filter(|v| *v != 0) {
        set("memory.soft_limit_in_bytes", value)?;
    }
    if let Some(value) = memory.kernel_tcp.filter(|v| *v != 0) {
        set("memory.kmem.tcp.limit_in_bytes", value)?;
    }
    if let Some(value) = memory.swappiness {
        if value > 100 {
            return Err(Error::config("linux.resources.memory.swappiness", "is above 100"));
        }
        write(directory, "memory.swappiness", &value.to_string())?;
    }
    if memory.disable_oom_killer == Some(true) {
        write(directory, "memory.oom_control", "1")?;
    }
    if memory.kernel.is_some_and(|v| v > 0) {
        tracing::warn!("memory.kernel has no effect: the kernel dropped that limit");
    }
    Ok(())
}

fn set_swap(directory: &Path, value: i64) -> Result<()> {
    if !directory.join("memory.memsw.limit_in_bytes").exists() {
        tracing::warn!("not enforced on this host: the swap limit (no swap accounting)");
        return Ok(());
    }
    write(directory, "memory.memsw.limit_in_bytes", &value.to_string())
}

fn cpu(directory: &Path, cpu: &Cpu) -> Result<()> {
    let set = |file: &str, value: String| write(directory, file, &value);
    if let Some(shares) = cpu.shares.filter(|s| *s != 0) {
        set("cpu.shares", shares.to_string())?;
    }
    if let Some(period) = cpu.period.filter(|p| *p != 0) {
        set("cpu.cfs_period_us", period.to_string())?;
    }
    if let Some(quota) = cpu.quota.filter(|q| *q != 0) {
        set("cpu.cfs_quota_us", quota.to_string())?;
    }
    if let Some(burst) = cpu.burst {
        set("cpu.cfs_burst_us", burst.to_string())?;
    }
    if let Some(period) = cpu.realtime_period.filter(|p| *p != 0) {
        set("cpu.rt_period_us", period.to_string())?;
    }
    if let Some(runtime) = cpu.realtime_runtime.filter(|r| *r != 0) {
        set("cpu.rt_runtime_us", runtime.to_string())?;
    }
    if let Some(idle) = cpu.idle {
        set("cpu.idle", idle.to_string())?;
    }
    Ok(())
}

fn block_io(directory: &Path, io: &BlockIo) -> Result<()> {
    let weight_file =
        ["blkio.weight", "blkio.bfq.weight"].into_iter().find(|f| directory.join(f).exists());
    if let Some(weight) = io.weight.filter(|w| *w != 0) {
        match weight_file {
            Some(file) => write(directory, file, &weight.to_string())?,
            None => tracing::warn!("not enforced on this host: the I/O weight (no BFQ or CFQ)"),
        }
    }
    for d in &io.weight_device {
        let Some(weight) = d.weight else { continue };
        let file = ["blkio.weight_device", "blkio.bfq.weight_device"]
            .into_iter()
            .find(|f| directory.join(f).exists());
        match file {
            Some(file) => write(directory, file, &format!("{}:{} {weight}", d.major, d.minor))?,
            None => tracing::warn!("not enforced on this host: the I/O weight of a device"),
        }
    }
    for (file, list) in [
        ("blkio.throttle.read_bps_device", &io.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", &io.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", &io.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", &io.throttle_write_iops_device),
    ] {
        for d in list {
            write(directory, file, &format!("{}:{} {}", d.major, d.minor, d.rate))?;
        }
    }
    Ok(())
}
