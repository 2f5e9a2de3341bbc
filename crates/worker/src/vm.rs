//! The VM form: a disk that boots by itself.
//!
//! What is inside is a system of its own, and is told nothing but what its first start asks for:
//! its console is the instance's terminal, its power button is how it is asked to end.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guise_engine::{CpuModel, Engine};
use guise_microvm::devices::UserMode;
use guise_microvm::seed::{Folder, Seed};
use guise_microvm::vm::Overlay;
use guise_microvm::{Vm as Guest, VmConfig};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::body::{
    Body, BodyError, Exit, Process, Program, Session, Size, Stats, failed, system, unsupported,
};
use crate::job::{self, Job};
use crate::machine;

/// What a guest gets where nothing is said.
const DEFAULT_MEMORY: u64 = 1 << 30;
/// Signals that ask: SIGHUP, SIGINT, SIGTERM, SIGPWR.
const ASKING: [i32; 4] = [1, 2, 15, 30];
const SIGKILL: i32 = 9;

pub struct Vm {
    config: VmConfig,
    /// Until it starts.
    engine: Mutex<Option<Box<dyn Engine>>>,
    running: Mutex<Option<Arc<Running>>>,
}

/// A guest, to those who wait for it.
struct Running {
    guest: Guest,
    killed: AtomicBool,
}

impl Vm {
    /// Makes everything but the machine, in the jail. Gives warnings for the user besides.
    pub fn prepare(
        job: &Job,
        image: &Path,
        (user_data, ssh_keys): (Option<&str>, &[String]),
        engine: Box<dyn Engine>,
        network: Option<UserMode>,
    ) -> Result<(Vm, Vec<String>), BodyError> {
        let mut warnings = Vec::new();
        if job.read_only {
            return Err(unsupported(
                "a VM with --read-only",
                "leave it away: what it writes is its own and the image stays as it is",
            ));
        }
        if job.resources.processes.is_some() {
            return Err(unsupported(
                "a VM with --pids-limit",
                "leave it away: how many processes there are is decided inside",
            ));
        }
        let shares = machine::shares(&job.mounts, "a VM")?;
        let disk = Overlay {
            image: image.to_owned(),
            writes: job.state.join("disk.qcow2"),
            fleeting: job.ephemeral,
        };
        disk.make(job.resources.disk_bytes).map_err(failed)?;
        let seed = job.state.join("seed.img");
        let folder =
            |(mount, share): (&job::Mount, &guise_microvm::devices::SharedFolder)| Folder {
                tag: share.tag.clone(),
                target: mount.target.clone(),
                read_only: mount.read_only,
            };
        let told = Seed {
            id: &job.id,
            host_name: &job.host_name,
            user_data,
            ssh_keys,
            folders: job.mounts.iter().zip(&shares).map(folder).collect(),
        };
        told.write(&seed).map_err(system("write what the guest is told"))?;
        let config = VmConfig {
            disk,
            seed,
            folder: job.state.clone(),
            memory: machine::memory(job, DEFAULT_MEMORY, "a VM")?,
            vcpus: machine::vcpus(job.resources.cpus, "a VM", &mut warnings),
            model: CpuModel::Host,
            network,
            plug: job.plug.as_ref().map(machine::plug),
            shares,
        };
        let engine = Mutex::new(Some(engine));
        Ok((Vm { config, engine, running: Mutex::default() }, warnings))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> Result<Arc<Running>, BodyError> {
        self.lock().clone().ok_or(BodyError::NotRunning)
    }
}

fn no_agent(what: &str) -> BodyError {
    unsupported(
        &format!("{what} a VM, which is a system of its own"),
        "use its console (guise attach), ssh through a published port, or a volume",
    )
}

impl Process for Running {
    fn signal(&self, signal: i32) -> Result<(), BodyError> {
        match signal {
            0 => {}
            SIGKILL => {
                self.killed.store(true, Ordering::SeqCst);
                self.guest.switch_off().map_err(failed)?;
            }
            _ if ASKING.contains(&signal) => self.guest.press_power_button(),
            _ => {
                return Err(unsupported(
                    &format!("signal {signal} for a VM"),
                    "TERM presses its power button, KILL switches it off",
                ));
            }
        }
        Ok(())
    }

    fn resize(&self, _: Size) -> Result<(), BodyError> {
        // A serial line has no size.
        Ok(())
    }

    fn wait(&self) -> Result<Exit, BodyError> {
        match self.guest.wait(None) {
            Some(Err(why)) => Err(BodyError::Failed(why)),
            _ if self.killed.load(Ordering::SeqCst) => Ok(Exit::Signal(SIGKILL as u8)),
            _ => Ok(Exit::Code(0)),
        }
    }
}

impl Body for Vm {
    fn start(&self) -> Result<Session, BodyError> {
        let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        let engine = engine.take().ok_or(BodyError::NotRunning)?;
        let (output, console) = pipe_with(PipeFlags::CLOEXEC)
            .map_err(|error| system("make the console")(error.into()))?;
        let guest = Guest::start(engine, self.config.clone(), Box::new(File::from(console)))
            .map_err(failed)?;
        let keyboard = guest.keyboard();
        let running = Arc::new(Running { guest, killed: AtomicBool::new(false) });
        *self.lock() = Some(running.clone());
        Ok(Session {
            stdin: Some(Box::new(keyboard)),
            stdout: Some(Box::new(File::from(output))),
            stderr: None,
            process: running,
        })
    }

    fn open(&self, _: &Program) -> Result<Session, BodyError> {
        Err(no_agent("a program in"))
    }

    fn pause(&self) -> Result<(), BodyError> {
        self.running()?.guest.pause().map_err(failed)
    }

    fn resume(&self) -> Result<(), BodyError> {
        self.running()?.guest.resume();
        Ok(())
    }

    fn stats(&self) -> Result<Stats, BodyError> {
        let traffic = self.running()?.guest.traffic();
        Ok(Stats {
            memory_limit: Some(self.config.memory),
            network_received_bytes: traffic.map(|traffic| traffic.bytes_out),
            network_sent_bytes: traffic.map(|traffic| traffic.bytes_in),
            ..Stats::of_this_process()
        })
    }

    fn stop(&self, grace: Duration) -> Result<(), BodyError> {
        let running = self.running()?;
        running.guest.resume();
        if !grace.is_zero() {
            running.guest.press_power_button();
            if running.guest.wait(Some(grace)).is_some() {
                return Ok(());
            }
        }
        running.signal(SIGKILL)
    }

    fn copy_out(&self, _: &str, _: &mut dyn Write) -> Result<(), BodyError> {
        Err(no_agent("copying out of"))
    }

    fn copy_in(&self, _: &str, _: &mut dyn Read) -> Result<(), BodyError> {
        Err(no_agent("copying into"))
    }

    fn clean_up(&self) -> Result<(), BodyError> {
        match self.lock().take() {
            Some(running) => running.guest.switch_off().map_err(failed),
            None => Ok(()),
        }
    }
}
