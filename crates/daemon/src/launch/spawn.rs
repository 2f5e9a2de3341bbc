//! Making a worker, up to the moment when its workload runs.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::process::Stdio;
use std::time::Duration;

use guise_api::{ApiError, Code};
use guise_worker::birth::{MAPPED, News};
use guise_worker::place::Place;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;

use crate::ids;

/// How long a worker that has failed may take to end.
const LAST_ACT: Duration = Duration::from_secs(10);

/// How a worker came into the world.
pub enum Born {
    /// Its workload runs.
    Running { pid: u32, warnings: Vec<String> },
    /// Another worker has the instance.
    Taken,
}

/// Starts a worker for the job in this place.
pub async fn spawn(place: &Place) -> Result<Born, ApiError> {
    let failed = |what: &str, error: std::io::Error| {
        ApiError::new(Code::Internal, format!("{what}: {error}")).exit_code(125)
    };
    let (ours, theirs) = StdStream::pair().map_err(|e| failed("make a channel", e))?;
    let errors = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .open(place.errors())
        .map_err(|e| failed("open the worker's error file", e))?;
    let mut child = Command::new("/proc/self/exe")
        .arg("worker")
        .arg(&place.state)
        .arg(&place.run)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(errors)
        // What ends the daemon's terminal does not end instances.
        .process_group(0)
        .current_dir("/")
        .spawn()
        .map_err(|e| failed("start a worker", e))?;
    let pid = child.id().unwrap_or_default();
    // Reaped whenever it ends.
    let end = tokio::spawn(async move { child.wait().await });
    ours.set_nonblocking(true).map_err(|e| failed("use a channel", e))?;
    let stream = UnixStream::from_std(ours).map_err(|e| failed("use a channel", e))?;
    let (from, mut to) = stream.into_split();
    let mut lines = BufReader::new(from).lines();
    loop {
        let line = lines.next_line().await.map_err(|e| failed("listen to a worker", e))?;
        let Some(line) = line else { return Err(died(place)) };
        match serde_json::from_str(&line).map_err(ApiError::internal)? {
            News::MapMe { process, users } => {
                tokio::task::spawn_blocking(move || ids::map(process, pid, users))
                    .await
                    .map_err(ApiError::internal)??;
                to.write_all(MAPPED.as_bytes()).await.map_err(|e| failed("talk to a worker", e))?;
            }
            News::Ready(warnings) => return Ok(Born::Running { pid, warnings }),
            News::Failed(error) => {
                // Its last act: with it goes what it held, a port of this host, say.
                let _ = tokio::time::timeout(LAST_ACT, end).await;
                return Err(error);
            }
            News::Taken => return Ok(Born::Taken),
        }
    }
}

/// What a worker said that ended without telling.
pub fn died(place: &Place) -> ApiError {
    let said = std::fs::read_to_string(place.errors()).unwrap_or_default();
    let last = said.lines().rfind(|line| !line.trim().is_empty());
    let why = last.map(|line| format!(": {line}")).unwrap_or_default();
    ApiError::new(Code::Internal, format!("its worker died{why}")).exit_code(125)
}
