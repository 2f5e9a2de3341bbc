//! Images of the daemon's store.

use std::collections::BTreeMap;

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

/// What to build an image of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// The folder that COPY and ADD read: an absolute path of the daemon's host.
    pub context: String,
    /// The Containerfile, there too; `Containerfile` or `Dockerfile` in the context where it
    /// is not said.
    #[serde(default)]
    pub containerfile: Option<String>,
    /// What to call the image.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Values for ARGs.
    #[serde(default)]
    pub arguments: BTreeMap<String, String>,
    /// A stage other than the last.
    #[serde(default)]
    pub target: Option<String>,
    /// Do every step anew.
    #[serde(default)]
    pub no_cache: bool,
    /// Fetch base images even if the store has them.
    #[serde(default)]
    pub pull: bool,
    /// Which network RUN has.
    #[serde(default)]
    pub network: BuildNetwork,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BuildNetwork {
    /// The host's own.
    #[default]
    Host,
    None,
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
