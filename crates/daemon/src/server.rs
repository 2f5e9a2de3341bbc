//! The API: routes over the daemon's socket, which only its owner can open.

mod answer;
mod instances;
mod metrics;
mod networks;
mod sessions;
mod streams;
mod system;
mod volumes;

use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use tokio::net::UnixListener;
use utoipa::OpenApi;

use crate::Daemon;

pub use instances::no_network;

/// What handlers are given.
type App = Arc<Daemon>;

/// Serves until the future ends. Sessions that are open then are cut.
pub async fn serve(
    listener: UnixListener,
    daemon: App,
    until: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let server = axum::serve(listener, routes(daemon)).into_future();
    tokio::select! {
        served = server => served,
        () = until => Ok(()),
    }
}

fn routes(daemon: App) -> Router {
    let v1 = Router::new()
        .route("/system", get(system::info))
        .route("/openapi.json", get(system::description))
        .route("/metrics", get(metrics::metrics))
        .route("/events", get(streams::events))
        .route("/images/pull", post(streams::pull))
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
        .route("/networks/{name}", axum::routing::delete(networks::remove))
        .route("/volumes", get(volumes::list).post(volumes::create))
        .route("/volumes/{name}", axum::routing::delete(volumes::remove))
        .fallback(answer::nothing_there);
    Router::new().nest(guise_api::PREFIX, v1).fallback(answer::nothing_there).with_state(daemon)
}

/// The API's description, made of its types.
#[derive(OpenApi)]
#[openapi(
    info(title = "Guise", description = "Instances, images, volumes of one host"),
    paths(
        system::info,
        metrics::metrics,
        streams::events,
        streams::pull,
        instances::explain,
        instances::list,
        instances::create,
        instances::inspect,
        instances::remove,
        instances::start,
        instances::stop,
        instances::restart,
        instances::kill,
        instances::pause,
        instances::resume,
        instances::rename,
        instances::wait,
        instances::stats,
        networks::list,
        networks::create,
        networks::remove,
        volumes::list,
        volumes::create,
        volumes::remove,
    )
)]
struct Description;

/// The OpenAPI description as JSON.
#[must_use]
pub fn openapi() -> String {
    // It is made of text and numbers: there is nothing that JSON cannot say.
    Description::openapi().to_pretty_json().unwrap_or_default()
}
