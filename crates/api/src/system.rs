//! The daemon itself, and images as far as it fetches them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Who answers, and where it keeps things.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SystemInfo {
    pub version: String,
    pub pid: u32,
    pub state: String,
    pub run: String,
    pub images: String,
    pub instances: usize,
    pub running: usize,
}

/// Which image to fetch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Pull {
    pub image: String,
    /// Only if the store does not have it.
    #[serde(default)]
    pub missing: bool,
}

/// One line of the answer to a pull.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PullNews {
    /// What is being done.
    Note(String),
    /// It is in the store: its digest.
    Done(String),
    Failed(crate::ApiError),
}
