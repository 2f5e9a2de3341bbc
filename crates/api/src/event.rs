//! What happened, as a stream.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something that happened to an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// RFC 3339.
    pub time: String,
    /// `instance`, `volume`, `network`, `image`, `project`, `token` or `pool`.
    pub kind: String,
    #[serde(default = "crate::default_project")]
    pub project: String,
    pub id: String,
    pub name: String,
    /// `created`, `started`, `exited`, `failed`, `paused`, `resumed`, `out-of-space`, `has-space`,
    /// `renamed`, `removed`, …;
    /// of pools `filling`, `nearly-full`, `full`, `has-room`, `over-promised`.
    pub action: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}
