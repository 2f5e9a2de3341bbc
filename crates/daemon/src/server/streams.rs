//! Answers that go on: a JSON value on each line.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body as Answer, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use guise_api::{ApiError, Change, Code, Event, Task, Work};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::App;
use super::answer::{Name, Query, Refused};
use super::guard::Caller;
use super::tasks;
use crate::named::Named;
use crate::tasks::log;

/// An answer whose lines come out of a channel.
fn lines<T: Serialize + Send + 'static>(receiver: mpsc::Receiver<T>) -> Response {
    let lines = stream::unfold(receiver, |mut receiver| async move {
        let value = receiver.recv().await?;
        let mut line = serde_json::to_vec(&value).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), receiver))
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Answer::from_stream(lines)).into_response()
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Following {
    /// And those that come.
    #[serde(default)]
    #[param(required = false)]
    follow: bool,
}

/// The last events, and with `follow` those that come.
#[utoipa::path(
    get, path = "/v1/events", params(Following),
    responses((
        status = 200, description = "an event on each line",
        content_type = "application/x-ndjson", body = Event
    ))
)]
pub async fn events(
    State(daemon): State<App>,
    Extension(caller): Extension<Caller>,
    Query(following): Query<Following>,
) -> Response {
    let (last, mut live) = daemon.events.listen();
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        for event in last.into_iter().filter(|event| caller.sees(&event.project)) {
            if sender.send(event).await.is_err() {
                return;
            }
        }
        if !following.follow {
            return;
        }
        loop {
            let event = tokio::select! {
                event = live.recv() => event,
                // Nobody listens any more.
                () = sender.closed() => return,
            };
            match event {
                Ok(event) if !caller.sees(&event.project) => {}
                Ok(event) => {
                    if sender.send(event).await.is_err() {
                        return;
                    }
                }
                // It was too slow for some: the others follow.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    });
    lines(receiver)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Since {
    /// The `revision` of a list or of a change; without it, from now on.
    #[serde(default)]
    since: Option<u64>,
    /// And those that come.
    #[serde(default)]
    #[param(required = false)]
    follow: bool,
}

/// One line of an answer that may end with an error.
#[derive(Serialize)]
#[serde(untagged)]
enum Line {
    Change(Box<Change>),
    Failed { error: ApiError },
}

/// What has become of objects since a list was read, and with `follow` what becomes of them.
///
/// Each line is an object as it is now; what changed twice may be told once. A line with
/// `error` is the last: read the list again, and go on from there.
#[utoipa::path(
    get, path = "/v1/changes", params(Since),
    responses(
        (
            status = 200, description = "a change on each line",
            content_type = "application/x-ndjson", body = Change
        ),
        (status = 400, body = ApiError),
        (status = 410, description = "it is too long ago", body = ApiError),
    )
)]
pub async fn changes(
    State(daemon): State<App>,
    Extension(caller): Extension<Caller>,
    Query(asked): Query<Since>,
) -> Result<Response, Refused> {
    // First this, so that nothing falls between the past and what comes.
    let mut live = daemon.objects.changes.listen();
    let past = match asked.since {
        Some(since) => past(&daemon, &caller, since)?,
        None => Vec::new(),
    };
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        for change in past {
            if sender.send(Line::Change(Box::new(change))).await.is_err() {
                return;
            }
        }
        if !asked.follow {
            return;
        }
        loop {
            let change = tokio::select! {
                change = live.recv() => change,
                () = sender.closed() => return,
            };
            let line = match change {
                Ok(change) if !caller.sees(&change.project) => continue,
                Ok(change) => Line::Change(Box::new(Change::clone(&change))),
                Err(RecvError::Lagged(missed)) => {
                    let why = format!("{missed} changes came faster than they were read");
                    let error = ApiError::new(Code::Gone, why)
                        .hint("list what there is, and go on from that list's revision");
                    let _ = sender.send(Line::Failed { error }).await;
                    return;
                }
                Err(RecvError::Closed) => return,
            };
            if sender.send(line).await.is_err() {
                return;
            }
        }
    });
    Ok(lines(receiver))
}

