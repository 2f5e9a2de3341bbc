//! `guise oci`: the command line that podman, Docker and containerd expect of
//! an OCI runtime.
//!
//! Part of two binaries: `guise`, and `guise-oci` for callers that take a path
//! but no arguments, which holds nothing else and so starts in less time and
//! memory. In `guise` it is dispatched before the rest of the command line is
//! built: a container starts in milliseconds, and describing every other
//! subcommand would show.

mod log;
mod options;
mod print;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use guise_container::error::Error as ContainerError;
use guise_container::runtime;
use guise_container::spec::{Process, Resources};
use guise_container::state::Store;
use options::{Global, Options, Usage};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Usage(#[from] Usage),
    #[error(transparent)]
    Container(#[from] ContainerError),
}

impl Error {
    fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::Container(e) => e.exit_code(),
        }
    }
}

/// Runs one command; the exit code is the program's own where there is one.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let (global, command, rest) = match options::split(args) {
        Ok(split) => split,
        Err(e) => {
            eprintln!("guise oci: error: {e}");
            return ExitCode::from(2);
        }
    };
    if let Some(text) = options::information(&global, command.as_deref()) {
        print!("{text}");
        return ExitCode::SUCCESS;
    }
    log::install(&global);
    let command = command.unwrap_or_default();
    match run(&global, &command, rest) {
        Ok(status) => ExitCode::from(status),
        Err(e) => {
            log::error(&global, &e.to_string());
            eprintln!("guise oci {command}: error: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}

fn run(global: &Global, command: &str, args: Vec<OsString>) -> Result<u8, Error> {
    if global.systemd_cgroup {
        // Said rather than ignored: the cgroup is made, but not by systemd.
        tracing::warn!("--systemd-cgroup: cgroups are made directly, systemd is not asked");
    }
    let store = Store::new(global.root.clone().unwrap_or_else(Store::default_root));
    let options = Options::parse(command, args)?;
    match command {
        "create" => runtime::create(&store, &options.create()?)?,
        "run" => {
            let status = runtime::run(
                &store,
                &options.create()?,
                options.has("detach"),
                options.has("keep"),
            )?;
            return Ok(status as u8);
        }
        "start" => runtime::start(&store, options.id()?)?,
        "state" => {
            let (state, status) = runtime::state(&store, options.id()?)?;
            print::state(&state, status);
        }
        "kill" => {
            let name = options.positional(1).unwrap_or("TERM");
            let signal = runtime::parse_signal(name)
                .ok_or_else(|| Usage::new(format!("{name:?} is not a signal")))?;
            runtime::kill(&store, options.id()?, signal, options.has("all"))?;
        }
        "delete" => runtime::delete(&store, options.id()?, options.has("force"))?,
        "list" => print::list(&runtime::list(&store)?, &options)?,
        "ps" => print::processes(&runtime::ps(&store, options.id()?)?, &options)?,
        "pause" => runtime::pause(&store, options.id()?)?,
        "resume" => runtime::resume(&store, options.id()?)?,
        "exec" => {
            let id = options.id()?.to_owned();
            let base = store.find(&id)?.config()?.process.unwrap_or_default();
            let exec = options.exec(id, process_of(&options, base)?)?;
            return Ok(runtime::exec(&store, &exec)? as u8);
        }
        "update" => {
            let resources = match options.value("resources") {
                Some(path) => guise_container::spec::load_resources(Path::new(path))?,
                None => options.resources(Resources::default())?,
            };
            runtime::update(&store, options.id()?, &resources)?;
        }
        "events" => {
            let id = options.id()?;
            if options.has("stats") {
                print::event(&runtime::stats(&store, id)?);
            } else {
                let interval = options.duration("interval", Duration::from_secs(5))?;
                runtime::watch(&store, id, interval, print::event)?;
            }
        }
        "features" => print::json(&runtime::features()),
        _ => return Err(Usage::new(format!("there is no command {command:?}")).into()),
    }
    Ok(0)
}

/// The program of an `exec`: from a file, or the container's own with what the
/// command line says instead.
fn process_of(options: &Options, base: Process) -> Result<Process, Error> {
    match options.value("process") {
        Some(path) => {
            let mut process = guise_container::spec::load_process(Path::new(path))?;
            if options.has("tty") {
                process.terminal = true;
            }
            Ok(process)
        }
        None => Ok(options.process(base)?),
    }
}
