//! Named networks: where instances find each other by name.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NamedNetwork {
    pub name: String,
    #[serde(default = "crate::default_project")]
    pub project: String,
    /// RFC 3339.
    pub created: String,
    /// The instances' addresses: 10.90.1.0/24, say.
    pub subnet: String,
    /// Instances that are plugged into it, running or not.
    #[serde(default)]
    pub used_by: Vec<String>,
}

/// A request for a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewNetwork {
    pub name: String,
    /// One that is free, where it is not said.
    #[serde(default)]
    pub subnet: Option<String>,
}
