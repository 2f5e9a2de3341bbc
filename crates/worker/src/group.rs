//! What of the host's processors and memory a worker may use: a cgroup for the worker itself, which
//! for all but containers is the instance, and the processors that it is bound to.
//!
//! Only the host's root has cgroups for its workers. The worker makes its own and goes into it
//! before it does anything else; the daemon takes it away when the worker has ended, however that
//! came. Its name says whose it is and of which life, so that nothing needs to be kept: a daemon
//! knows the cgroups of its workers, and those of a worker that was killed together with an
//! earlier daemon, by the beginning of their names.
//!
//! The kernel bounds what a worker takes that was taken over, or that leaks. A guest alone
//! reaches none of these limits, but for a part of a processor that was asked for.

use std::hash::{DefaultHasher, Hasher};
use std::path::Path;

use guise_container::Result;
use guise_container::cgroup::{CPU_QUOTA, CPU_SHARES, Cgroup, Gauge, Moved, cpu_shares};
use guise_container::process::schedule::apply_affinity;
use guise_container::spec::{Cpu, Memory, Pids, Resources};
use rustix::time::{ClockId, clock_gettime};

use crate::body::{BodyError, Stats, failed};
use crate::jail::is_host_root;
use crate::job::{self, Job};

/// The period of quotas of processors, in microseconds.
pub const PERIOD: u64 = 100_000;
/// Threads of a worker. A machine has some ten, each connection and each program that is inside
/// has up to four, and the kernel's own for disks count too: this is for thousands of them.
const THREADS: i64 = 8192;
/// A worker without what its instance has: its program and its code, a cache of translated code
/// for each vCPU, buffers of disks, networks and streams, the kernel's tables for them. An idle
/// machine has been measured at 37 MiB beyond its guest, one whose translator works at 70 MiB;
/// twice as much again is for eight vCPUs.
const OWN_MEMORY: u64 = 256 << 20;
/// One in so many bytes of the instance's memory more: page tables, marks of pages, and of the
/// host's files what is cached for it and being written.
const MORE: u64 = 4;
/// What a WebAssembly program's worker takes besides, to compile it: some forty times its code.
pub const TO_COMPILE: u64 = 1 << 30;

/// The controllers that are used: of containers' workers the first two, because each is a part of
/// the time that a container takes to start; the last where a set of processors was asked for.
const CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu", "cpuset"];

/// What a form wants to be held to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// The instance's memory; what the worker needs itself comes on top.
    pub memory: Option<u64>,
    /// The part of the host's processors that all its threads get together.
    pub cpus: Option<f64>,
}

/// The cgroup of this process, as far as there is one.
#[derive(Debug, Default)]
pub struct Group {
    gauge: Gauge,
    /// The limit on processors that was wanted is one.
    pub holds_cpus: bool,
    /// The first process of this worker is none of its forebears in the jail.
    pub is_another: bool,
}

/// Binds this process, and all that it starts, to the processors of its instance.
pub fn bind(job: &Job) -> std::result::Result<(), BodyError> {
    const THIS_PROCESS: i32 = 0;
    let Some(list) = &job.resources.cpuset else { return Ok(()) };
    apply_affinity(THIS_PROCESS, list).map_err(failed)
}

impl Group {
    /// Makes it and goes in. To be called while this process has one thread. Where that is not
    /// possible everything goes on without; what was asked for and cannot be had is in the
    /// warnings.
    pub fn enter(job: &Job, bounds: Bounds) -> (Group, Vec<String>) {
        let resources = &job.resources;
        let mut warnings = Vec::new();
        let count = if resources.cpuset.is_some() { 4 } else { 3 };
        let make = || wanted(resources, bounds).and_then(|wanted| make(job, &wanted, count));
        let mut why = "there is none here".to_owned();
        let (group, missing) = match is_host_root().then(make) {
            Some(Ok(made)) => made,
            refused => {
                if let Some(Err(error)) = refused {
                    why = error.to_string();
                }
                (Group::default(), vec![CPU_SHARES, CPU_QUOTA])
            }
        };
        if resources.cpu_weight.is_some() && missing.contains(&CPU_SHARES) {
            warnings.push(format!("--cpu-weight has no effect: it takes a cgroup ({why})"));
        }
        let holds_cpus = bounds.cpus.is_some() && !missing.contains(&CPU_QUOTA);
        (Group { holds_cpus, ..group }, warnings)
    }

    /// The same for a worker beside its instance, a container, which has cgroups for what was
    /// asked for.
    pub fn enter_beside(job: &Job) {
        const COUNT: usize = 2;
        let bounds = Bounds { memory: Some(0), cpus: None };
        if is_host_root()
            && let Ok(wanted) = wanted(&job::Resources::default(), bounds)
        {
            // Without one it goes on as before.
            let _ = make(job, &wanted, COUNT);
        }
    }

