//! An instance's spec, resolved into a worker's job.

use std::path::PathBuf;
use std::time::Duration;

use guise_api::{ApiError, Engine, Guise, Instance, InstanceSpec, Mount, Network, Protocol};
use guise_container::runtime::parse_signal;
use guise_image::progress::Silent;
use guise_image::{Image, Limits};
use guise_worker::body::{Program, Size};
use guise_worker::job::{self, Form, Job};
use guise_worker::place::Place;

use super::{kernel, pinned};
use crate::choose::Content;
use crate::named::Named;
use crate::server::no_network;
use crate::{Daemon, choose, networks, quota};

const SIGTERM: i32 = 15;

fn failed(error: guise_image::Error) -> ApiError {
    ApiError::internal(error).exit_code(125)
}

pub fn of(
    daemon: &Daemon,
    instance: &Instance,
    place: &Place,
    console: Option<Size>,
) -> Result<Job, ApiError> {
    let spec = &instance.spec;
    let image = match spec.disk() {
        Some(_) => None,
        None => Some(daemon.images.image_of(&pinned(place)?, &spec.image, None).map_err(failed)?),
    };
    let content = image.as_ref().map_or(Content::Disk, Content::of);
    let guise = choose::choose(spec, content).guise;
    choose::check(guise, content)?;
    let (form, program) = match &image {
        Some(image) => of_image(daemon, spec, guise, image, console)?,
        None => (of_disk(spec)?, in_system(spec, console)?),
    };
    let process = image.and_then(|image| image.config.config).unwrap_or_default();
    let stop_signal = spec.stop_signal.clone().or(Some(process.stop_signal.clone()));
    let stop_signal = stop_signal.filter(|name| !name.is_empty());
    let mounts: Result<Vec<job::Mount>, ApiError> =
        spec.mounts.iter().map(|mount| resolve(daemon, &instance.project, mount)).collect();
    Ok(Job {
        id: instance.id.clone(),
        life: spec.starts,
        name: instance.name.clone(),
        host_name: spec.hostname.clone().unwrap_or_else(|| instance.id.clone()),
        state: place.state.clone(),
        run: place.run.clone(),
        form,
        program,
        time_limit: spec.timeout_seconds.map(Duration::from_secs),
        stop_signal: stop_signal.as_deref().and_then(parse_signal).unwrap_or(SIGTERM),
        resources: job::Resources {
            cpus: spec.resources.cpus,
            cpu_weight: spec.resources.cpu_weight,
            cpuset: spec.resources.cpuset.clone(),
            memory_bytes: spec.resources.memory_bytes,
            processes: spec.resources.processes,
            disk_bytes: spec.resources.disk_bytes,
        },
        disk_must_hold: quota::holds_disk(daemon, instance)?,
        read_only: spec.read_only,
        mounts: mounts?,
        network: network(spec, guise),
        plug: Named::network_of(instance)
            .map(|network| plug(daemon, instance, &network))
            .transpose()?,
        ports: spec
            .ports
            .iter()
            .map(|port| job::Port {
                address: port.address,
                host: port.host,
                inside: port.inside,
                protocol: match port.protocol {
                    Protocol::Tcp => job::Protocol::Tcp,
                    Protocol::Udp => job::Protocol::Udp,
                },
            })
            .collect(),
        log: job::Log::default(),
        ephemeral: spec.remove_on_exit,
    })
}

/// The instance's port of a named network's switch.
fn plug(daemon: &Daemon, instance: &Instance, name: &Named) -> Result<job::Plug, ApiError> {
    let network = daemon.objects.network(name)?.ok_or_else(|| no_network(&name.name))?;
    Ok(job::Plug {
        socket: daemon.config.switch(name),
        name: networks::host_name(&instance.name),
        subnet: network.subnet.parse().map_err(ApiError::internal)?,
    })
}

/// Where it is not said: the user-mode network, if this user may have a tap.
fn network(spec: &InstanceSpec, guise: Guise) -> job::Network {
    match spec.network {
        Network::Host => job::Network::Host,
        Network::User => job::Network::User,
        Network::None => job::Network::None,
        // A machine's network needs nothing of the host's.
        Network::Auto if matches!(guise, Guise::Microvm | Guise::Vm) => job::Network::User,
        // Sockets are for programs that were meant to have them.
        Network::Auto if guise == Guise::Wasm => job::Network::None,
        // Ports that were asked for are worth an error.
        Network::Auto if !spec.ports.is_empty() || may_have_a_tap() => job::Network::User,
        Network::Auto => job::Network::None,
    }
}

fn engine(wanted: Engine) -> job::Engine {
    match wanted {
        Engine::Auto => job::Engine::Auto,
        Engine::Kvm => job::Engine::Kvm,
        Engine::Soft => job::Engine::Soft,
    }
}

fn may_have_a_tap() -> bool {
    use rustix::fs::Access;
    rustix::fs::access("/dev/net/tun", Access::READ_OK | Access::WRITE_OK).is_ok()
}

