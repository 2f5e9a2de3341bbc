//! Measurements in Prometheus' text form.

use std::fmt::Write as _;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use guise_api::{Instance, Phase, Pool};
use guise_worker::body::Stats;
use guise_worker::control::{Reply, Request};

use super::App;
use crate::{admission, link};

/// A worker that does not answer within this is left out.
const PATIENCE: Duration = Duration::from_secs(2);
const PHASES: [Phase; 9] = [
    Phase::Created,
    Phase::Starting,
    Phase::Running,
    Phase::Paused,
    Phase::Stopping,
    Phase::Exited,
    Phase::Failed,
    Phase::Waiting,
    Phase::Removing,
];

/// What is told of each file system that the daemon uses: name, meaning, value.
type OfPool = (&'static str, &'static str, fn(&Pool) -> Option<f64>);
const OF_POOLS: [OfPool; 8] = [
    ("size_bytes", "Space of a file system that is used.", |pool| number(Some(pool.total_bytes))),
    ("used_bytes", "Space in use, by whatever.", |pool| number(Some(pool.used_bytes))),
    ("free_bytes", "Space that may be written.", |pool| number(Some(pool.free_bytes))),
    ("kept_bytes", "Space with less than which nothing is begun.", |pool| {
        number(Some(pool.kept_bytes))
    }),
    ("promised_bytes", "What disks of instances may grow by.", |pool| {
        number(Some(pool.promised_bytes))
    }),
    ("inodes", "Files that there can be.", |pool| number(pool.total_inodes)),
    ("inodes_free", "Files that there still can be.", |pool| number(pool.free_inodes)),
    ("full_in_seconds", "When nothing is free, if it goes on as of late.", |pool| {
        number(pool.full_in_seconds)
    }),
];

/// What one measurement is read from.
type Read = fn(&Stats) -> Option<f64>;

/// What is told of each instance that runs: name, kind, meaning, value.
const OF_INSTANCES: [(&str, &str, &str, Read); 11] = [
    ("cpu_seconds_total", "counter", "Processor time.", |stats| {
        stats.cpu_nanoseconds.map(|nanoseconds| nanoseconds as f64 / 1e9)
    }),
    ("memory_bytes", "gauge", "Memory in use.", |stats| number(stats.memory_bytes)),
    ("memory_limit_bytes", "gauge", "Memory that may be used.", |stats| number(stats.memory_limit)),
    ("processes", "gauge", "Processes inside.", |stats| number(stats.processes)),
    ("disk_read_bytes_total", "counter", "Bytes read from disks.", |stats| {
        number(stats.disk_read_bytes)
    }),
    ("disk_written_bytes_total", "counter", "Bytes written to disks.", |stats| {
        number(stats.disk_written_bytes)
    }),
    ("network_received_bytes_total", "counter", "Bytes that came in.", |stats| {
        number(stats.network_received_bytes)
    }),
    ("network_sent_bytes_total", "counter", "Bytes that went out.", |stats| {
        number(stats.network_sent_bytes)
    }),
    (
        "pressure_cpu_seconds_total",
        "counter",
        "Time in which it waited for a processor.",
        |stats| seconds(stats.cpu_pressure_microseconds),
    ),
    ("pressure_memory_seconds_total", "counter", "Time in which it waited for memory.", |stats| {
        seconds(stats.memory_pressure_microseconds)
    }),
    ("pressure_io_seconds_total", "counter", "Time in which it waited for disks.", |stats| {
        seconds(stats.io_pressure_microseconds)
    }),
];

fn seconds(microseconds: Option<u64>) -> Option<f64> {
    microseconds.map(|microseconds| microseconds as f64 / 1e6)
}

fn number(value: Option<u64>) -> Option<f64> {
    value.map(|value| value as f64)
}

