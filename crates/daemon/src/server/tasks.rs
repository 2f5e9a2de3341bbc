//! Tasks, as the API shows them.

use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use guise_api::{ApiError, Code, Page, Paging, Task};

use super::App;
use super::answer::{Answer, Name, Query};
use super::guard::Caller;
use crate::tasks::{self, Entry};

/// A task of the caller's project; those of others are as if they were not there.
pub fn find(daemon: &App, caller: &Caller, id: &str) -> Result<Arc<Entry>, ApiError> {
    let entry = daemon.tasks.find(id)?;
    if caller.sees(&entry.task().project) {
        return Ok(entry);
    }
    Err(ApiError::new(Code::NotFound, format!("there is no task {id}"))
        .hint("guise task ls lists them"))
}

/// Tasks of the project: those under way, and the last of those that are over.
#[utoipa::path(
    get, path = "/v1/tasks", params(Paging),
    responses((status = 200, body = Page<Task>))
)]
pub async fn list(
    State(daemon): State<App>,
    Extension(caller): Extension<Caller>,
    Query(paging): Query<Paging>,
) -> Answer<Page<Task>> {
    let revision = daemon.objects.revision()?;
    let all = daemon.tasks.all().into_iter().map(|entry| Task::clone(&entry.task()));
    let seen = all.filter(|task| caller.sees(&task.project)).collect();
    Ok(Json(paging.of(seen, revision, |task| task.id.clone())))
}

/// A task, and how far it is.
#[utoipa::path(
    get, path = "/v1/tasks/{id}", params(("id" = String, Path)),
    responses((status = 200, body = Task), (status = 404, body = ApiError))
)]
pub async fn inspect(
    State(daemon): State<App>,
    Extension(caller): Extension<Caller>,
    Name(id): Name,
) -> Answer<Task> {
    Ok(Json(Task::clone(&find(&daemon, &caller, &id)?.task())))
}

/// Asks a task to end where it next can. One that is over stays as it is.
#[utoipa::path(
    post, path = "/v1/tasks/{id}/cancel", params(("id" = String, Path)),
    responses((status = 200, body = Task), (status = 404, body = ApiError))
)]
pub async fn cancel(
    State(daemon): State<App>,
    Extension(caller): Extension<Caller>,
    Name(id): Name,
) -> Answer<Task> {
    let entry = find(&daemon, &caller, &id)?;
    Ok(Json(Task::clone(&*tasks::cancel(&daemon, &entry).await?)))
}
