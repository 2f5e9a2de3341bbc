//! Volumes: folders that outlive instances.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    pub name: String,
    #[serde(default = "crate::default_project")]
    pub project: String,
    /// RFC 3339.
    pub created: String,
    /// Where it is on the host.
    #[serde(default)]
    pub path: String,
    /// Instances that have it mounted, running or not.
    #[serde(default)]
    pub used_by: Vec<String>,
}

/// A request for a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewVolume {
    pub name: String,
}
