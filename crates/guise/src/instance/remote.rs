//! The way to this user's daemon, which is started if none runs.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use guise_api::client::{Client, ClientError};
use guise_daemon::Config;

use crate::Failure;

/// How long a daemon may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);

pub async fn connect() -> Result<Client, Failure> {
    let config = Config::of_this_user().map_err(Failure::failed)?;
    let client = Client::new(config.socket());
    match client.connect().await {
        Ok(_) => Ok(client),
        Err(ClientError::Unreachable { source, .. })
            if matches!(
                source.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
            ) =>
        {
            start(&config, &client).await?;
            Ok(client)
        }
        Err(error) => Err(error.into()),
    }
}

async fn start(config: &Config, client: &Client) -> Result<(), Failure> {
    let cannot = |what: &str, error: &dyn std::fmt::Display| Failure {
        code: 125,
        message: format!("{what}: {error}; `guise daemon` in the foreground says more"),
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
    let deadline = Instant::now() + PATIENCE;
    let mut ended = None;
    loop {
        if client.connect().await.is_ok() {
            return Ok(());
        }
        if ended.is_none() {
            ended = daemon.try_wait().ok().flatten().map(|_| Instant::now());
        }
        // One that lost against another that was started at the same time ends at once;
        // the other listens in a moment.
        const OTHERS: Duration = Duration::from_secs(2);
        if ended.is_some_and(|at| at.elapsed() > OTHERS) || Instant::now() > deadline {
            return Err(cannot("the daemon did not start", &last_line(&path)));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn last_line(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().last().unwrap_or("it said nothing").to_owned()
}
