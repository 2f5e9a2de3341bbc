//! What machines have in common, whichever form they are of: what executes them, what they are
//! given of the host.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use guise_engine::{Engine, MAX_VCPUS};
use guise_engine_kvm::{KvmEngine, probe};
use guise_engine_soft::{SoftEngine, Tier};
use guise_microvm::devices::{Plug, SharedFolder, UserMode};
use guise_microvm::ext4;
use guise_net::user::{Config, Forward, Transport};

use crate::body::{BodyError, failed, folders_only, system, unsupported};
use crate::group::{Bounds, Group};
use crate::job::{self, DEFAULT_DISK, Job};
use crate::place::WRITES_DISK;

/// Below this Debian's kernel does not come up.
const LEAST_MEMORY: u64 = 96 << 20;

/// The engine that a job asks for, and a word to the user where that is not what he may
/// expect. A worker that is shut in has no `/dev/kvm`: it opens it before.
pub fn engine(wanted: job::Engine) -> Result<(Box<dyn Engine>, Option<String>), BodyError> {
    let soft = || Box::new(SoftEngine::new(Tier::Translator));
    match wanted {
        job::Engine::Soft => Ok((soft(), None)),
        job::Engine::Kvm => Ok((Box::new(KvmEngine::new().map_err(failed)?), None)),
        job::Engine::Auto => match probe::usable_engine() {
            Ok(engine) => Ok((Box::new(engine), None)),
            Err(reason) => Ok((soft(), reason)),
        },
    }
}

/// The file with the file system for what an image's machine writes, made unless it is there.
pub fn writes(job: &Job) -> Result<PathBuf, BodyError> {
    let folder = job.place().kept();
    let disk = folder.join(WRITES_DISK);
    if !disk.is_file() {
        // Under its name it is whole.
        let partial = folder.join("writes.partial");
        let _ = fs::remove_file(&partial);
        let size = job.resources.disk_bytes.unwrap_or(DEFAULT_DISK);
        ext4::create(&partial, size)
            .and_then(|()| fs::rename(&partial, &disk))
            .map_err(system("make the instance's disk"))?;
    }
    Ok(disk)
}

/// In whole MiB.
pub fn memory(job: &Job, default: u64, form: &str) -> Result<u64, BodyError> {
    let memory = job.resources.memory_bytes.unwrap_or(default);
    if memory < LEAST_MEMORY {
        return Err(unsupported(
            &format!("{form} of less than {} MiB", LEAST_MEMORY >> 20),
            "give it more with --memory, or use --as container",
        ));
    }
    Ok(memory.next_multiple_of(1 << 20))
}

/// The processors that the guest sees. What is asked for beside whole ones is a limit on what they
/// get of the host's, where the worker's cgroup is one.
pub fn vcpus(job: &Job, form: &str, group: &Group, warnings: &mut Vec<String>) -> u32 {
    let wanted = job.resources.cpus.unwrap_or(1.0);
    let vcpus = (wanted.ceil().max(1.0) as u32).min(MAX_VCPUS);
    let is_held = group.holds_cpus && f64::from(vcpus) >= wanted;
    if f64::from(vcpus) != wanted && !is_held {
        warnings.push(format!("{form} has whole processors: it gets {vcpus}"));
    }
    vcpus
}

/// What the worker of a machine with so much memory is held to. Whole processors are as many
/// vCPUs and no limit: what the worker does for the guest's devices may go on beside them.
pub fn bounds(job: &Job, memory: u64) -> Bounds {
    let cpus = job.resources.cpus.filter(|cpus| cpus.fract() != 0.0);
    Bounds { memory: Some(memory), cpus }
}

/// Folders of the host, in the order in which they are to be mounted.
pub fn shares(mounts: &[job::Mount], form: &str) -> Result<Vec<SharedFolder>, BodyError> {
    folders_only(mounts, form)?;
    let share = |(number, mount): (usize, &job::Mount)| SharedFolder {
        path: mount.source.clone(),
        tag: format!("mount{number}"),
        read_only: mount.read_only,
    };
    Ok(mounts.iter().enumerate().map(share).collect())
}

/// The port of a named network's switch.
pub fn plug(plug: &job::Plug) -> Plug {
    Plug {
        socket: plug.socket.clone(),
        name: plug.name.clone(),
        prefix: plug.subnet.prefix(),
        resolver: plug.subnet.resolver().into(),
    }
}

/// The user-mode network that a job asks for. Its published ports may be those of
/// administrators: it is made before the worker is shut in.
pub fn network(job: &Job, form: &str) -> Result<Option<UserMode>, BodyError> {
    match job.network {
        job::Network::None => return Ok(None),
        job::Network::Host => {
            return Err(unsupported(
                &format!("the host's network in {form}"),
                "use --as container, or publish ports with -p",
            ));
        }
        job::Network::User => {}
    }
    let forward = |port: &job::Port| Forward {
        transport: match port.protocol {
            job::Protocol::Tcp => Transport::Tcp,
            job::Protocol::Udp => Transport::Udp,
        },
        at: SocketAddr::new(port.address, port.host),
        guest_port: port.inside,
    };
    let config = Config { host_name: Some(job.host_name.clone()), ..Config::default() };
    UserMode::open(config, job.ports.iter().map(forward)).map(Some).map_err(failed)
}
