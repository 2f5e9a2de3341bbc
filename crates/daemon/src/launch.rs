//! From an instance to a worker that runs it.

mod job;
mod kernel;
mod spawn;

use std::sync::Arc;

use guise_api::{ApiError, Code, Instance};
use guise_image::spec::Descriptor;
use guise_worker::place::Place;

use crate::named::Named;
use crate::table::Entry;
use crate::{Daemon, admission};
pub use kernel::check as check_kernel;
pub use spawn::{Born, died};

/// The file of an instance that says which image it was made of, even when the image's
/// name has moved on since.
const IMAGE: &str = "image.json";

/// Finds a new instance's image and keeps it. Gives the digest.
pub async fn pin_image(daemon: &Arc<Daemon>, id: &str, image: &str) -> Result<String, ApiError> {
    let (daemon, id, image) = (daemon.clone(), id.to_owned(), image.to_owned());
    let pin = move || -> Result<String, ApiError> {
        let name: guise_image::Name = image
            .parse()
            .map_err(|error: guise_image::Error| ApiError::invalid(error.to_string()))?;
        let target = daemon.images.reference(&name).map_err(|error| missing(&image, error))?.target;
        let place = daemon.config.place(&id);
        let text = serde_json::to_vec(&target).map_err(ApiError::internal)?;
        place
            .create()
            .and_then(|()| std::fs::write(place.state.join(IMAGE), text))
            .map_err(|error| ApiError::host("make the instance's files", &error))?;
        let session = daemon.images.session().map_err(ApiError::internal)?;
        session.hold(&id, &target).map_err(ApiError::internal)?;
        Ok(target.digest.to_string())
    };
    tokio::task::spawn_blocking(pin).await.map_err(ApiError::internal)?
}

fn missing(image: &str, error: guise_image::Error) -> ApiError {
    match error {
        guise_image::Error::NoSuchImage(_) => {
            ApiError::new(Code::ImageMissing, format!("image {image} is not in the store"))
                .hint(format!("guise image pull {image} fetches it"))
                .exit_code(125)
        }
        other => ApiError::internal(other),
    }
}

fn pinned(place: &Place) -> Result<Descriptor, ApiError> {
    let text = std::fs::read(place.state.join(IMAGE)).map_err(ApiError::internal)?;
    serde_json::from_slice(&text).map_err(ApiError::internal)
}

/// Refuses an instance for which this host has not enough memory left.
fn admit(daemon: &Daemon, instance: &Instance) -> Result<(), ApiError> {
    let others: Vec<u64> = daemon
        .table
        .all()
        .iter()
        .map(|entry| entry.instance())
        .filter(|other| other.id != instance.id && other.status.phase.is_alive())
        .filter_map(|other| other.spec.resources.memory_bytes)
        .collect();
    daemon.config.memory.admit(instance, &others, admission::host_memory())
}

/// Starts the life that the instance's spec asks for.
pub async fn launch(daemon: &Arc<Daemon>, entry: &Arc<Entry>) -> Result<Born, ApiError> {
    let instance: Arc<Instance> = entry.instance();
    let console = *entry.console.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let place = daemon.config.place(&entry.id);
    admit(daemon, &instance)?;
    if let Some(network) = Named::network_of(&instance) {
        daemon.networks.ensure(daemon, &network).await?;
    }
    let (preparing, prepared_place) = (daemon.clone(), place.clone());
    let prepare = move || -> Result<(), ApiError> {
        let files = |error| ApiError::host("make the instance's files", &error).exit_code(125);
        prepared_place.create().map_err(files)?;
        let job = job::of(&preparing, &instance, &prepared_place, console)?;
        prepared_place.write_job(&job).map_err(files)
    };
    tokio::task::spawn_blocking(prepare).await.map_err(ApiError::internal)??;
    spawn::spawn(&place).await
}
