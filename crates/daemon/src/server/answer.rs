//! Answers and errors in the API's shape.

use axum::Json;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use guise_api::{ApiError, Code};
use serde::de::DeserializeOwned;

/// An error that becomes an answer.
pub struct Refused(pub ApiError);

pub type Answer<T> = Result<Json<T>, Refused>;

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

/// A body, whose errors have the API's shape too.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Body<T>, Refused> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Body(value)),
            Err(error) => Err(Refused(ApiError::invalid(error.body_text()))),
        }
    }
}

pub async fn nothing_there() -> Refused {
    Refused(
        ApiError::new(Code::NotFound, "the API has nothing at this path")
            .hint("/v1/openapi.json describes it"),
    )
}
