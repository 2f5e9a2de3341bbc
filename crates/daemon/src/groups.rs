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

/// The cgroups of workers that have ended, or have nothing left to do but to tell of it.
fn all_left(daemon: &Daemon) -> Vec<Left> {
    if !are_there() {
        return Vec::new();
    }
    let all = Left::all(&daemon.config.place("any").state).unwrap_or_else(|error| {
        tracing::warn!("look for cgroups of workers: {error}");
        Vec::new()
    });
    let has_ended = |(id, life): (String, u64)| {
        let place = daemon.config.place(&id);
        let lives = place.is_held().unwrap_or(true)
            && place.read_job().is_ok_and(|job| job.is_some_and(|job| job.life == life));
        if lives { None } else { Left::of(&place.state, &id, life).ok() }
    };
    all.into_iter().filter_map(has_ended).collect()
}

/// Takes away what workers left that ended while there was no daemon. To be called before any is
/// started; those that run are seen to by their instances' tasks.
pub fn clear_left(daemon: &Daemon) {
    for left in all_left(daemon) {
        tokio::spawn(remove(left));
    }
}

/// Gives workers that have just ended a moment to go, before the daemon ends: the next one may
/// never come.
pub async fn settle(daemon: &Arc<Daemon>) {
    const MOMENT: Duration = Duration::from_millis(500);
    let deadline = Instant::now() + MOMENT;
    loop {
        let daemon = daemon.clone();
        let clear = move || {
            let stays = |left: &Left| !left.remove().unwrap_or(true);
            // Each is tried, whether one before it stays or not.
            all_left(&daemon).into_iter().filter(stays).count() == 0
        };
        let is_done = tokio::task::spawn_blocking(clear).await.unwrap_or(true);
        if is_done || Instant::now() > deadline {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