/// The program that the image and the spec say together.
fn program(spec: &InstanceSpec, image: &Image, console: Option<Size>) -> Result<Program, ApiError> {
    let process = image.config.config.clone().unwrap_or_default();
    let own_name = image.module().map(|_| vec![own_name(&spec.image)]);
    if own_name.is_some() && spec.entrypoint.is_some() {
        return Err(ApiError::invalid(format!("image {} is one program", spec.image))
            .hint("leave --entrypoint away")
            .exit_code(125));
    }
    let entrypoint = spec.entrypoint.clone().or(own_name);
    let mut argv = entrypoint.unwrap_or(process.entrypoint);
    if !spec.command.is_empty() {
        argv.extend(spec.command.iter().cloned());
    } else if spec.entrypoint.is_none() {
        argv.extend(process.cmd);
    }
    if argv.is_empty() {
        return Err(ApiError::invalid(format!("image {} names no program", spec.image))
            .hint("say which one to run")
            .exit_code(125));
    }
    let mut env = process.env;
    for entry in &spec.env {
        let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
        env.retain(|other| name(other) != name(entry));
        env.push(entry.clone());
    }
    Ok(Program {
        argv,
        env,
        cwd: spec.workdir.clone().unwrap_or(process.working_dir),
        user: spec.user.clone().unwrap_or(process.user),
        terminal: spec.tty.then(|| console.unwrap_or_default()),
        stdin: spec.stdin,
    })
}

/// What an image of the store runs, and how.
fn of_image(
    daemon: &Daemon,
    spec: &InstanceSpec,
    guise: Guise,
    image: &Image,
    console: Option<Size>,
) -> Result<(Form, Program), ApiError> {
    let session = daemon.images.session().map_err(failed)?;
    let program = match guise {
        Guise::Vm => in_image(spec, image, console)?,
        _ => program(spec, image, console)?,
    };
    let file_system = || session.erofs(image, Limits::default(), &Silent).map_err(failed);
    let layers = || session.layer_dirs(image, Limits::default(), &Silent).map_err(failed);
    Ok(match guise {
        Guise::Microvm => {
            let root = file_system()?;
            let kernel::Files { kernel, modules, cache } = kernel::files(daemon, &session)?;
            (Form::Microvm { root, kernel, modules, cache, engine: engine(spec.engine) }, program)
        }
        Guise::Wasm => {
            let module = match image.module() {
                Some(module) => job::Module::File(session.blob_path(module.digest)),
                None => job::Module::Inside(inside(&program, image)),
            };
            (Form::Wasm { program: module, layers: layers()? }, sandboxed(program, spec))
        }
        Guise::Vm => (vm(spec, file_system()?, job::Boots::Image), program),
        Guise::Auto | Guise::Container => (Form::Container { layers: layers()? }, program),
    })
}

/// What boots by itself.
fn vm(spec: &InstanceSpec, image: PathBuf, boots: job::Boots) -> Form {
    Form::Vm {
        image,
        boots,
        engine: engine(spec.engine),
        user_data: spec.user_data.clone(),
        ssh_keys: spec.ssh_keys.clone(),
    }
}

fn of_disk(spec: &InstanceSpec) -> Result<Form, ApiError> {
    // As others see it who follow no links.
    let disk = std::fs::canonicalize(&spec.image)
        .map_err(|error| ApiError::host("find the disk", &error).exit_code(125))?;
    Ok(vm(spec, disk, job::Boots::Disk))
}

/// The same of an image: what it says of programs is for one that is named. Its own would be that
/// of a container.
fn in_image(
    spec: &InstanceSpec,
    image: &Image,
    console: Option<Size>,
) -> Result<Program, ApiError> {
    match spec.command.is_empty() && spec.entrypoint.is_none() {
        true => in_system(spec, console),
        false => program(spec, image, console),
    }
}

/// The program that a VM is there for; none is the system itself, which nothing that is said of
/// a program is for.
fn in_system(spec: &InstanceSpec, console: Option<Size>) -> Result<Program, ApiError> {
    let argv: Vec<String> =
        spec.entrypoint.iter().flatten().chain(&spec.command).cloned().collect();
    let says = !spec.env.is_empty() || spec.user.is_some() || spec.workdir.is_some();
    if argv.is_empty() && says {
        return Err(ApiError::invalid("a VM without a program runs its own system")
            .hint("name a program, or tell cloud-init what to do with --user-data")
            .exit_code(125));
    }
    Ok(Program {
        argv,
        env: spec.env.clone(),
        cwd: spec.workdir.clone().unwrap_or_default(),
        user: spec.user.clone().unwrap_or_default(),
        terminal: spec.tty.then(|| console.unwrap_or_default()),
        stdin: spec.stdin,
    })
}

/// What a program calls itself that has no path in an image.
fn own_name(image: &str) -> String {
    image.rsplit('/').next().unwrap_or(image).to_owned()
}

/// The path in the image of the program that is to run.
fn inside(program: &Program, image: &Image) -> String {
    let name = program.argv.first().map_or("", String::as_str);
    if name.starts_with('/') {
        return name.to_owned();
    }
    let process = image.config.config.as_ref();
    format!("{}/{name}", process.map_or("", |process| &process.working_dir))
}

/// What an image says about users and directories is not for WebAssembly programs.
fn sandboxed(program: Program, spec: &InstanceSpec) -> Program {
    Program {
        cwd: spec.workdir.clone().unwrap_or_default(),
        user: spec.user.clone().unwrap_or_default(),
        ..program
    }
}

/// A volume's folder, or the path that was said.
fn resolve(daemon: &Daemon, project: &str, mount: &Mount) -> Result<job::Mount, ApiError> {
    let source = match mount.volume() {
        Some(volume) => {
            let path = daemon.config.volume(&Named::new(project, volume));
            std::fs::create_dir_all(&path).map_err(ApiError::internal)?;
            path
        }
        None => PathBuf::from(&mount.source),
    };
    if !source.exists() {
        return Err(ApiError::invalid(format!("{} does not exist", source.display()))
            .hint("make it first, or name a volume")
            .exit_code(125));
    }
    Ok(job::Mount { source, target: mount.target.clone(), read_only: mount.read_only })
}
