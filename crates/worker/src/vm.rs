//! The VM form: a disk, or an image, that boots by itself.
//!
//! What is inside is a system of its own. Its console is the instance's terminal, unless a program
//! was named: then that is what the instance is, from when the system is up to when it is
//! switched off. Other programs, and files, go through the agent that came along.

mod workload;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guise_engine::{CpuModel, Engine};
use guise_microvm::devices::{SharedFolder, UserMode};
use guise_microvm::protocol::{Mount, Source};
use guise_microvm::seed::{Folder, Seed};
use guise_microvm::vm::{Layers, Overlay, System as Boot};
use guise_microvm::{Agent, Vm as Guest, VmConfig};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::body::{
    Body, BodyError, Exit, Process, Program, Session, Size, SpaceTeller, Stats, failed, system,
    unsupported,
};
use crate::group::{Bounds, Group};
use crate::guest::{Capped, Running, copy_in, copy_out};
use crate::job::{self, Boots, Job};
use crate::machine;
use crate::place::VM_DISK;
use workload::Workload;

/// What it is called where something is refused.
const FORM: &str = "a VM";
/// What a guest gets where nothing is said.
const DEFAULT_MEMORY: u64 = 1 << 30;
/// Signals that ask: SIGHUP, SIGINT, SIGTERM, SIGPWR.
const ASKING: [i32; 4] = [1, 2, 15, 30];
const SIGKILL: i32 = 9;
/// How long a system may take to switch itself off when its program has ended.
const REST: Duration = Duration::from_secs(90);
/// How long the agent may take to tell something.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

pub struct Vm {
    config: VmConfig,
    /// Nothing to run is the system itself.
    program: Program,
    stop_signal: i32,
    console_log: PathBuf,
    /// Whatever it wrote goes with it.
    leaves_nothing: bool,
    group: Group,
    /// Until it starts.
    engine: Mutex<Option<Box<dyn Engine>>>,
    life: Mutex<Option<Life>>,
}

/// A guest, and what of it the instance is.
#[derive(Clone)]
struct Life {
    guest: Arc<Guest>,
    is: Is,
}

#[derive(Clone)]
enum Is {
    System(Arc<System>),
    Program(Arc<Workload>),
}

/// The system, to those who wait for its end.
struct System {
    guest: Arc<Guest>,
    killed: AtomicBool,
}

impl Vm {
    /// What its worker is held to.
    pub fn bounds(job: &Job) -> Result<Bounds, BodyError> {
        Ok(machine::bounds(job, machine::memory(job, DEFAULT_MEMORY, FORM)?))
    }

    /// Makes everything but the machine, in the jail. Gives warnings for the user besides.
    pub fn prepare(
        job: &Job,
        (image, boots): (&Path, Boots),
        (user_data, ssh_keys): (Option<&str>, &[String]),
        (engine, group): (Box<dyn Engine>, Group),
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
        let own = job.place().kept();
        let shares = machine::shares(&job.mounts, FORM)?;
        let system = system_of(job, image, boots)?;
        let folder = |(mount, share): (&job::Mount, &SharedFolder)| Folder {
            tag: share.tag.clone(),
            target: mount.target.clone(),
            read_only: mount.read_only,
        };
        let mount = |(mount, share): (&job::Mount, &SharedFolder)| Mount {
            source: Source::Share(share.tag.clone()),
            target: mount.target.clone(),
            read_only: mount.read_only,
        };
        let told = Seed {
            id: job.id.clone(),
            host_name: job.host_name.clone(),
            user_data: user_data.map(str::to_owned),
            ssh_keys: ssh_keys.to_owned(),
            folders: job.mounts.iter().zip(&shares).map(folder).collect(),
        };
        let config = VmConfig {
            system,
            told,
            seed: own.join("seed.img"),
            folder: own.clone(),
            memory: machine::memory(job, DEFAULT_MEMORY, FORM)?,
            vcpus: machine::vcpus(job, FORM, &group, &mut warnings),
            model: CpuModel::Host,
            network,
            plug: job.plug.as_ref().map(machine::plug),
            mounts: job.mounts.iter().zip(&shares).map(mount).collect(),
            shares,
        };
        let body = Vm {
            config,
            program: job.program.clone(),
            stop_signal: job.stop_signal,
            console_log: own.join("console.log"),
            leaves_nothing: job.ephemeral && job.mounts.is_empty(),
            group,
            engine: Mutex::new(Some(engine)),
            life: Mutex::default(),
        };
        Ok((body, warnings))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Life>> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn life(&self) -> Result<Life, BodyError> {
        self.lock().clone().ok_or(BodyError::NotRunning)
    }

    fn guest(&self) -> Result<Arc<Guest>, BodyError> {
        Ok(self.life()?.guest)
    }

    fn agent(&self) -> Result<Agent, BodyError> {
        self.guest()?.agent().map_err(failed)
    }

    /// The instance is the system, and its console.
    fn start_system(&self, engine: Box<dyn Engine>) -> Result<Session, BodyError> {
        let (output, console) = pipe_with(PipeFlags::CLOEXEC)
            .map_err(|error| system("make the console")(error.into()))?;
        let guest = Guest::start(engine, self.config.clone(), Box::new(File::from(console)))
            .map_err(failed)?;
        let keyboard = guest.keyboard();
        let guest = Arc::new(guest);
        let system = Arc::new(System { guest: guest.clone(), killed: AtomicBool::new(false) });
        *self.lock() = Some(Life { guest, is: Is::System(system.clone()) });
        Ok(Session {
            stdin: Some(Box::new(keyboard)),
            stdout: Some(Box::new(File::from(output))),
            stderr: None,
            process: system,
        })
    }

    /// The instance is a program in the system.
    fn start_program(&self, engine: Box<dyn Engine>) -> Result<Session, BodyError> {
        let log = Capped::create(&self.console_log).map_err(system("write the console's log"))?;
        let guest = Guest::start(engine, self.config.clone(), Box::new(log)).map_err(failed)?;
        let guest = Arc::new(guest);
        let (program, console) = (self.program.clone(), self.console_log.clone());
        let (session, workload) = Workload::begin(program, console, guest.clone())?;
        *self.lock() = Some(Life { guest, is: Is::Program(workload) });
        Ok(session)
    }
}

/// What boots, with a place for what it writes.
fn system_of(job: &Job, image: &Path, boots: Boots) -> Result<Boot, BodyError> {
    let (image, fleeting) = (image.to_owned(), job.ephemeral);
    Ok(match boots {
        Boots::Disk => {
            let disk = Overlay { image, writes: job.place().kept().join(VM_DISK), fleeting };
            disk.make(job.resources.disk_bytes).map_err(failed)?;
            Boot::Disk(disk)
        }
        Boots::Image => Boot::Image(Layers { image, writes: machine::writes(job)?, fleeting }),
    })
}

/// Has a guest switch itself off.
fn rest(guest: &Guest) {
    guest.resume();
    guest.ask_to_end();
    if guest.wait(Some(REST)).is_none() {
        eprintln!("a guest did not switch itself off within {REST:?}");
    }
}

impl Process for System {
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
        match self.program.argv.is_empty() {
            true => self.start_system(engine),
            false => self.start_program(engine),
        }
    }

