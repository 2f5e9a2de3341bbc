//! Taking things away so that nothing stays.

use std::fs;
use std::sync::Arc;

use guise_api::{ApiError, Instance};
use guise_container::runtime;
use guise_container::state::Store;
use guise_worker::place::Place;

use crate::table::Entry;
use crate::{Daemon, trees};

/// Removes an instance that does not run: its files, its hold on the image, and last
/// its entry in the store. Killed in between, it is begun again.
pub async fn remove(daemon: &Arc<Daemon>, entry: &Arc<Entry>) -> Result<(), ApiError> {
    take_away(daemon, &entry.id).await?;
    daemon.objects.remove(&entry.instance()).await?;
    daemon.table.remove(entry);
    daemon.events.instance(&entry.instance(), "removed", None);
    Ok(())
}

/// Takes away what was made for an instance that never got into the store.
pub async fn abandon(daemon: &Arc<Daemon>, id: &str) {
    if let Err(error) = take_away(daemon, id).await {
        tracing::warn!("remove what was made for instance {id}: {error}");
    }
}

async fn take_away(daemon: &Arc<Daemon>, id: &str) -> Result<(), ApiError> {
    let place = daemon.config.place(id);
    let (images, id) = (daemon.images.clone(), id.to_owned());
    let files = move || -> Result<(), ApiError> {
        for directory in [&place.run, &place.state] {
            trees::remove(directory).map_err(|left| left.told(directory))?;
        }
        images.release(&id).map_err(ApiError::internal)
    };
    tokio::task::spawn_blocking(files).await.map_err(ApiError::internal)?
}

/// Ends and removes what a dead worker left running.
pub async fn leftovers(place: &Place, id: &str) {
    let (root, id) = (place.run.join("oci"), id.to_owned());
    let ended = tokio::task::spawn_blocking(move || {
        if root.exists() { runtime::delete(&Store::new(root), &id, true) } else { Ok(()) }
    });
    match ended.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!("clean up after a worker: {error}"),
        Err(error) => tracing::warn!("clean up after a worker: {error}"),
    }
}

/// Removes directories of instances that are not in the store: a daemon was killed while
/// it made or removed them. What still runs there is left alone and told.
pub fn orphans(daemon: &Daemon, instances: &[Instance]) {
    let known = |id: &str| instances.iter().any(|instance| instance.id == id);
    for parent in [daemon.config.state.join("instances"), daemon.config.run.join("i")] {
        let ids = fs::read_dir(&parent).into_iter().flatten().flatten();
        for id in ids.filter_map(|entry| entry.file_name().into_string().ok()) {
            if known(&id) {
                continue;
            }
            let place = daemon.config.place(&id);
            if place.is_held().unwrap_or(false) {
                tracing::warn!("instance {id} runs, but is not in the store; it is left alone");
                continue;
            }
            let removed = trees::remove(&place.run).and_then(|()| trees::remove(&place.state));
            if let Err(error) = removed {
                tracing::warn!("remove what is left of instance {id}: {error}");
            }
            if let Err(error) = daemon.images.release(&id) {
                tracing::warn!("release the image of instance {id}: {error}");
            }
        }
    }
}
