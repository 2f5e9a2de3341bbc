//! The way to this user's daemon, which is started if none runs, also in the middle of a
//! command when the one that ran has gone.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use guise_api::client::{Client, ClientError, Revive};
use guise_daemon::Config;

use crate::Failure;
use crate::daemon::ANOTHER_RUNS;

/// How long a daemon may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn connect() -> Result<Client, Failure> {
    let config = Config::of_this_user().map_err(Failure::failed)?;
    Ok(Client::new(config.socket()).reviving(Arc::new(Starter(config))))
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