    fn open(&self, program: &Program) -> Result<Session, BodyError> {
        Running::start(&self.agent()?, program).map(|(session, _)| session)
    }

    fn pause(&self) -> Result<(), BodyError> {
        self.guest()?.pause().map_err(failed)
    }

    fn resume(&self) -> Result<(), BodyError> {
        self.guest()?.resume();
        Ok(())
    }

    fn stats(&self) -> Result<Stats, BodyError> {
        let guest = self.guest()?;
        // One that still boots tells nothing, nor does one that is paused.
        let inside = guest.present().and_then(|agent| agent.statistics(ANSWER_LIMIT).ok());
        let traffic = guest.traffic();
        Ok(Stats {
            memory_limit: Some(self.config.memory),
            processes: inside.map(|inside| inside.processes),
            network_received_bytes: traffic.map(|traffic| traffic.bytes_out),
            network_sent_bytes: traffic.map(|traffic| traffic.bytes_in),
            ..self.group.stats()
        })
    }

    fn tell_of_space(&self, teller: SpaceTeller) {
        if let Ok(guest) = self.guest() {
            guest.tell_of_space(teller);
        }
    }

    fn stop(&self, grace: Duration) -> Result<(), BodyError> {
        let Life { guest, is } = self.life()?;
        guest.resume();
        match is {
            Is::System(system) => {
                if !grace.is_zero() {
                    guest.ask_to_end();
                    if guest.wait(Some(grace)).is_some() {
                        return Ok(());
                    }
                }
                system.signal(SIGKILL)
            }
            Is::Program(workload) if !workload.is_over() => {
                match workload.stop(self.stop_signal, grace, &guest)? {
                    true => Ok(()),
                    false => guest.switch_off().map_err(failed),
                }
            }
            // Its system is switching itself off, and may be given no time for that.
            Is::Program(_) if grace.is_zero() => guest.switch_off().map_err(failed),
            Is::Program(_) => Ok(()),
        }
    }

    fn copy_out(&self, path: &str, archive: &mut dyn Write) -> Result<(), BodyError> {
        copy_out(&self.agent()?, path, archive)
    }

    fn copy_in(&self, path: &str, archive: &mut dyn Read) -> Result<(), BodyError> {
        copy_in(&self.agent()?, path, archive)
    }

    fn clean_up(&self) -> Result<(), BodyError> {
        let Ok(Life { guest, is }) = self.life() else { return Ok(()) };
        if let Is::Program(workload) = is
            && workload.has_begun()
            && !self.leaves_nothing
        {
            rest(&guest);
        }
        let result = guest.switch_off().map_err(failed);
        *self.lock() = None;
        result
    }
}