    /// What this process uses, which is the instance.
    pub fn stats(&self) -> Stats {
        let usage = self.gauge.read();
        let [cpu, memory, io] = usage.pressure;
        let own = of_this_process();
        Stats {
            memory_bytes: usage.memory_bytes.or(own.memory_bytes),
            cpu_pressure_microseconds: cpu,
            memory_pressure_microseconds: memory,
            io_pressure_microseconds: io,
            ..own
        }
    }
}

/// A group with so many of the controllers, and what of the limits it lacks.
fn make(job: &Job, wanted: &Resources, count: usize) -> Result<(Group, Vec<&'static str>)> {
    let name = name(&job.state, &job.id, job.life);
    let mut cgroup = Cgroup::plan_for(&name, &CONTROLLERS[..count])?;
    let moved = cgroup.create().and_then(|()| cgroup.apply(wanted)).and_then(|()| {
        let gauge = Gauge::open(&cgroup);
        cgroup.move_in().map(|moved| (gauge, moved))
    });
    let (gauge, moved) = moved.inspect_err(|_| {
        // What is not empty is found by the daemon.
        let _ = cgroup.remove_if_empty();
    })?;
    let group = Group { gauge, holds_cpus: false, is_another: moved == Moved::AsAnother };
    Ok((group, cgroup.missing(wanted)))
}

/// What a cgroup is to hold its worker to.
fn wanted(asked: &job::Resources, bounds: Bounds) -> Result<Resources> {
    let with_own = |bytes: u64| bytes.saturating_add(bytes / MORE).saturating_add(OWN_MEMORY);
    let memory = bounds.memory.map(|bytes| i64::try_from(with_own(bytes)).unwrap_or(i64::MAX));
    Ok(Resources {
        memory: Memory { limit: memory, ..Memory::default() },
        cpu: Cpu {
            shares: asked.cpu_weight.map(cpu_shares).transpose()?,
            quota: bounds.cpus.map(|cpus| (cpus * PERIOD as f64) as i64),
            period: bounds.cpus.map(|_| PERIOD),
            cpus: asked.cpuset.clone(),
            ..Cpu::default()
        },
        pids: Some(Pids { limit: THREADS }),
        ..Resources::default()
    })
}

/// What the name of every cgroup begins with whose worker's files are beside these.
fn beginning(state: &Path) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(state.parent().unwrap_or(state).as_os_str().as_encoded_bytes());
    format!("guise-{:08x}-", hasher.finish() as u32)
}

fn name(state: &Path, id: &str, life: u64) -> String {
    format!("{}{id}-{life}", beginning(state))
}

/// The cgroup of a worker that has ended, or is going to.
#[derive(Debug)]
pub struct Left(Cgroup);

impl Left {
    /// That of an instance's life, whether it is there or not; `state` is the instance's folder.
    pub fn of(state: &Path, id: &str, life: u64) -> Result<Left> {
        Cgroup::plan_for(&name(state, id, life), &CONTROLLERS).map(Left)
    }

    /// The instances and lives of all that are there; `state` is where any instance's folder
    /// would be.
    pub fn all(state: &Path) -> Result<Vec<(String, u64)>> {
        let beginning = beginning(state);
        let instance = |name: String| {
            let (id, life) = name.strip_prefix(&beginning)?.rsplit_once('-')?;
            Some((id.to_owned(), life.parse().ok()?))
        };
        let names = Cgroup::names(&beginning, &CONTROLLERS)?;
        Ok(names.into_iter().filter_map(instance).collect())
    }

    /// Whether the kernel has ended the worker for lack of memory.
    #[must_use]
    pub fn ran_out_of_memory(&self) -> bool {
        self.0.memory_kills() > 0
    }

    /// Takes it away if the worker has gone; says whether it has.
    pub fn remove(&self) -> Result<bool> {
        self.0.remove_if_empty()
    }
}

/// What this process uses, as it can tell itself.
fn of_this_process() -> Stats {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let resident = std::fs::read_to_string("/proc/self/statm").ok().and_then(|text| {
        let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    });
    let transfers = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let bytes = |name: &str| {
        transfers.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    };
    Stats {
        cpu_nanoseconds: Some(cpu.tv_sec as u64 * 1_000_000_000 + cpu.tv_nsec as u64),
        memory_bytes: resident,
        disk_read_bytes: bytes("read_bytes:"),
        disk_written_bytes: bytes("write_bytes:"),
        ..Stats::default()
    }
}

#[cfg(test)]
mod tests;
