//! Errors in one shape: a code for programs, a message and a hint for people.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a request was not served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}{}", hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default())]
pub struct ApiError {
    pub code: Code,
    /// What happened, to what.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What a command that failed with this ends with, where that is not the usual 1:
    /// 125, 126 and 127 as shells and container tools use them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The request says what cannot be.
    Invalid,
    /// Nobody is known by the token that came with the request, or there was none.
    Unauthorized,
    /// The caller's role does not allow it.
    Forbidden,
    /// This path has no such method.
    Method,
    /// The request is too large.
    TooLarge,
    /// The request did not come to its end in time.
    Late,
    /// What happened so long ago is not known any more.
    Gone,
    /// There is no such object.
    NotFound,
    /// The instance's image is not in the store yet.
    ImageMissing,
    /// The kernel of microVMs is not in the store yet.
    KernelMissing,
    /// There is such an object already, or it has been changed meanwhile.
    Conflict,
    /// The object's state does not allow it.
    State,
    /// This host, or this form, cannot do it.
    Unsupported,
    /// The host's resources do not suffice.
    Exhausted,
    /// The instance's program could not be started.
    NotStarted,
    /// Something failed that should not.
    Internal,
}

impl Code {
    /// The HTTP status that goes with it.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Code::Invalid => 400,
            Code::Unauthorized => 401,
            Code::Forbidden => 403,
            Code::Method => 405,
            Code::Late => 408,
            Code::Gone => 410,
            Code::TooLarge => 413,
            Code::NotFound | Code::ImageMissing | Code::KernelMissing => 404,
            Code::Conflict | Code::State | Code::Exhausted => 409,
            Code::Unsupported | Code::NotStarted => 422,
            Code::Internal => 500,
        }
    }
}

impl ApiError {
    pub fn new(code: Code, message: impl Into<String>) -> ApiError {
        ApiError { code, message: message.into(), hint: None, exit_code: None }
    }

    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(Code::Invalid, message)
    }

    pub fn internal(error: impl std::fmt::Display) -> ApiError {
        ApiError::new(Code::Internal, error.to_string())
    }

    /// The host could not do it: its disks are full or read-only, or else something
    /// failed that should not.
    pub fn host(what: impl std::fmt::Display, error: &std::io::Error) -> ApiError {
        use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        let message = format!("{what}: {error}");
        match error.kind() {
            StorageFull | QuotaExceeded | ReadOnlyFilesystem => {
                ApiError::new(Code::Exhausted, message)
                    .hint("nothing was changed; see that the disk has room and can be written to")
            }
            _ => ApiError::new(Code::Internal, message),
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> ApiError {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn exit_code(mut self, code: u8) -> ApiError {
        self.exit_code = Some(code);
        self
    }
}
