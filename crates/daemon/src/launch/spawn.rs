//! Making a worker, up to the moment when its workload runs.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::process::Stdio;
use std::time::Duration;

use guise_api::{ApiError, Code};
use guise_container::namespaces::write_mappings;
use guise_container::spec::IdMap;
use guise_worker::birth::{MAPPED, News};
use guise_worker::place::Place;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;

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
            News::MapMe(process) => {
                tokio::task::spawn_blocking(move || map(process, pid))
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

/// Maps the ids of a worker: of its first process, or of a child of that. A plain user is root
/// inside; root's has all ids as they are.
fn map(process: u32, worker: u32) -> Result<(), ApiError> {
    if process != worker && parent_of(process) != Some(worker) {
        let what = format!("process {process} is none of worker {worker}");
        return Err(ApiError::internal(what).exit_code(125));
    }
    let root = rustix::process::geteuid().is_root();
    let ids = |file: &str, own| {
        let only = vec![IdMap { container: 0, host: own, size: 1 }];
        if !root {
            return only;
        }
        let known = std::fs::read_to_string(file).unwrap_or_default();
        let same = |line: &str| {
            let mut numbers = line.split_whitespace().map(str::parse);
            let (inside, size) = (numbers.next()?.ok()?, numbers.nth(1)?.ok()?);
            Some(IdMap { container: inside, host: inside, size })
        };
        let all: Vec<IdMap> = known.lines().filter_map(same).collect();
        if all.is_empty() { only } else { all }
    };
    let uids = ids("/proc/self/uid_map", rustix::process::geteuid().as_raw());
    let gids = ids("/proc/self/gid_map", rustix::process::getegid().as_raw());
    write_mappings(process.cast_signed(), &uids, &gids, true)
        .map_err(|error| ApiError::new(Code::Unsupported, error.to_string()).exit_code(125))
}

fn parent_of(process: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Behind the name, which may hold anything, come the state and the parent.
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

/// What a worker said that ended without telling.
pub fn died(place: &Place) -> ApiError {
    let said = std::fs::read_to_string(place.errors()).unwrap_or_default();
    let last = said.lines().rfind(|line| !line.trim().is_empty());
    let why = last.map(|line| format!(": {line}")).unwrap_or_default();
    ApiError::new(Code::Internal, format!("its worker died{why}")).exit_code(125)
}
