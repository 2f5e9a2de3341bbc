//! Limits in the files of the unified hierarchy.

use std::path::Path;

use super::v1::{checked_page_size, limit_or_max};
use super::{Hierarchy, write};
use crate::error::{Error, Result};
use crate::spec::{BlockIo, Cpu, Memory, Rdma, Resources};

/// Writes every limit whose controller is in the unified hierarchy.
pub fn apply(unified: &Hierarchy, resources: &Resources) -> Result<()> {
    let Some(directory) = unified.directory() else { return Ok(()) };
    if unified.has_controller("memory") {
        memory(directory, &resources.memory)?;
    }
    if unified.has_controller("cpu") {
        cpu(directory, &resources.cpu)?;
    }
    if unified.has_controller("cpuset") {
        for (file, value) in
            [("cpuset.cpus", &resources.cpu.cpus), ("cpuset.mems", &resources.cpu.mems)]
        {
            if let Some(value) = value.as_deref().filter(|v| !v.is_empty()) {
                write(directory, file, value)?;
            }
        }
    }
    if unified.has_controller("pids")
        && let Some(pids) = resources.pids
        && pids.limit != 0
    {
        write(directory, "pids.max", &limit_or_max(pids.limit))?;
    }
    if unified.has_controller("io") {
        block_io(directory, &resources.block_io)?;
    }
    if unified.has_controller("hugetlb") {
        for limit in &resources.hugepage_limits {
            let size = checked_page_size(&limit.page_size)?;
            write(directory, &format!("hugetlb.{size}.max"), &limit.limit.to_string())?;
        }
    }
    if unified.has_controller("rdma") {
        for (device, limits) in &resources.rdma {
            write(directory, "rdma.max", &rdma_line(device, limits))?;
        }
    }
    for (file, value) in &resources.unified {
        if file.is_empty() || file.contains('/') || file.starts_with('.') {
            return Err(Error::config("linux.resources.unified", format!("{file:?}")));
        }
        for line in value.lines() {
            write(directory, file, line)?;
        }
    }
    Ok(())
}

/// A line of `rdma.max`.
pub fn rdma_line(device: &str, limits: &Rdma) -> String {
    let mut line = device.to_owned();
    if let Some(n) = limits.hca_handles {
        line.push_str(&format!(" hca_handle={n}"));
    }
    if let Some(n) = limits.hca_objects {
        line.push_str(&format!(" hca_object={n}"));
    }
    line
}

fn memory(directory: &Path, memory: &Memory) -> Result<()> {
    let limit = memory.limit.filter(|l| *l != 0);
    if let Some(swap) = memory.swap.filter(|s| *s != 0) {
        // The configuration counts memory and swap together, v2 swap alone.
        let value = match (swap, limit) {
            (-1, _) => "max".to_owned(),
            (total, Some(limit)) if limit > 0 && total >= limit => (total - limit).to_string(),
            _ => {
                return Err(Error::config(
                    "linux.resources.memory.swap",
                    "memory and swap together cannot be below the memory limit, and need one",
                ));
            }
        };
        if directory.join("memory.swap.max").exists() {
            write(directory, "memory.swap.max", &value)?;
        } else {
            tracing::warn!("not enforced on this host: the swap limit (no swap accounting)");
        }
    }
    if let Some(limit) = limit {
        if memory.check_before_update == Some(true)
            && limit > 0
            && super::stats::number(directory, "memory.current").is_some_and(|c| c > limit as u64)
        {
            return Err(Error::config(
                "linux.resources.memory.limit",
                "the container uses more than that already",
            ));
        }
        write(directory, "memory.max", &limit_or_max(limit))?;
    }
    if let Some(value) = memory.reservation.filter(|v| *v != 0) {
        write(directory, "memory.low", &limit_or_max(value))?;
    }
    Ok(())
}

/// v1 shares (2 to 262144, 1024 the default) as a v2 weight (1 to 10000, 100
/// the default): the ends and the middle agree, and between them the weight
/// grows as a curve, given here at the powers of two and straight in between.
pub fn weight_of_shares(shares: u64) -> u64 {
    const AT_POWERS: [u64; 18] =
        [1, 2, 3, 5, 8, 12, 21, 35, 59, 100, 174, 303, 532, 942, 1681, 3023, 5478, 10_000];
    let shares = shares.clamp(2, 262_144);
    let power = shares.ilog2() as usize;
    let low = AT_POWERS[power - 1];
    let Some(high) = AT_POWERS.get(power) else { return low };
    low + (high - low) * (shares - (1 << power)) / (1 << power)
}

/// The shares that become this weight, 1 to 10000.
pub fn shares_of_weight(weight: u64) -> u64 {
    let (mut low, mut high) = (2, 262_144);
    while low < high {
        let middle = (low + high) / 2;
        if weight_of_shares(middle) < weight { low = middle + 1 } else { high = middle }
    }
    low
}

fn cpu(directory: &Path, cpu: &Cpu) -> Result<()> {
    if cpu.realtime_runtime.is_some_and(|r| r != 0) || cpu.realtime_period.is_some_and(|p| p != 0) {
        return Err(Error::unsupported(
            "realtime CPU time",
            "cgroup v2 has no such limit: leave out cpu.realtimeRuntime and realtimePeriod",
        ));
    }
    if let Some(shares) = cpu.shares.filter(|s| *s != 0) {
        write(directory, "cpu.weight", &weight_of_shares(shares).to_string())?;
    }
    let quota = cpu.quota.filter(|q| *q != 0);
    let period = cpu.period.filter(|p| *p != 0);
    if quota.is_some() || period.is_some() {
        let quota = quota.map_or("max".to_owned(), limit_or_max);
        let line = match period {
            Some(period) => format!("{quota} {period}"),
            None => quota,
        };
        write(directory, "cpu.max", &line)?;
    }
    if let Some(burst) = cpu.burst {
        write(directory, "cpu.max.burst", &burst.to_string())?;
    }
    if let Some(idle) = cpu.idle {
        write(directory, "cpu.idle", &idle.to_string())?;
    }
    Ok(())
}

fn block_io(directory: &Path, io: &BlockIo) -> Result<()> {
    if let Some(weight) = io.weight.filter(|w| *w != 0) {
        if directory.join("io.bfq.weight").exists() {
            write(directory, "io.bfq.weight", &weight.to_string())?;
        } else {
            // 10 to 1000 becomes 1 to 10000.
            let scaled = 1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990;
            write(directory, "io.weight", &scaled.to_string())?;
        }
    }
    for d in &io.weight_device {
        if let Some(weight) = d.weight {
            write(directory, "io.bfq.weight", &format!("{}:{} {weight}", d.major, d.minor))?;
        }
    }
    for (key, list) in [
        ("rbps", &io.throttle_read_bps_device),
        ("wbps", &io.throttle_write_bps_device),
        ("riops", &io.throttle_read_iops_device),
        ("wiops", &io.throttle_write_iops_device),
    ] {
        for d in list {
            write(directory, "io.max", &format!("{}:{} {key}={}", d.major, d.minor, d.rate))?;
        }
    }
    Ok(())
}
