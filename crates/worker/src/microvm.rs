//! The microVM form: the image in a machine of its own, with Guise's agent in it.
//!
//! The worker is the machine: its threads run the guest, and a program inside is a
//! session with the agent. What the guest writes goes to a file in the instance's
//! directory, an ext4 file system that the guest finds again in its next life.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guise_engine::{CpuModel, Engine};
use guise_microvm::devices::{SharedFolder, UserMode};
use guise_microvm::machine::WritableLayer;
use guise_microvm::protocol::{Mount, Source};
use guise_microvm::{MicroVm as Guest, MicroVmConfig, PreparedKernel};

use crate::body::{Body, BodyError, Program, Session, SpaceTeller, Stats, failed, system};
use crate::group::{Bounds, Group};
use crate::guest::{Capped, Running, copy_in, copy_out};
use crate::job::{self, Job};
use crate::machine;

/// What it is called where something is refused.
const FORM: &str = "a microVM";
/// What a guest gets where nothing is said.
const DEFAULT_MEMORY: u64 = 512 << 20;
/// How long a guest may take to bring its disks to rest.
const REST: Duration = Duration::from_secs(30);

pub struct MicroVm {
    engine: Box<dyn Engine>,
    config: MicroVmConfig,
    program: Program,
    stop_signal: i32,
    kernel_log: PathBuf,
    /// Whatever it wrote goes with it.
    leaves_nothing: bool,
    group: Group,
    life: Mutex<Life>,
}

/// The machine while it runs, and the workload in it.
#[derive(Default)]
struct Life {
    guest: Option<Arc<Guest>>,
    workload: Option<Arc<Running>>,
    paused: bool,
}

/// What is made before the worker is shut in: it needs more of the host.
pub struct Outside {
    /// Shared with others of this kernel.
    pub kernel: PreparedKernel,
    /// Its published ports may be those of administrators.
    network: Option<UserMode>,
}

impl Outside {
    pub fn make(
        job: &Job,
        kernel: &Path,
        modules: &Path,
        cache: &Path,
    ) -> Result<Outside, BodyError> {
        let kernel = PreparedKernel::make(kernel, modules, cache).map_err(failed)?;
        Ok(Outside { kernel, network: machine::network(job, FORM)? })
    }
}

impl MicroVm {
    /// What its worker is held to.
    pub fn bounds(job: &Job) -> Result<Bounds, BodyError> {
        Ok(machine::bounds(job, machine::memory(job, DEFAULT_MEMORY, FORM)?))
    }

    /// Makes everything but the machine. Gives warnings for the user besides.
    pub fn prepare(
        job: &Job,
        root: &Path,
        engine: Box<dyn Engine>,
        outside: Outside,
        group: Group,
    ) -> Result<(Self, Vec<String>), BodyError> {
        let mut warnings = Vec::new();
        let shares = machine::shares(&job.mounts, FORM)?;
        let mount = |(mount, share): (&job::Mount, &SharedFolder)| Mount {
            source: Source::Share(share.tag.clone()),
            target: mount.target.clone(),
            read_only: mount.read_only,
        };
        let mounts = job.mounts.iter().zip(&shares).map(mount).collect();
        let memory = machine::memory(job, DEFAULT_MEMORY, FORM)?;
        let disk = machine::writes(job)?;
        let config = MicroVmConfig {
            kernel: outside.kernel,
            root: root.to_owned(),
            writes: WritableLayer::Disk { path: disk, kept: !job.ephemeral },
            read_only: job.read_only,
            memory,
            vcpus: machine::vcpus(job, FORM, &group, &mut warnings),
            model: CpuModel::Host,
            host_name: job.host_name.clone(),
            processes: job.resources.processes,
            network: outside.network,
            plug: job.plug.as_ref().map(machine::plug),
            shares,
            mounts,
            hosts: Vec::new(),
        };
        let body = MicroVm {
            engine,
            config,
            program: job.program.clone(),
            stop_signal: job.stop_signal,
            kernel_log: job.place().kept().join("kernel.log"),
            leaves_nothing: job.ephemeral && job.mounts.is_empty(),
            group,
            life: Mutex::default(),
        };
        Ok((body, warnings))
    }

