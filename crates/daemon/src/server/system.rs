//! The daemon itself.

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use guise_api::{ApiError, SystemInfo};

use super::App;
use super::answer::Answer;

/// Who answers, and where it keeps things.
#[utoipa::path(get, path = "/v1/system", responses((status = 200, body = SystemInfo)))]
pub async fn info(State(daemon): State<App>) -> Answer<SystemInfo> {
    let looking = daemon.clone();
    let pools = tokio::task::spawn_blocking(move || looking.pools.look(&looking)).await;
    let all = daemon.table.all();
    let running = all.iter().filter(|entry| entry.instance().status.phase.is_alive()).count();
    let text = |path: &std::path::Path| path.display().to_string();
    Ok(Json(SystemInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        state: text(&daemon.config.state),
        run: text(&daemon.config.run),
        images: text(&daemon.config.images),
        instances: all.len(),
        running,
        listens: daemon.door.as_ref().map(|door| door.address.to_string()),
        pools: pools.map_err(ApiError::internal)?,
        fingerprint: daemon.door.as_ref().and_then(|door| door.fingerprint.clone()),
    }))
}

/// This description.
#[utoipa::path(
    get, path = "/v1/openapi.json",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value))
)]
pub async fn description() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], super::openapi())
}
