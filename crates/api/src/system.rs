//! The daemon itself.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Pool;

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
    /// Where it listens for other hosts, if it does.
    #[serde(default)]
    pub listens: Option<String>,
    /// What its certificate is known by: `sha256:` and hexadecimal digits.
    #[serde(default)]
    pub fingerprint: Option<String>,
    /// The file systems on which that is, and how full they are.
    #[serde(default)]
    pub pools: Vec<Pool>,
}