    fn lock(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn guest(&self) -> Result<Arc<Guest>, BodyError> {
        self.lock().guest.clone().ok_or(BodyError::NotRunning)
    }
}

impl Body for MicroVm {
    fn start(&self) -> Result<Session, BodyError> {
        let log = Capped::create(&self.kernel_log).map_err(system("write the kernel's log"))?;
        let log = Box::new(log);
        let guest = Arc::new(Guest::start(&*self.engine, &self.config, log).map_err(failed)?);
        self.lock().guest = Some(guest.clone());
        let (session, running) = Running::start(guest.agent(), &self.program)?;
        self.lock().workload = Some(running);
        Ok(session)
    }

    fn open(&self, program: &Program) -> Result<Session, BodyError> {
        Running::start(self.guest()?.agent(), program).map(|(session, _)| session)
    }

    fn pause(&self) -> Result<(), BodyError> {
        let mut life = self.lock();
        let guest = life.guest.clone().ok_or(BodyError::NotRunning)?;
        guest.pause().map_err(failed)?;
        life.paused = true;
        Ok(())
    }

    fn resume(&self) -> Result<(), BodyError> {
        let mut life = self.lock();
        let guest = life.guest.clone().ok_or(BodyError::NotRunning)?;
        if !std::mem::take(&mut life.paused) {
            return Ok(());
        }
        drop(life);
        guest.resume().map_err(failed)
    }

    fn stats(&self) -> Result<Stats, BodyError> {
        let guest = self.guest()?;
        // A guest that stands still cannot answer.
        let inside = match self.lock().paused || guest.is_without_space() {
            true => None,
            false => Some(guest.statistics().map_err(failed)?),
        };
        let traffic = guest.traffic();
        Ok(Stats {
            memory_limit: Some(self.config.memory),
            processes: inside.map(|inside| inside.processes),
            network_received_bytes: traffic.map(|traffic| traffic.bytes_out),
            network_sent_bytes: traffic.map(|traffic| traffic.bytes_in),
            ..self.group.stats()
        })
    }

    fn stop(&self, grace: Duration) -> Result<(), BodyError> {
        let workload = self.lock().workload.clone().ok_or(BodyError::NotRunning)?;
        self.resume()?;
        let guest = self.guest()?;
        if !workload.stop(self.stop_signal, grace, || guest.is_without_space())? {
            guest.switch_off();
        }
        Ok(())
    }

    fn tell_of_space(&self, teller: SpaceTeller) {
        if let Ok(guest) = self.guest() {
            guest.tell_of_space(teller);
        }
    }

    fn copy_out(&self, path: &str, archive: &mut dyn Write) -> Result<(), BodyError> {
        copy_out(self.guest()?.agent(), path, archive)
    }

    fn copy_in(&self, path: &str, archive: &mut dyn Read) -> Result<(), BodyError> {
        copy_in(self.guest()?.agent(), path, archive)
    }

    fn clean_up(&self) -> Result<(), BodyError> {
        let life = std::mem::take(&mut *self.lock());
        let Some(guest) = life.guest else { return Ok(()) };
        // Nothing can be told to one that is off already.
        let rests = guest.wait(Duration::ZERO).is_some() || self.leaves_nothing;
        let rested = if rests { Ok(()) } else { rest(&guest, life.paused) };
        guest.switch_off();
        rested
    }
}

/// Brings a guest's disks to rest.
fn rest(guest: &Guest, paused: bool) -> Result<(), BodyError> {
    if paused {
        guest.resume().map_err(failed)?;
    }
    guest.shut_down(REST).map_err(failed)
}
