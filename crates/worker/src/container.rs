//! The container form: the image's layers under a writable one, in namespaces of its
//! own, by way of the OCI runtime.
//!
//! The worker lives in a mount namespace (and, for plain users, a user namespace) where
//! the root file system is mounted, so that mounts go with the last process of the
//! instance and are never seen on the host. Programs are started by `guise oci` as
//! a process of its own, because that forks and this process has threads; they then
//! are children of the worker, which is their subreaper.

mod network;
mod oci;
pub(crate) mod root;
mod spec;
mod user;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use guise_container::runtime;
use guise_container::state::Store;
use serde_json::Value;

use crate::body::{Body, BodyError, Process, Program, Session, Stats, system};
use crate::files;
use crate::job::Job;
use oci::Running;

pub struct Container {
    id: String,
    store: Store,
    /// For sockets, configurations and logs of programs.
    scratch: PathBuf,
    program: Program,
    stop_signal: i32,
    base: guise_container::spec::Process,
    root: PathBuf,
    workload: std::sync::OnceLock<Arc<Running>>,
    programs: AtomicU64,
    /// Keeps the namespace that programs are started in.
    plugged: Mutex<Option<network::Plugged>>,
}

fn refused(error: guise_container::Error) -> BodyError {
    BodyError::Failed(error.to_string())
}

impl Container {
    /// Makes everything but the processes. To be called while this process has one
    /// thread; `map` has somebody outside map the ids of its new user namespace.
    pub fn prepare(
        job: &Job,
        layers: &[PathBuf],
        map: impl FnOnce() -> io::Result<()>,
    ) -> Result<(Container, Vec<String>), BodyError> {
        let mut warnings = Vec::new();
        root::enter_namespaces(map)?;
        rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))
            .map_err(|e| system("become a subreaper")(e.into()))?;
        let mounted = root::mount(job, layers)?;
        root::write_etc(job, &mounted)?;
        let plugged = network::plug(job)?;
        if job.resources.disk_bytes.is_some() {
            warnings.push("containers have no limit on their disk space".to_owned());
        }
        let bundle = job.run.join("bundle");
        let (spec, base) = spec::of(job, &mounted, plugged.as_ref())?;
        std::fs::create_dir_all(&bundle)
            .and_then(|()| {
                let text = serde_json::to_vec(&spec).map_err(io::Error::other)?;
                std::fs::write(bundle.join("config.json"), text)
            })
            .map_err(system("write the container's configuration"))?;
        let container = Container {
            id: job.id.clone(),
            store: Store::new(job.run.join("oci")),
            scratch: job.run.clone(),
            program: job.program.clone(),
            stop_signal: job.stop_signal,
            base,
            root: mounted,
            workload: std::sync::OnceLock::new(),
            programs: AtomicU64::new(0),
            plugged: Mutex::new(plugged),
        };
        Ok((container, warnings))
    }

    fn invocation(&self, command: &str) -> oci::Invocation {
        let number = self.programs.fetch_add(1, Ordering::Relaxed);
        oci::Invocation::new(&self.scratch, command, number)
    }

    fn workload(&self) -> Result<&Arc<Running>, BodyError> {
        self.workload.get().ok_or(BodyError::NotRunning)
    }

    /// A descriptor of the root as the workload sees it, with all that is mounted.
    fn inside(&self) -> Result<OwnedFd, BodyError> {
        let pid = self.workload()?.pid();
        File::open(format!("/proc/{pid}/root"))
            .map(OwnedFd::from)
            .map_err(|_| BodyError::NotRunning)
    }
}

impl Body for Container {
    fn start(&self) -> Result<Session, BodyError> {
        let (store, id) = (self.store.clone(), self.id.clone());
        let killed_for_memory = move || {
            let state = store.find(&id).and_then(|entry| entry.state());
            state.is_ok_and(|state| state.cgroup().memory_kills() > 0)
        };
        let bundle = self.scratch.join("bundle");
        let mut invocation = self.invocation("run");
        invocation.arg("--bundle").arg(&bundle);
        let program = &self.program;
        let (session, running) =
            invocation.start(&self.id, program, Some(Box::new(killed_for_memory)))?;
        // Called once, so there is room.
        let _ = self.workload.set(running);
        Ok(session)
    }

    fn open(&self, program: &Program) -> Result<Session, BodyError> {
        self.workload()?;
        let process = spec::process(program, &self.root, &self.base)?;
        let mut invocation = self.invocation("exec");
        let description = invocation.file("json");
        let text =
            serde_json::to_vec(&process).map_err(|error| BodyError::Failed(error.to_string()))?;
        std::fs::write(&description, text).map_err(system("describe the program"))?;
        invocation.arg("--process").arg(&description);
        let started = invocation.start(&self.id, program, None);
        let _ = std::fs::remove_file(&description);
        started.map(|(session, _)| session)
    }

    fn pause(&self) -> Result<(), BodyError> {
        runtime::pause(&self.store, &self.id).map_err(refused)
    }

    fn resume(&self) -> Result<(), BodyError> {
        runtime::resume(&self.store, &self.id).map_err(refused)
    }

    fn stats(&self) -> Result<Stats, BodyError> {
        let event = runtime::stats(&self.store, &self.id).map_err(refused)?;
        let number = |path: &str| event.data.pointer(path).and_then(Value::as_u64);
        let operations = |name: &str| {
            let entries = event.data.pointer("/blkio/ioServiceBytesRecursive")?.as_array()?;
            let of_kind = entries.iter().filter(|entry| entry["op"] == name);
            Some(of_kind.filter_map(|entry| entry["value"].as_u64()).sum())
        };
        // What the kernel says where there is no limit is rounded to pages.
        const UNLIMITED: u64 = 1 << 62;
        Ok(Stats {
            cpu_nanoseconds: number("/cpu/usage/total"),
            memory_bytes: number("/memory/usage/usage"),
            memory_limit: number("/memory/usage/limit").filter(|limit| *limit < UNLIMITED),
            processes: number("/pids/current"),
            disk_read_bytes: operations("Read"),
            disk_written_bytes: operations("Write"),
            ..Stats::default()
        })
    }

    fn stop(&self, grace: Duration) -> Result<(), BodyError> {
        const SIGKILL: i32 = 9;
        let workload = self.workload()?;
        workload.signal(self.stop_signal)?;
        // A paused container would sleep through its grace.
        let _ = runtime::resume(&self.store, &self.id);
        if workload.wait_for(grace).is_none() {
            runtime::kill(&self.store, &self.id, SIGKILL, false).map_err(refused)?;
            workload.wait()?;
        }
        Ok(())
    }

    fn copy_out(&self, path: &str, archive: &mut dyn Write) -> Result<(), BodyError> {
        files::copy_out(self.inside()?, path, archive)
    }

    fn copy_in(&self, path: &str, archive: &mut dyn Read) -> Result<(), BodyError> {
        files::copy_in(self.inside()?, path, archive)
    }

    fn clean_up(&self) -> Result<(), BodyError> {
        let deleted = runtime::delete(&self.store, &self.id, true).map_err(refused);
        // Ports and names are free before anybody hears of the end.
        drop(self.plugged.lock().unwrap_or_else(PoisonError::into_inner).take());
        deleted
    }
}
