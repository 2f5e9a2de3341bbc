//! Cgroups of workers, which outlast them: they are taken away when their worker has gone, who
//! may have something to tell for a while after its instance's end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use guise_api::Instance;
use guise_worker::group::Left;

use crate::Daemon;

/// Longer than any worker stays.
const PATIENCE: Duration = Duration::from_secs(1200);

/// Whether workers here have one.
fn are_there() -> bool {
    rustix::process::geteuid().is_root()
}

/// That of the present life of an instance.
fn of(daemon: &Daemon, instance: &Instance) -> Option<Left> {
    let place = daemon.config.place(&instance.id);
    Left::of(&place.state, &instance.id, instance.status.starts)
        .inspect_err(|error| tracing::warn!("find the cgroup of a worker: {error}"))
        .ok()
}

/// Whether the kernel has ended this instance's worker for lack of memory.
pub async fn ran_out_of_memory(daemon: &Arc<Daemon>, instance: &Arc<Instance>) -> bool {
    if !are_there() {
        return false;
    }
    let (daemon, instance) = (daemon.clone(), instance.clone());
    let look = move || of(&daemon, &instance).is_some_and(|left| left.ran_out_of_memory());
    tokio::task::spawn_blocking(look).await.unwrap_or(false)
}

/// Takes away the cgroup of an instance whose present life is over, in the background.
pub fn clear(daemon: &Arc<Daemon>, instance: &Arc<Instance>) {
    if !are_there() {
        return;
    }
    let (daemon, instance) = (daemon.clone(), instance.clone());
    tokio::spawn(async move {
        let found = tokio::task::spawn_blocking(move || of(&daemon, &instance)).await;
        if let Ok(Some(left)) = found {
            remove(left).await;
        }
    });
}

async fn remove(left: Left) {
    const FIRST: Duration = Duration::from_millis(2);
    const LONGEST: Duration = Duration::from_secs(2);
    let (left, deadline) = (Arc::new(left), Instant::now() + PATIENCE);
    let mut wait = FIRST;
    while Instant::now() < deadline {
        let left = left.clone();
        match tokio::task::spawn_blocking(move || left.remove()).await {
            Ok(Ok(false)) => {}
            Ok(Ok(true)) | Err(_) => return,
            Ok(Err(error)) => {
                tracing::warn!("{error}");
                return;
            }
        }
        tokio::time::sleep(wait).await;
        wait = (2 * wait).min(LONGEST);
    }
}

/// Takes away what workers left that ended while there was no daemon. To be called before any is
/// started.
pub fn clear_left(daemon: &Daemon) {
    if !are_there() {
        return;
    }
    let all = Left::all(&daemon.config.place("any").state).unwrap_or_else(|error| {
        tracing::warn!("look for cgroups of workers: {error}");
        Vec::new()
    });
    for (id, life) in all {
        let place = daemon.config.place(&id);
        // The task of one that runs does it when that has ended.
        let lives = place.is_held().unwrap_or(true)
            && place.read_job().is_ok_and(|job| job.is_some_and(|job| job.life == life));
        if let Ok(left) = Left::of(&place.state, &id, life)
            && !lives
        {
            tokio::spawn(remove(left));
        }
    }
}
