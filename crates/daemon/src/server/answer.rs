//! What handlers take and give, with errors in the API's shape throughout.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use guise_api::{ApiError, Code};
use serde::de::DeserializeOwned;

use super::App;
use super::guard::{Caller, Made};
use crate::table::Entry;

/// How long a body may take to arrive.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// An error that becomes an answer.
#[derive(Debug)]
pub struct Refused(pub ApiError);

pub type Answer<T> = Result<Json<T>, Refused>;

/// The answer to who made something, whose name the audit trail is told.
pub type MadeAnswer<T> = Result<(Extension<Made>, Json<T>), Refused>;

pub fn made<T>(name: &str, object: T) -> MadeAnswer<T> {
    Ok((Extension(Made(name.into())), Json(object)))
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Refused {
        Refused(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

/// A body of JSON.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Body<T>, Refused> {
        let body = Json::<T>::from_request(request, state);
        let body = tokio::time::timeout(BODY_PATIENCE, body).await.map_err(|_| {
            ApiError::new(Code::Late, "the request's body did not come to its end in time")
        })?;
        match body {
            Ok(Json(value)) => Ok(Body(value)),
            Err(JsonRejection::BytesRejection(error))
                if error.status() == StatusCode::PAYLOAD_TOO_LARGE =>
            {
                Err(ApiError::new(Code::TooLarge, "the request's body is too large").into())
            }
            Err(error) => Err(ApiError::invalid(error.body_text()).into()),
        }
    }
}

/// What stands behind the question mark.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Query<T>, Refused> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Query(value)),
            Err(error) => Err(ApiError::invalid(error.body_text()).into()),
        }
    }
}

/// The name in the path.
pub struct Name(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Name, Refused> {
        match axum::extract::Path::<String>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(name)) => Ok(Name(name)),
            Err(error) => Err(ApiError::invalid(error.body_text()).into()),
        }
    }
}

/// The instance that the path names, of the request's project.
pub struct Found(pub Arc<Entry>);

impl FromRequestParts<App> for Found {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, daemon: &App) -> Result<Found, Refused> {
        let Name(name) = Name::from_request_parts(parts, daemon).await?;
        let caller = Extension::<Caller>::from_request_parts(parts, daemon).await;
        let Extension(caller) = caller.map_err(ApiError::internal)?;
        Ok(Found(daemon.table.find(&caller.project, &name)?))
    }
}

/// The beginning of a session.
pub struct Upgrade(pub WebSocketUpgrade);

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Upgrade, Refused> {
        match WebSocketUpgrade::from_request_parts(parts, state).await {
            Ok(upgrade) => Ok(Upgrade(upgrade)),
            Err(error) => Err(ApiError::invalid(error.body_text())
                .hint("a session is opened as a WebSocket")
                .into()),
        }
    }
}

pub async fn nothing_there() -> Refused {
    Refused(
        ApiError::new(Code::NotFound, "the API has nothing at this path")
            .hint("/v1/openapi.json describes it"),
    )
}