/// The present state of everything that was written since, and of every instance that lives:
/// how one fares is not written.
fn past(daemon: &App, caller: &Caller, since: u64) -> Result<Vec<Change>, ApiError> {
    let mut keys: BTreeSet<String> = daemon.objects.written_since(since)?.into_iter().collect();
    let revision = daemon.objects.revision()?;
    let living = daemon.table.all().into_iter().map(|entry| entry.instance());
    let living = living.filter(|instance| instance.status.phase.is_alive());
    keys.extend(living.map(|instance| format!("instances/{}", instance.id)));
    let mut past = Vec::new();
    for key in keys {
        let Some((folder, name)) = key.split_once('/') else { continue };
        let (project, name) = name.split_once('/').unwrap_or((guise_api::DEFAULT_PROJECT, name));
        let named = Named::new(project, name);
        let json = |object: Result<serde_json::Value, serde_json::Error>| {
            object.map(Some).map_err(ApiError::internal)
        };
        let (kind, project, object) = match folder {
            "instances" => match daemon.table.get(name) {
                Some(entry) => {
                    let instance = entry.instance();
                    let project = instance.project.clone();
                    ("instance", project, json(serde_json::to_value(&*instance))?)
                }
                // Nobody knows any more whose it was; its id tells strangers nothing.
                None => ("instance", caller.project.clone(), None),
            },
            "volumes" => {
                let volume = daemon.objects.volume(&named)?.map(serde_json::to_value);
                ("volume", named.project, volume.map(json).transpose()?.flatten())
            }
            "networks" => {
                let network = daemon.objects.network(&named)?.map(serde_json::to_value);
                ("network", named.project, network.map(json).transpose()?.flatten())
            }
            "projects" => {
                let project = daemon.objects.project(name).ok().map(serde_json::to_value);
                ("project", name.to_owned(), project.map(json).transpose()?.flatten())
            }
            "tasks" => match daemon.tasks.find(name) {
                Ok(entry) => {
                    let task = entry.task();
                    ("task", task.project.clone(), json(serde_json::to_value(&*task))?)
                }
                Err(_) => ("task", caller.project.clone(), None),
            },
            _ => continue,
        };
        if caller.sees(&project) {
            let id = name.to_owned();
            past.push(Change { revision, kind: kind.to_owned(), project, id, object });
        }
    }
    Ok(past)
}

/// How often it is looked whether a task has printed more.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What a task has printed so far, and with `follow` what comes until it is over. Builds have
/// such a log, of a bounded length.
#[utoipa::path(
    get, path = "/v1/tasks/{id}/log", params(("id" = String, Path), Following),
    responses(
        (status = 200, description = "text", content_type = "text/plain", body = String),
        (status = 404, body = ApiError),
    )
)]
pub async fn task_log(
    State(daemon): State<App>,
    Extension(caller): Extension<Caller>,
    Name(id): Name,
    Query(following): Query<Following>,
) -> Result<Response, Refused> {
    let entry = tasks::find(&daemon, &caller, &id)?;
    if !matches!(entry.task().work, Work::Build { .. }) {
        let why = format!("task {id} is no build, and prints nothing");
        return Err(ApiError::new(Code::NotFound, why)
            .hint(format!("guise task wait {id} shows how far it is"))
            .into());
    }
    let path = log::path(&daemon.config.state, &entry.task().id);
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut from = 0;
        loop {
            // Asked before the file is read: what is there then is all.
            let over = !following.follow || entry.task().state.is_over();
            let place = path.clone();
            let read = tokio::task::spawn_blocking(move || log::read(&place, from)).await;
            // Before it runs there is none.
            let bytes = read.ok().and_then(Result::ok).unwrap_or_default();
            from += bytes.len() as u64;
            match bytes.is_empty() {
                false if sender.send(bytes).await.is_err() => return,
                false => {}
                true if over => return,
                true => tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    () = sender.closed() => return,
                },
            }
        }
    });
    let text = stream::unfold(receiver, |mut receiver| async move {
        let bytes: Vec<u8> = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Bytes::from(bytes)), receiver))
    });
    Ok(([(CONTENT_TYPE, "text/plain; charset=utf-8")], Answer::from_stream(text)).into_response())
}

/// A task whenever something is new of it, until it is over.
#[utoipa::path(
    get, path = "/v1/tasks/{id}/follow", params(("id" = String, Path)),
    responses(
        (
            status = 200, description = "the task on each line; on the last it is over",
            content_type = "application/x-ndjson", body = Task
        ),
        (status = 404, body = ApiError),
    )
)]
pub async fn follow_task(
    State(daemon): State<App>,
    Extension(caller): Extension<Caller>,
    Name(id): Name,
) -> Result<Response, Refused> {
    let entry = tasks::find(&daemon, &caller, &id)?;
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut watch = entry.watch();
        loop {
            let task = Task::clone(&watch.borrow_and_update());
            let over = task.state.is_over();
            if sender.send(task).await.is_err() || over {
                return;
            }
            tokio::select! {
                changed = watch.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
        }
    });
    Ok(lines(receiver))
}
