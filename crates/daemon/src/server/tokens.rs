//! Tokens: made, listed, taken back. And the audit trail.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use guise_api::{ALL_PROJECTS, ApiError, AuditRecord, MadeToken, NewToken, Page, Paging, Token};
use serde::Deserialize;
use utoipa::IntoParams;

use super::answer::{Answer, Body, MadeAnswer, Name, Query, made};
use super::{App, check_name};
use crate::access::{OWNER, TokenRecord};

/// All tokens, without what proves that somebody has one.
#[utoipa::path(
    get, path = "/v1/tokens", params(Paging),
    responses((status = 200, body = Page<Token>))
)]
pub async fn list(State(daemon): State<App>, Query(paging): Query<Paging>) -> Answer<Page<Token>> {
    let revision = daemon.objects.revision()?;
    let all = daemon.objects.tokens().map_err(ApiError::internal)?;
    let shown = all.iter().map(TokenRecord::shown).collect();
    Ok(Json(paging.of(shown, revision, |token: &Token| token.name.clone())))
}

/// Makes a token. Its secret is in this answer, and nowhere else ever again.
#[utoipa::path(
    post, path = "/v1/tokens", request_body = NewToken,
    responses(
        (status = 200, body = MadeToken), (status = 400, body = ApiError),
        (status = 404, body = ApiError), (status = 409, body = ApiError),
    )
)]
pub async fn create(
    State(daemon): State<App>,
    Body(asked): Body<NewToken>,
) -> MadeAnswer<MadeToken> {
    let NewToken { name, grants, expires_seconds } = asked;
    check_name(&name)?;
    if name == OWNER {
        return Err(ApiError::invalid(format!("{OWNER} is who has the daemon's socket")).into());
    }
    if grants.is_empty() {
        return Err(ApiError::invalid(format!("token {name} would allow nothing"))
            .hint("say what: --grant PROJECT=ROLE")
            .into());
    }
    for project in grants.keys().filter(|project| *project != ALL_PROJECTS) {
        check_name(project)?;
        daemon.objects.project(project)?;
    }
    let life = expires_seconds.map(Duration::from_secs);
    let (record, secret) = TokenRecord::make(&name, grants, life)?;
    daemon.objects.create_token(&record).await?;
    daemon.events.of_host("token", &name, &name, "created");
    made(&name, MadeToken { token: record.shown(), secret })
}

/// Takes a token back: from now on it is none. Sessions that are open go on.
#[utoipa::path(
    delete, path = "/v1/tokens/{name}", params(("name" = String, Path)),
    responses((status = 200), (status = 400, body = ApiError), (status = 404, body = ApiError))
)]
pub async fn remove(State(daemon): State<App>, Name(name): Name) -> Answer<()> {
    check_name(&name)?;
    daemon.objects.remove_token(&name).await?;
    daemon.events.of_host("token", &name, &name, "removed");
    Ok(Json(()))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Last {
    /// At most so many, 1 to 10000; otherwise 100.
    #[serde(default)]
    #[param(minimum = 1, maximum = 10000)]
    last: Option<usize>,
}

/// The end of the audit trail, the oldest record first.
#[utoipa::path(
    get, path = "/v1/audit", params(Last),
    responses((status = 200, body = Vec<AuditRecord>))
)]
pub async fn audit(
    State(daemon): State<App>,
    Query(asked): Query<Last>,
) -> Answer<Vec<AuditRecord>> {
    const USUAL: usize = 100;
    const MOST: usize = 10_000;
    let count = asked.last.unwrap_or(USUAL).clamp(1, MOST);
    let read = move || daemon.audit.last(count);
    let records = tokio::task::spawn_blocking(read).await.map_err(ApiError::internal)?;
    Ok(Json(records.map_err(|error| ApiError::host("read the audit trail", &error))?))
}
