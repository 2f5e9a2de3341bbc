//! From an instance to a worker that runs it.

mod job;
mod kernel;
mod spawn;

use std::path::Path;
use std::sync::Arc;

use guise_api::{ApiError, Code, Guise, Instance, InstanceSpec};
use guise_image::Image;
use guise_image::archive::{import_folder, import_module};
use guise_image::debian::Wanted;
use guise_image::spec::Descriptor;
use guise_worker::place::Place;

use crate::admission::processors;
use crate::choose::{Content, no_system};
use crate::named::Named;
use crate::table::Entry;
use crate::{Daemon, admission, pool};
pub use kernel::check as check_kernel;
pub use spawn::{Born, died};

/// The file of an instance that says which image it was made of, even when the image's
/// name has moved on since.
const IMAGE: &str = "image.json";

/// Finds a new instance's image, or makes one of its file, and keeps it. Disk images stay where
/// they are, and there are none of them in the store.
pub async fn pin_image(
    daemon: &Arc<Daemon>,
    id: &str,
    spec: &InstanceSpec,
) -> Result<Option<Image>, ApiError> {
    let (daemon, id, spec) = (daemon.clone(), id.to_owned(), spec.clone());
    let pin = move || -> Result<Option<Image>, ApiError> {
        let place = daemon.config.place(&id);
        let files = |error| ApiError::host("make the instance's files", &error);
        if let Some(disk) = spec.disk() {
            check_disk(disk)?;
            place.create().map_err(files)?;
            return Ok(None);
        }
        // Held until the end, so that nothing of it is collected meanwhile.
        let session = daemon.images.session().map_err(ApiError::internal)?;
        let refused = |error: guise_image::Error| match &error {
            guise_image::Error::Io { what, path, source } => {
                ApiError::host(format!("{what} {}", path.display()), source).exit_code(125)
            }
            _ => ApiError::invalid(error.to_string()).exit_code(125),
        };
        let target = match (spec.file(), spec.folder()) {
            (Some(file), _) => import_module(&session, file).map_err(refused)?,
            (None, Some(folder)) => {
                pool::admit(&daemon, pool::Kept::Images, "the folder is not taken over")?;
                import_folder(&session, folder).map_err(refused)?
            }
            (None, None) => named(&daemon, &spec.image)?,
        };
        let image = daemon
            .images
            .image_of(&target, &spec.image, None)
            .map_err(|error| ApiError::internal(error).exit_code(125))?;
        let text = serde_json::to_vec(&target).map_err(ApiError::internal)?;
        place
            .create()
            .and_then(|()| std::fs::write(place.state.join(IMAGE), text))
            .map_err(files)?;
        session.hold(&id, &target).map_err(ApiError::internal)?;
        Ok(Some(image))
    };
    tokio::task::spawn_blocking(pin).await.map_err(ApiError::internal)?
}

/// Refuses what can be no disk image before there is an instance of it. It is read by the
/// worker, in its jail.
fn check_disk(disk: &Path) -> Result<(), ApiError> {
    let refused = |why: &dyn std::fmt::Display| {
        Err(ApiError::invalid(format!("open the disk {}: {why}", disk.display())).exit_code(125))
    };
    match std::fs::metadata(disk).and_then(|found| Ok((found, access(disk)?))) {
        Err(error) => refused(&error),
        Ok((found, ())) if !found.is_file() => refused(&"it is no file"),
        Ok(_) => Ok(()),
    }
}

/// Whether it can be read. It is not opened: pipes would wait for who writes.
fn access(file: &Path) -> std::io::Result<()> {
    Ok(rustix::fs::access(file, rustix::fs::Access::READ_OK)?)
}

/// What the store has under a name.
fn named(daemon: &Daemon, image: &str) -> Result<Descriptor, ApiError> {
    let name: guise_image::Name =
        image.parse().map_err(|error: guise_image::Error| ApiError::invalid(error.to_string()))?;
    Ok(daemon.images.reference(&name).map_err(|error| missing(image, error))?.target)
}

/// Refuses a VM of an image that is not here yet, and that would be a plain Debian when it came.
pub fn check_coming(daemon: &Daemon, spec: &InstanceSpec) -> Result<(), ApiError> {
    let Ok(name) = spec.image.parse::<guise_image::Name>() else { return Ok(()) };
    let is_debian = matches!(Wanted::of(&name), Ok(Some(Wanted::RootFs { .. })));
    let is_here =
        !matches!(daemon.images.reference(&name), Err(guise_image::Error::NoSuchImage(_)));
    match spec.guise == Guise::Vm && is_debian && !is_here {
        true => Err(no_system(&spec.image)),
        false => Ok(()),
    }
}

/// What a spec would run, as far as that is known here.
pub fn content(daemon: &Daemon, spec: &InstanceSpec) -> Content {
    if spec.disk().is_some() {
        return Content::Disk;
    }
    if spec.file().is_some() {
        return Content::Wasm;
    }
    if spec.folder().is_some() {
        return Content::RootFs;
    }
    named(daemon, &spec.image)
        .ok()
        .and_then(|target| daemon.images.image_of(&target, &spec.image, None).ok())
        .map_or(Content::Unknown, |image| Content::of(&image))
}

/// Holds an instance's image again, should a power failure have taken the lease.
pub fn hold_again(daemon: &Daemon, id: &str) -> Result<(), ApiError> {
    if daemon.images.held(id).map_err(ApiError::internal)?.is_some() {
        return Ok(());
    }
    let target = pinned(&daemon.config.place(id))?;
    let session = daemon.images.session().map_err(ApiError::internal)?;
    session.hold(id, &target).map_err(ApiError::internal)
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

/// Refuses an instance for which this host has not enough memory left, or the processors of which
/// it has no more.
fn admit(daemon: &Daemon, instance: &Instance) -> Result<(), ApiError> {
    processors::check(&instance.spec.resources).map_err(|error| error.exit_code(125))?;
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
    pool::admit(daemon, pool::Kept::Instances, &format!("{} is not started", instance.name))?;
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
