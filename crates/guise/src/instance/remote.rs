//! The way to a daemon: this user's, which is started if none runs, also in the middle of a
//! command when the one that ran has gone; or that of another host.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use clap::Args;
use futures_util::future::BoxFuture;
use guise_api::client::{Client, ClientError, Revive, Route, Trust};
use guise_daemon::Config;

use crate::Failure;
use crate::daemon::ANOTHER_RUNS;

/// How long a daemon may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which daemon is asked, and in whose name.
#[derive(Args, Default)]
pub struct Way {
    /// The daemon of another host: https://HOST[:PORT] [env: GUISE_HOST]
    #[arg(long, value_name = "URL", help_heading = "Daemon")]
    host: Option<String>,
    /// A file with the token for it [env: GUISE_TOKEN, the token itself]
    #[arg(long, value_name = "FILE", help_heading = "Daemon")]
    token_file: Option<PathBuf>,
    /// The fingerprint of its certificate, as it tells it [env: GUISE_FINGERPRINT]
    #[arg(long, value_name = "SHA256", help_heading = "Daemon")]
    fingerprint: Option<String>,
    /// Who vouches for its certificate, instead of this host's authorities [env: GUISE_CA_FILE]
    #[arg(long, value_name = "FILE", help_heading = "Daemon")]
    ca_file: Option<PathBuf>,
    /// The project that is meant; * lists all [env: GUISE_PROJECT]
    #[arg(long, value_name = "NAME", help_heading = "Daemon")]
    project: Option<String>,
}

/// The way that this command line names: there is one for the whole process.
static WAY: OnceLock<Way> = OnceLock::new();

/// To be called once, before anything else here.
pub fn choose(way: Way) {
    // A second call would be the same command line.
    let _ = WAY.set(way);
}

/// What was said, or else what the environment says.
fn said(option: Option<&String>, variable: &str) -> Option<String> {
    let environment = || std::env::var(variable).ok();
    option.cloned().or_else(environment).filter(|text| !text.is_empty())
}

/// The daemon of another host, if one is named.
pub fn other_host() -> Option<String> {
    said(WAY.get().and_then(|way| way.host.as_ref()), "GUISE_HOST")
}

pub fn connect() -> Result<Client, Failure> {
    let none = Way::default();
    let way = WAY.get().unwrap_or(&none);
    let client = match other_host() {
        Some(url) => elsewhere(way, &url)?,
        None => {
            let config = Config::of_this_user().map_err(Failure::failed)?;
            let socket = Route::Socket(config.socket());
            Client::new(socket).reviving(Arc::new(Starter(config)))
        }
    };
    match said(way.project.as_ref(), "GUISE_PROJECT") {
        Some(project) => client
            .in_project(&project)
            .ok_or_else(|| Failure::usage(format!("{project:?} is no project's name"))),
        None => Ok(client),
    }
}

fn elsewhere(way: &Way, url: &str) -> Result<Client, Failure> {
    let file = |option: Option<&PathBuf>, variable| {
        option.cloned().or_else(|| std::env::var_os(variable).map(PathBuf::from))
    };
    let trust = match said(way.fingerprint.as_ref(), "GUISE_FINGERPRINT") {
        Some(fingerprint) => Trust::Fingerprint(fingerprint),
        None => file(way.ca_file.as_ref(), "GUISE_CA_FILE").map_or(Trust::System, Trust::File),
    };
    let client = Client::new(Route::to(url, &trust).map_err(Failure::usage)?);
    let token = match &way.token_file {
        Some(path) => {
            let text = std::fs::read_to_string(path);
            text.map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?
        }
        None => std::env::var("GUISE_TOKEN").map_err(|_| {
            Failure::usage("who asks another host needs a token: --token-file or GUISE_TOKEN")
        })?,
    };
    client
        .with_token(token.trim())
        .ok_or_else(|| Failure::usage("the token has characters that no token has"))
}

/// Starts a daemon where none listens.
struct Starter(Config);

impl Revive for Starter {
    fn revive<'a>(&'a self, client: &'a Client) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let deadline = Instant::now() + PATIENCE;
            let mut pause = Duration::from_millis(5);
            loop {
                match client.connect().await {
                    Ok(_) => return Ok(()),
                    // No socket, nobody behind it, or somebody who is just ending.
                    Err(ClientError::Unreachable { source, .. })
                        if matches!(
                            source.kind(),
                            ErrorKind::NotFound
                                | ErrorKind::ConnectionRefused
                                | ErrorKind::ConnectionReset
                        ) => {}
                    Err(error) => return Err(error.to_string()),
                }
                if start(&self.0, client, deadline).await? {
                    return Ok(());
                }
                // Another has the place: it listens in a moment, or is about to end.
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(200));
            }
        })
    }
}

/// Starts a daemon and waits until it listens. Whether it does: another may have the place.
async fn start(config: &Config, client: &Client, deadline: Instant) -> Result<bool, String> {
    let cannot = |what: &str, error: &dyn std::fmt::Display| {
        format!("{what}: {error}; `guise daemon` in the foreground says more")
    };
    std::fs::create_dir_all(&config.run).map_err(|e| cannot("make the daemon's directory", &e))?;
    let path = config.run.join("daemon.log");
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(|e| cannot("open the daemon's log", &e))?;
    let mut daemon = Command::new("/proc/self/exe")
        .args(["daemon", "--background"])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|e| cannot("start the daemon", &e))?;
    loop {
        if client.connect().await.is_ok() {
            return Ok(true);
        }
        let ended = daemon.try_wait().ok().flatten();
        let late = Instant::now() > deadline;
        match ended.map(|status| status.code()) {
            Some(Some(code)) if code == i32::from(ANOTHER_RUNS) && !late => return Ok(false),
            None if !late => {}
            _ => return Err(cannot("the daemon did not start", &last_line(&path))),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn last_line(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().last().unwrap_or("it said nothing").to_owned()
}
