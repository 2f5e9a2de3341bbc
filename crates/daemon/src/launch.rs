//! From an instance to a worker that runs it.

mod job;
mod kernel;
mod spawn;

use std::sync::Arc;

use guise_api::{ApiError, Code, Instance};
use guise_image::spec::Descriptor;
use guise_worker::place::Place;

use crate::Daemon;
use crate::table::Entry;
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
        place.create().map_err(ApiError::internal)?;
        let text = serde_json::to_vec(&target).map_err(ApiError::internal)?;
        std::fs::write(place.state.join(IMAGE), text).map_err(ApiError::internal)?;
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

/// Starts the life that the instance's spec asks for.
pub async fn launch(daemon: &Arc<Daemon>, entry: &Arc<Entry>) -> Result<Born, ApiError> {
    let instance: Arc<Instance> = entry.instance();
    let console = *entry.console.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let place = daemon.config.place(&entry.id);
    let (preparing, prepared_place) = (daemon.clone(), place.clone());
    let prepare = move || -> Result<(), ApiError> {
        prepared_place.create().map_err(ApiError::internal)?;
        let job = job::of(&preparing, &instance, &prepared_place, console)?;
        prepared_place.write_job(&job).map_err(ApiError::internal)
    };
    tokio::task::spawn_blocking(prepare).await.map_err(ApiError::internal)??;
    spawn::spawn(&place).await
}
