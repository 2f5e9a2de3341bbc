//! Images of the store, which all projects share.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use guise_api::{ApiError, Build, Code, Image, Page, Paging, Pull, Push, Task, Work};
use guise_image::Error;

use super::App;
use super::answer::{Answer, Body, Name, Query, Refused};
use super::guard::{Caller, Made};
use crate::tasks;

/// Images of the store.
#[utoipa::path(
    get, path = "/v1/images", params(Paging),
    responses((status = 200, body = Page<Image>))
)]
pub async fn list(State(daemon): State<App>, Query(paging): Query<Paging>) -> Answer<Page<Image>> {
    let revision = daemon.objects.revision()?;
    let images = daemon.images.clone();
    let read = move || -> Result<Vec<Image>, Error> {
        let image = |reference: guise_image::Reference| Image {
            bytes: images.image(&reference.name, None).map(|image| image.size()).ok(),
            name: reference.name.to_string(),
            digest: reference.target.digest.to_string(),
            updated: reference.updated,
        };
        Ok(images.references()?.into_iter().map(image).collect())
    };
    let all = tokio::task::spawn_blocking(read).await.map_err(ApiError::internal)?;
    let all = all.map_err(ApiError::internal)?;
    Ok(Json(paging.of(all, revision, |image| image.name.clone())))
}

/// Removes an image's name, and what only it needed.
#[utoipa::path(
    delete, path = "/v1/images/{name}",
    params(("name" = String, Path, description = "with %2F for each slash")),
    responses((status = 200), (status = 400, body = ApiError), (status = 404, body = ApiError))
)]
pub async fn remove(State(daemon): State<App>, Name(name): Name) -> Answer<()> {
    let image: guise_image::Name =
        name.parse().map_err(|error: Error| ApiError::invalid(error.to_string()))?;
    let images = daemon.images.clone();
    let remove = move || -> Result<(), Error> {
        images.remove_reference(&image)?;
        images.collect().map(drop)
    };
    match tokio::task::spawn_blocking(remove).await.map_err(ApiError::internal)? {
        Ok(()) => {}
        Err(Error::NoSuchImage(_)) => {
            return Err(Refused(
                ApiError::new(Code::NotFound, format!("image {name} is not in the store"))
                    .hint("guise image ls lists what is"),
            ));
        }
        Err(error) => return Err(ApiError::internal(error).into()),
    }
    daemon.events.of_host("image", &name, &name, "removed");
    Ok(Json(()))
}

type Begun = Result<(StatusCode, Extension<Made>, Json<Task>), Refused>;

async fn begin(daemon: &App, caller: &Caller, work: Work) -> Begun {
    let image = Made(work.object().into());
    let entry = tasks::begin(daemon, &caller.project, &caller.identity.who, work).await?;
    Ok((StatusCode::ACCEPTED, Extension(image), Json(Task::clone(&entry.task()))))
}

/// Fetches an image, as a task. One that is under way already is answered with.
#[utoipa::path(
    post, path = "/v1/images/pull", request_body = Pull,
    responses(
        (status = 202, body = Task), (status = 400, body = ApiError),
        (status = 409, body = ApiError),
    )
)]
pub async fn pull(
    State(daemon): State<App>,
    Extension(caller): Extension<Caller>,
    Body(Pull { image, missing }): Body<Pull>,
) -> Begun {
    begin(&daemon, &caller, Work::Pull { image, missing }).await
}

/// Builds an image of a folder of the daemon's host, as a task with a log.
#[utoipa::path(
    post, path = "/v1/images/build", request_body = Build,
    responses(
        (status = 202, body = Task), (status = 400, body = ApiError),
        (status = 409, body = ApiError),
    )
)]
pub async fn build(
    State(daemon): State<App>,
    Extension(caller): Extension<Caller>,
    Body(build): Body<Build>,
) -> Begun {
    begin(&daemon, &caller, Work::Build { build }).await
}

/// Sends an image to its registry, as a task.
#[utoipa::path(
    post, path = "/v1/images/push", request_body = Push,
    responses(
        (status = 202, body = Task), (status = 400, body = ApiError),
        (status = 409, body = ApiError),
    )
)]
pub async fn push(
    State(daemon): State<App>,
    Extension(caller): Extension<Caller>,
    Body(Push { image, to }): Body<Push>,
) -> Begun {
    begin(&daemon, &caller, Work::Push { image, to }).await
}
