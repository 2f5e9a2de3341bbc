//! `guise daemon`: the control plane, and the workers that it starts.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use guise_daemon::{Config, DaemonError, Listen, TlsFiles};
use tracing::Level;

use crate::Failure;

/// What a daemon that a command started ends with when another one has its place.
pub const ANOTHER_RUNS: u8 = 3;

/// Run the control plane in the foreground
///
/// Every command about instances starts one for this user by itself, unless one runs.
#[derive(Args)]
#[command(after_help = "Examples:
  guise daemon
  guise daemon --listen 0.0.0.0:8443    # see its fingerprint: guise info
  guise daemon --listen [::]:8443 --tls-cert host.pem --tls-key host.key")]
pub struct Arguments {
    /// What outlives a reboot [default: /var/lib/guise, or ~/.local/share/guise]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Sockets and locks [default: /run/guise, or $XDG_RUNTIME_DIR/guise]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// The image store [default: images in the state directory]
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// How much to log: error, warn, info, debug
    #[arg(long, default_value = "info")]
    log: Level,
    /// Serve other hosts here as well, by TLS to who has a token
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// The certificate for that [default: the daemon's own, which it makes]
    #[arg(long, value_name = "FILE", requires_all = ["listen", "tls_key"])]
    tls_cert: Option<PathBuf>,
    /// The certificate's key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Without TLS, which only an address of this host itself may be
    #[arg(long, requires = "listen", conflicts_with = "tls_cert")]
    plain: bool,
    /// In a session of its own, as commands start it
    #[arg(long, hide = true)]
    background: bool,
    /// Print the API's OpenAPI description and end
    #[arg(long)]
    openapi: bool,
}

pub fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    if arguments.openapi {
        crate::pipe::end_with_the_reader();
        println!("{}", guise_daemon::openapi());
        return Ok(ExitCode::SUCCESS);
    }
    let mut config = Config::of_this_user().map_err(Failure::failed)?;
    let absolute = |path: PathBuf| std::path::absolute(path).map_err(Failure::failed);
    if let Some(state) = arguments.state {
        config.state = absolute(state)?;
        config.images = config.state.join("images");
    }
    if let Some(run) = arguments.run {
        config.run = absolute(run)?;
    }
    if let Some(images) = arguments.images {
        config.images = absolute(images)?;
    }
    config.listen = arguments.listen.map(|address| Listen {
        address,
        plain: arguments.plain,
        certificate: arguments
            .tls_cert
            .zip(arguments.tls_key)
            .map(|(certificate, key)| TlsFiles { certificate, key }),
    });
    if arguments.background {
        // It fails only for the leader of a session, which then has one of its own.
        let _ = rustix::process::setsid();
    }
    tracing_subscriber::fmt()
        .with_max_level(arguments.log)
        .with_target(false)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Failure::failed)?;
    let ended = runtime.block_on(guise_daemon::run(config));
    // Blocking calls that are under way end with the process.
    runtime.shutdown_background();
    match ended {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // Whoever started this one in vain tries again, or finds the other.
        Err(DaemonError::Running(_)) if arguments.background => Ok(ANOTHER_RUNS.into()),
        Err(error) => Err(Failure::failed(error)),
    }
}

/// `guise worker STATE RUN`: the process that holds one instance, what it starts to copy files,
/// and what the daemon starts to remove those of other users.
pub fn worker(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    let words: Vec<String> =
        arguments.iter().filter_map(|word| word.to_str().map(str::to_owned)).collect();
    if let Some(code) = guise_worker::copy(&words) {
        return ExitCode::from(code);
    }
    if let Some(code) = guise_worker::removal::helper(&arguments) {
        return ExitCode::from(code);
    }
    let mut arguments = arguments.into_iter();
    match (arguments.next(), arguments.next(), arguments.next()) {
        (Some(state), Some(run), None) => {
            ExitCode::from(guise_worker::run(state.as_ref(), run.as_ref()))
        }
        _ => {
            eprintln!("guise worker: the daemon starts workers; see `guise run`");
            ExitCode::from(2)
        }
    }
}
