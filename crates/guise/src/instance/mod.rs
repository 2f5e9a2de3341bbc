//! `guise run`, `ps`, `exec` and the rest of what is done with instances: arguments
//! become requests to the daemon, answers become text and an exit code.

mod access;
mod arguments;
mod console;
mod copy;
mod launch;
mod manage;
mod remote;
mod tasks;
mod watch;

use std::process::ExitCode;

use guise_api::ApiError;
use guise_api::client::ClientError;

pub use access::{Audit, Info, Project, Token};
pub use arguments::{Create, Exec, Run};
pub use manage::{Manage, Network, Volume};
pub use remote::{Way, choose, connect, other_host};
pub use tasks::{Task, attend, print_log};
pub use watch::{Events, Logs, Stats};

use crate::Failure;

/// What a command about instances ends with.
pub type Done = Result<ExitCode, Failure>;

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        match error {
            ClientError::Api(error) => error.into(),
            ClientError::Dead(message) => Failure { code: 125, message },
            ClientError::Unreachable { .. } if other_host().is_some() => Failure::failed(format!(
                "{error}; see that guise daemon --listen runs there, and that nothing is in the way"
            )),
            other => Failure::failed(other),
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        Failure { code: error.exit_code.unwrap_or(1), message: error.to_string() }
    }
}

/// Runs a command that talks with the daemon, on one thread.
pub fn block_on<F: Future<Output = Done>>(command: F) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::failed)?;
    runtime.block_on(command)
}

/// A part of a URL.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            escaped.push(byte as char);
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

pub fn run(arguments: Run) -> Done {
    block_on(launch::run(arguments))
}

pub fn create(arguments: Create) -> Done {
    block_on(launch::create(arguments))
}

pub fn exec(arguments: Exec) -> Done {
    block_on(launch::exec(arguments))
}

pub fn manage(command: Manage) -> Done {
    block_on(manage::run(command))
}

pub fn project(command: Project) -> Done {
    block_on(access::project(command))
}

pub fn token(command: Token) -> Done {
    block_on(access::token(command))
}

pub fn audit(arguments: Audit) -> Done {
    block_on(access::audit(arguments))
}

pub fn info(arguments: Info) -> Done {
    block_on(access::info(arguments))
}

pub fn task(command: Task) -> Done {
    block_on(tasks::run(command))
}

pub fn volume(command: Volume) -> Done {
    block_on(manage::volume(command))
}

pub fn network(command: Network) -> Done {
    block_on(manage::network(command))
}

pub fn logs(arguments: Logs) -> Done {
    block_on(watch::logs(arguments))
}

pub fn stats(arguments: Stats) -> Done {
    block_on(watch::stats(arguments))
}

pub fn events(arguments: Events) -> Done {
    block_on(watch::events(arguments))
}

/// `guise cp`: files in and out.
#[derive(clap::Args)]
pub struct Copy {
    /// A path here, NAME:PATH in an instance, or - for a tar archive on standard input
    from: String,
    /// The same; - for a tar archive on standard output
    to: String,
}

pub fn copy(arguments: Copy) -> Done {
    block_on(copy::copy(arguments.from, arguments.to))
}
