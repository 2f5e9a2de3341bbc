//! Volumes.

use axum::Json;
use axum::extract::{Path, State};
use guise_api::{ApiError, Code, Volume};
use guise_container::state::timestamp;

use super::App;
use super::answer::{Answer, Body, Refused};
use super::instances::check_name;

fn complete(daemon: &App, mut volume: Volume) -> Volume {
    volume.path = daemon.config.volume(&volume.name).display().to_string();
    let uses = |mount: &guise_api::Mount| mount.volume() == Some(volume.name.as_str());
    volume.used_by = daemon
        .table
        .all()
        .iter()
        .map(|entry| entry.instance())
        .filter(|instance| instance.spec.mounts.iter().any(uses))
        .map(|instance| instance.name.clone())
        .collect();
    volume
}

#[utoipa::path(get, path = "/v1/volumes", responses((status = 200, body = Vec<Volume>)))]
pub async fn list(State(daemon): State<App>) -> Answer<Vec<Volume>> {
    let volumes = daemon.objects.volumes().map_err(ApiError::internal)?;
    Ok(Json(volumes.into_iter().map(|volume| complete(&daemon, volume)).collect()))
}

/// Makes a volume if there is none of this name yet.
pub async fn ensure(daemon: &App, name: &str) -> Result<Volume, ApiError> {
    check_name(name)?;
    if let Some(volume) = daemon.objects.volume(name)? {
        return Ok(volume);
    }
    std::fs::create_dir_all(daemon.config.volume(name))
        .map_err(|error| ApiError::host(format!("make volume {name}"), &error))?;
    let volume = Volume {
        name: name.to_owned(),
        created: timestamp(),
        path: String::new(),
        used_by: Vec::new(),
    };
    match daemon.objects.create_volume(&volume).await {
        // Somebody else has made it in between.
        Err(error) if error.code == Code::Conflict => {}
        other => other?,
    }
    daemon.events.tell("volume", name, name, "created", None);
    Ok(volume)
}

#[utoipa::path(
    post, path = "/v1/volumes", request_body = Volume,
    responses((status = 200, body = Volume), (status = 400, body = ApiError))
)]
pub async fn create(State(daemon): State<App>, Body(asked): Body<Volume>) -> Answer<Volume> {
    let volume = ensure(&daemon, &asked.name).await?;
    Ok(Json(complete(&daemon, volume)))
}

#[utoipa::path(
    delete, path = "/v1/volumes/{name}", params(("name" = String, Path)),
    responses((status = 200), (status = 404, body = ApiError), (status = 409, body = ApiError))
)]
pub async fn remove(State(daemon): State<App>, Path(name): Path<String>) -> Answer<()> {
    let volume = daemon.objects.volume(&name)?.ok_or_else(|| {
        ApiError::new(Code::NotFound, format!("there is no volume {name}"))
            .hint("guise volume ls lists them")
    })?;
    let volume = complete(&daemon, volume);
    if let Some(user) = volume.used_by.first() {
        return Err(Refused(
            ApiError::new(Code::State, format!("volume {name} is used by instance {user}"))
                .hint(format!("remove the instance first: guise rm {user}")),
        ));
    }
    daemon.objects.remove_volume(&name).await?;
    let path = daemon.config.volume(&name);
    match tokio::task::spawn_blocking(move || std::fs::remove_dir_all(path)).await {
        Ok(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(ApiError::internal(format!("remove volume {name}: {error}")).into());
        }
        _ => {}
    }
    daemon.events.tell("volume", &name, &name, "removed", None);
    Ok(Json(()))
}
