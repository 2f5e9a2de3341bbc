//! What the kernel tells of the guest, in numbers.

use std::fs;

use guise_agent::protocol::Statistics;

/// `/proc/stat` counts in hundredths of seconds, whatever the kernel's own clock.
const MS_PER_TICK: u64 = 10;

/// What cannot be read is zero.
pub fn read() -> Statistics {
    let info = rustix::system::sysinfo();
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let mut statistics = Statistics {
        uptime_ms: uptime.tv_sec as u64 * 1000 + uptime.tv_nsec as u64 / 1_000_000,
        cpu_ms: busy_ticks(&text("/proc/stat")) * MS_PER_TICK,
        processes: u64::from(info.procs),
        ..Statistics::default()
    };
    let memory = text("/proc/meminfo");
    statistics.memory_total = kibibytes(&memory, "MemTotal:") << 10;
    statistics.memory_available = kibibytes(&memory, "MemAvailable:") << 10;
    if let Ok(disk) = rustix::fs::statvfs("/") {
        statistics.disk_total = disk.f_blocks * disk.f_frsize;
        statistics.disk_used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize;
    }
    (statistics.network_received, statistics.network_sent) = traffic(&text("/proc/net/dev"));
    statistics
}

/// How many processes the kernel has ended for lack of memory.
pub fn memory_kills() -> u64 {
    counter(&text("/proc/vmstat"), "oom_kill")
}

fn counter(table: &str, name: &str) -> u64 {
    let lines = table.lines().filter_map(|line| line.split_once(' '));
    let mut values = lines.filter(|(key, _)| *key == name).map(|(_, value)| value);
    values.next().and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// User, nice, system, then, after idle and waiting, the interrupts.
fn busy_ticks(stat: &str) -> u64 {
    let line = stat.lines().next().unwrap_or_default();
    let fields: Vec<u64> =
        line.split_whitespace().skip(1).map(|field| field.parse().unwrap_or(0)).collect();
    fields.iter().take(3).sum::<u64>() + fields.iter().skip(5).take(2).sum::<u64>()
}

fn kibibytes(memory: &str, name: &str) -> u64 {
    let line = memory.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Bytes of all interfaces but the loopback.
fn traffic(dev: &str) -> (u64, u64) {
    let lines = dev.lines().filter_map(|line| line.split_once(':'));
    let mut sum = (0, 0);
    for (_, counters) in lines.filter(|(name, _)| name.trim() != "lo") {
        let fields: Vec<u64> =
            counters.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
        sum.0 += fields.first().unwrap_or(&0);
        sum.1 += fields.get(8).unwrap_or(&0);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        assert_eq!(busy_ticks("cpu  1 2 3 400 500 6 7 8 9 10\ncpu0 1\n"), 19);
        assert_eq!(kibibytes("MemTotal:  1024 kB\nMemAvailable: 77 kB\n", "MemAvailable:"), 77);
        let dev = "Inter-| Receive\n face |bytes\n lo: 5 0 0 0 0 0 0 0 5 0\n \
                   eth0:100 1 0 0 0 0 0 0 200 2 0\n";
        assert_eq!(traffic(dev), (100, 200));
        assert_eq!(counter("oom_killer 9\noom_kill 3\n", "oom_kill"), 3);
        assert_eq!((busy_ticks(""), kibibytes("", "x"), traffic("")), (0, 0, (0, 0)));
    }

    #[test]
    fn this_machine_has_some() {
        let statistics = read();
        assert!(statistics.memory_total > 0 && statistics.uptime_ms > 0);
        assert!(statistics.processes > 0);
    }
}
