//! What a container uses, read from its cgroups, in the shape that `events
//! --stats` prints.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Cgroup, Hierarchy};
use crate::sys::files::read_text;

/// A file with one number.
pub fn number(directory: &Path, file: &str) -> Option<u64> {
    let text = read_text(&directory.join(file)).ok()?;
    match text.trim() {
        "max" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// One line's number in a file of `key number` lines; 0 where it is missing.
pub fn keyed(directory: &Path, file: &str, key: &str) -> u64 {
    all_keyed(directory, file).get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn all_keyed(directory: &Path, file: &str) -> Map<String, Value> {
    let text = read_text(&directory.join(file)).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), json!(value.trim().parse::<u64>().ok()?)))
        })
        .collect()
}

/// Everything.
pub fn collect(cgroup: &Cgroup) -> Value {
    let unified = cgroup.unified().and_then(Hierarchy::directory);
    let place = |v1: &str| cgroup.controller(v1).map(|d| (d, false)).or(unified.map(|d| (d, true)));
    json!({
        "cpu": place("cpuacct").map(|(d, v2)| cpu(cgroup, d, v2)),
        "memory": place("memory").map(|(d, v2)| memory(d, v2)),
        "pids": place("pids").map(|(d, _)| json!({
            "current": number(d, "pids.current").unwrap_or(0),
            "limit": number(d, "pids.max").filter(|l| *l != u64::MAX).unwrap_or(0),
        })),
        "blkio": place("blkio").map(|(d, v2)| block_io(d, v2)),
        "hugetlb": place("hugetlb").map(|(d, v2)| huge_pages(d, v2)),
    })
}

fn cpu(cgroup: &Cgroup, directory: &Path, v2: bool) -> Value {
    if v2 {
        let stat = all_keyed(directory, "cpu.stat");
        let of = |key: &str| stat.get(key).and_then(Value::as_u64).unwrap_or(0);
        return json!({
            "usage": {
                "total": of("usage_usec") * 1000,
                "kernel": of("system_usec") * 1000,
                "user": of("user_usec") * 1000,
            },
            "throttling": {
                "periods": of("nr_periods"),
                "throttledPeriods": of("nr_throttled"),
                "throttledTime": of("throttled_usec") * 1000,
            },
            "pressure": pressure(directory, "cpu.pressure"),
        });
    }
    let per_cpu: Vec<u64> = fs::read_to_string(directory.join("cpuacct.usage_percpu"))
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|n| n.parse().ok())
        .collect();
    let throttling = cgroup.controller("cpu").map(|d| {
        json!({
            "periods": keyed(d, "cpu.stat", "nr_periods"),
            "throttledPeriods": keyed(d, "cpu.stat", "nr_throttled"),
            "throttledTime": keyed(d, "cpu.stat", "throttled_time"),
        })
    });
    json!({
        "usage": {
            "total": number(directory, "cpuacct.usage").unwrap_or(0),
            "percpu": per_cpu,
            "kernel": number(directory, "cpuacct.usage_sys").unwrap_or(0),
            "user": number(directory, "cpuacct.usage_user").unwrap_or(0),
        },
        "throttling": throttling,
    })
}

fn memory(directory: &Path, v2: bool) -> Value {
    let raw = all_keyed(directory, "memory.stat");
    if v2 {
        let file = |name: &str| number(directory, name).unwrap_or(0);
        return json!({
            "usage": { "usage": file("memory.current"), "max": file("memory.peak"), "limit": file("memory.max") },
            "swap": { "usage": file("memory.swap.current"), "limit": file("memory.swap.max") },
            "cache": raw.get("file"),
            "raw": raw,
            "events": all_keyed(directory, "memory.events"),
            "pressure": pressure(directory, "memory.pressure"),
        });
    }
    let entry = |prefix: &str| {
        let file = |name: &str| number(directory, &format!("{prefix}.{name}")).unwrap_or(0);
        json!({
            "usage": file("usage_in_bytes"),
            "max": file("max_usage_in_bytes"),
            "limit": file("limit_in_bytes"),
            "failcnt": file("failcnt"),
        })
    };
    json!({
        "usage": entry("memory"),
        "swap": entry("memory.memsw"),
        "kernel": entry("memory.kmem"),
        "kernelTCP": entry("memory.kmem.tcp"),
        "cache": raw.get("cache"),
        "raw": raw,
    })
}

fn block_io(directory: &Path, v2: bool) -> Value {
    let file = if v2 { "io.stat" } else { "blkio.throttle.io_service_bytes" };
    let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
    let mut entries = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(|d| d.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse::<u32>(), minor.parse::<u32>()) else {
            continue;
        };
        let mut entry = |op: &str, value: Option<&str>| {
            if let Some(value) = value.and_then(|v| v.parse::<u64>().ok()) {
                entries.push(json!({"major": major, "minor": minor, "op": op, "value": value}));
            }
        };
        if v2 {
            for word in words {
                match word.split_once('=') {
                    Some(("rbytes", n)) => entry("Read", Some(n)),
                    Some(("wbytes", n)) => entry("Write", Some(n)),
                    _ => {}
                }
            }
        } else if let Some(op) = words.next() {
            entry(op, words.next());
        }
    }
    if v2 {
        let pressure = pressure(directory, "io.pressure");
        return json!({ "ioServiceBytesRecursive": entries, "pressure": pressure });
    }
    json!({ "ioServiceBytesRecursive": entries })
}

fn huge_pages(directory: &Path, v2: bool) -> Value {
    let suffix = if v2 { ".current" } else { ".usage_in_bytes" };
    let mut sizes = Map::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(size) = name
            .to_str()
            .and_then(|n| n.strip_prefix("hugetlb."))
            .and_then(|n| n.strip_suffix(suffix))
            .filter(|n| !n.contains('.'))
        else {
            continue;
        };
        let failed = if v2 {
            keyed(directory, &format!("hugetlb.{size}.events"), "max")
        } else {
            number(directory, &format!("hugetlb.{size}.failcnt")).unwrap_or(0)
        };
        let usage = number(directory, &format!("hugetlb.{size}{suffix}")).unwrap_or(0);
        sizes.insert(size.to_owned(), json!({"usage": usage, "failcnt": failed}));
    }
    Value::Object(sizes)
}

/// Stall information: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn pressure(directory: &Path, file: &str) -> Option<Value> {
    let text = fs::read_to_string(directory.join(file)).ok()?;
    let mut kinds = Map::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let kind = words.next()?;
        let fields: Map<String, Value> = words
            .filter_map(|w| {
                let (key, value) = w.split_once('=')?;
                Some((key.to_owned(), json!(value.parse::<f64>().ok()?)))
            })
            .collect();
        kinds.insert(kind.to_owned(), Value::Object(fields));
    }
    Some(Value::Object(kinds))
}
