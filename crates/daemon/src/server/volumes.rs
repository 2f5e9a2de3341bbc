//! Volumes.

use axum::extract::State;
use axum::{Extension, Json};
use guise_api::{ApiError, Code, Instance, NewVolume, Page, Paging, Volume};
use guise_container::state::timestamp;

use super::App;
use super::answer::{Answer, Body, MadeAnswer, Name, Query, Refused, made};
use super::check_name;
use super::guard::Caller;
use crate::named::Named;
use crate::{pool, trees};

fn complete(daemon: &App, mut volume: Volume) -> Volume {
    let named = Named::new(&volume.project, &volume.name);
    volume.path = daemon.config.volume(&named).display().to_string();
    let uses = |instance: &Instance| {
        let mut volumes = instance.spec.mounts.iter().filter_map(guise_api::Mount::volume);
        instance.project == named.project && volumes.any(|mounted| mounted == named.name)
    };
    volume.used_by = daemon
        .table
        .all()
        .iter()
        .map(|entry| entry.instance())
        .filter(|instance| uses(instance))
        .map(|instance| instance.name.clone())
        .collect();
    volume
}

/// Volumes of the project.
#[utoipa::path(
    get, path = "/v1/volumes", params(Paging),
    responses((status = 200, body = Page<Volume>))
)]
pub async fn list(
    State(daemon): State<App>,
    Extension(caller): Extension<Caller>,
    Query(paging): Query<Paging>,
) -> Answer<Page<Volume>> {
    let revision = daemon.objects.revision()?;
    let all = daemon.objects.volumes().map_err(ApiError::internal)?.into_iter();
    let seen = all.filter(|volume| caller.sees(&volume.project));
    let whole = seen.map(|volume| complete(&daemon, volume)).collect();
    Ok(Json(
        paging.of(whole, revision, |volume| Named::new(&volume.project, &volume.name).to_string()),
    ))
}

/// Makes a volume if there is none of this name yet.
pub async fn ensure(daemon: &App, named: &Named) -> Result<Volume, ApiError> {
    let name = &named.name;
    check_name(name)?;
    if let Some(volume) = daemon.objects.volume(named)? {
        return Ok(volume);
    }
    pool::admit(daemon, pool::Kept::Volumes, &format!("volume {name} is not made"))?;
    std::fs::create_dir_all(daemon.config.volume(named))
        .map_err(|error| ApiError::host(format!("make volume {name}"), &error))?;
    let volume = Volume {
        name: name.clone(),
        project: named.project.clone(),
        created: timestamp(),
        path: String::new(),
        used_by: Vec::new(),
    };
    match daemon.objects.create_volume(&volume).await {
        // Somebody else has made it in between.
        Err(error) if error.code == Code::Conflict => {}
        other => other?,
    }
    daemon.events.named("volume", named, "created");
    Ok(volume)
}

/// Makes a volume, unless there is one of this name already.
#[utoipa::path(
    post, path = "/v1/volumes", request_body = NewVolume,
    responses((status = 200, body = Volume), (status = 400, body = ApiError))
)]
pub async fn create(
    State(daemon): State<App>,
    Extension(caller): Extension<Caller>,
    Body(asked): Body<NewVolume>,
) -> MadeAnswer<Volume> {
    let volume = ensure(&daemon, &Named::new(caller.project, asked.name)).await?;
    made(&volume.name.clone(), complete(&daemon, volume))
}

/// Removes a volume that no instance names, and what is in it.
#[utoipa::path(
    delete, path = "/v1/volumes/{name}", params(("name" = String, Path)),
    responses((status = 200), (status = 404, body = ApiError), (status = 409, body = ApiError))
)]
pub async fn remove(
    State(daemon): State<App>,
    Extension(caller): Extension<Caller>,
    Name(name): Name,
) -> Answer<()> {
    check_name(&name)?;
    let named = Named::new(caller.project, name);
    let name = &named.name;
    let volume = daemon.objects.volume(&named)?.ok_or_else(|| {
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
    daemon.objects.remove_volume(&named).await?;
    let path = daemon.config.volume(&named);
    let removed = move || trees::remove(&path).map_err(|left| left.told(&path));
    let removed = tokio::task::spawn_blocking(removed).await.map_err(ApiError::internal)?;
    if let Err(left) = removed {
        // What is left of it is not to be found in another volume of this name.
        let known = Volume { path: String::new(), used_by: Vec::new(), ..volume };
        daemon.objects.create_volume(&known).await?;
        return Err(left.into());
    }
    daemon.events.named("volume", &named, "removed");
    Ok(Json(()))
}