/// Measurements of the host, the daemon and each instance that runs.
#[utoipa::path(
    get, path = "/v1/metrics",
    responses((status = 200, description = "Prometheus' text form", body = String, content_type = "text/plain"))
)]
pub async fn metrics(State(daemon): State<App>) -> impl IntoResponse {
    let instances: Vec<_> = daemon.table.all().iter().map(|entry| entry.instance()).collect();
    let running = instances.iter().filter(|instance| instance.status.phase.has_socket()).cloned();
    let asked: Vec<_> = running
        .map(|instance| {
            let socket = daemon.config.place(&instance.id).socket();
            let ask = async move { link::request(&socket, &Request::Stats).await };
            (instance, tokio::spawn(tokio::time::timeout(PATIENCE, ask)))
        })
        .collect();
    let mut measured = Vec::new();
    for (instance, answer) in asked {
        // One that has just ended uses nothing.
        if let Ok(Ok(Ok(Reply::Stats(stats)))) = answer.await {
            measured.push((instance, stats));
        }
    }
    let mut text = String::new();
    host(&mut text);
    let looking = daemon.clone();
    let pools = tokio::task::spawn_blocking(move || looking.pools.look(&looking)).await;
    pools_in(&mut text, &pools.unwrap_or_default());
    head(&mut text, "guise_instances", "gauge", "Instances by phase.");
    for phase in PHASES {
        let count = instances.iter().filter(|instance| instance.status.phase == phase).count();
        line(&mut text, "guise_instances", &[("phase", phase.name())], count as f64);
    }
    for (name, kind, meaning, read) in OF_INSTANCES {
        let name = format!("guise_instance_{name}");
        head(&mut text, &name, kind, meaning);
        for (instance, stats) in &measured {
            let Instance { id, name: called, .. } = &**instance;
            if let Some(value) = read(stats) {
                line(&mut text, &name, &[("id", id), ("name", called)], value);
            }
        }
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

fn head(text: &mut String, name: &str, kind: &str, meaning: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "# HELP {name} {meaning}\n# TYPE {name} {kind}");
}

/// One value. Labels are names and ids, which need no escaping.
fn line(text: &mut String, name: &str, labels: &[(&str, &str)], value: f64) {
    let labels: Vec<String> =
        labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
    let labels =
        if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let _ = writeln!(text, "{name}{labels} {value}");
}

fn pools_in(text: &mut String, pools: &[Pool]) {
    for (name, meaning, read) in OF_POOLS {
        let name = format!("guise_pool_{name}");
        head(text, &name, "gauge", meaning);
        for pool in pools {
            if let Some(value) = read(pool) {
                line(text, &name, &[("pool", &pool.name)], value);
            }
        }
    }
}

fn host(text: &mut String) {
    let one = |text: &mut String, name: &str, meaning: &str, value: Option<f64>| {
        if let Some(value) = value {
            head(text, name, "gauge", meaning);
            line(text, name, &[], value);
        }
    };
    let field = |file: &str, name: &str| -> Option<f64> {
        let all = std::fs::read_to_string(file).ok()?;
        let line = all.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib * 1024.0)
    };
    let memory = admission::host_memory() as f64;
    one(text, "guise_host_memory_bytes", "Memory of the host.", Some(memory));
    let available = field("/proc/meminfo", "MemAvailable");
    one(text, "guise_host_memory_available_bytes", "Memory that programs may have.", available);
    for (resource, meaning) in [
        ("cpu", "Seconds in which something waited for a processor."),
        ("memory", "Seconds in which something waited for memory."),
        ("io", "Seconds in which something waited for disks."),
    ] {
        let name = format!("guise_host_pressure_{resource}_seconds");
        one(text, &name, meaning, pressure(resource));
    }
    let resident = field("/proc/self/status", "VmRSS");
    one(text, "guise_daemon_memory_bytes", "Memory of the daemon.", resident);
}

/// The total of the pressure that the kernel has seen, where it tells.
fn pressure(resource: &str) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/pressure/{resource}")).ok()?;
    let some = text.lines().find(|line| line.starts_with("some "))?;
    let microseconds: f64 = some.rsplit("total=").next()?.trim().parse().ok()?;
    Some(microseconds / 1e6)
}
