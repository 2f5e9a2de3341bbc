//! The API: what is served, to whom, and its description.

mod answer;
mod description;
mod door;
mod guard;
mod images;
mod instances;
mod metrics;
mod networks;
mod projects;
mod sessions;
mod streams;
mod system;
mod tasks;
mod tokens;
mod volumes;

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{delete, get, post, put};
use tokio::net::UnixListener;

use crate::Daemon;

pub use description::openapi;
pub use door::{Door, Remote};
pub use instances::{check_name, no_network};

/// What handlers are given.
type App = Arc<Daemon>;

/// Serves until the future ends. Sessions that are open then are cut.
pub async fn serve(
    listener: UnixListener,
    remote: Option<Remote>,
    daemon: App,
    until: impl Future<Output = ()> + Send + 'static,
) {
    let router = routes(daemon);
    let others = router.clone();
    let others = async move {
        match remote {
            Some(remote) => remote.serve(others).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = door::serve_own(listener, router) => {}
        () = others => {}
        () = until => {}
    }
}

/// Everything that is served. What a request needs is in the guard's rules.
fn routes(daemon: App) -> Router {
    let v1 = Router::new()
        .route("/system", get(system::info))
        .route("/openapi.json", get(system::description))
        .route("/metrics", get(metrics::metrics))
        .route("/events", get(streams::events))
        .route("/changes", get(streams::changes))
        .route("/audit", get(tokens::audit))
        .route("/images", get(images::list))
        .route("/images/{name}", delete(images::remove))
        .route("/images/pull", post(images::pull))
        .route("/images/push", post(images::push))
        .route("/images/build", post(images::build))
        .route("/tasks", get(tasks::list))
        .route("/tasks/{id}", get(tasks::inspect))
        .route("/tasks/{id}/follow", get(streams::follow_task))
        .route("/tasks/{id}/log", get(streams::task_log))
        .route("/tasks/{id}/cancel", post(tasks::cancel))
        .route("/explain", post(instances::explain))
        .route("/instances", get(instances::list).post(instances::create))
        .route("/instances/{name}", get(instances::inspect).delete(instances::remove))
        .route("/instances/{name}/start", post(instances::start))
        .route("/instances/{name}/stop", post(instances::stop))
        .route("/instances/{name}/restart", post(instances::restart))
        .route("/instances/{name}/kill", post(instances::kill))
        .route("/instances/{name}/pause", post(instances::pause))
        .route("/instances/{name}/resume", post(instances::resume))
        .route("/instances/{name}/rename", post(instances::rename))
        .route("/instances/{name}/wait", post(instances::wait))
        .route("/instances/{name}/stats", get(instances::stats))
        .route("/instances/{name}/attach", get(sessions::attach))
        .route("/instances/{name}/exec", get(sessions::exec))
        .route("/instances/{name}/logs", get(sessions::logs))
        .route("/instances/{name}/copy-out", get(sessions::copy_out))
        .route("/instances/{name}/copy-in", get(sessions::copy_in))
        .route("/networks", get(networks::list).post(networks::create))
        .route("/networks/{name}", delete(networks::remove))
        .route("/volumes", get(volumes::list).post(volumes::create))
        .route("/volumes/{name}", delete(volumes::remove))
        .route("/projects", get(projects::list).post(projects::create))
        .route("/projects/{name}", put(projects::change).delete(projects::remove))
        .route("/tokens", get(tokens::list).post(tokens::create))
        .route("/tokens/{name}", delete(tokens::remove))
        .fallback(answer::nothing_there);
    Router::new()
        .nest(guise_api::PREFIX, v1)
        .fallback(answer::nothing_there)
        .layer(from_fn_with_state(daemon.clone(), guard::guard))
        .with_state(daemon)
}
