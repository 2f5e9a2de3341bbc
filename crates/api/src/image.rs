//! Images of the daemon's store.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    pub name: String,
    pub digest: String,
    /// RFC 3339.
    pub updated: String,
    /// Everything that this host needs of it, where that is all there.
    #[serde(default)]
    pub bytes: Option<u64>,
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

/// Which image to send to its registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Push {
    pub image: String,
    /// The name there, if that is another one.
    #[serde(default)]
    pub to: Option<String>,
}
