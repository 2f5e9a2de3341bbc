//! The file systems on which a daemon keeps things, and how full they are.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pool {
    /// The first of what it holds.
    pub name: String,
    /// What of the daemon's is on it: `state`, `instances`, `volumes`, `images`.
    pub holds: Vec<String>,
    /// The folder of the first of these.
    pub path: String,
    pub total_bytes: u64,
    pub used_bytes: u64,
    /// What may still be written.
    pub free_bytes: u64,
    /// With less than this free, nothing new is begun.
    pub kept_bytes: u64,
    /// What instances' disks may yet grow by, all together.
    pub promised_bytes: u64,
    /// How many files it can have, where it has a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_inodes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_inodes: Option<u64>,
    pub level: PoolLevel,
    /// When nothing is free any more, if it goes on as of late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_in_seconds: Option<u64>,
}

/// How full a pool is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum PoolLevel {
    #[default]
    HasRoom,
    /// Four fifths are used.
    Filling,
    /// Nine tenths are.
    NearlyFull,
    /// Only what is kept is left: nothing new is begun.
    Full,
}

impl PoolLevel {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            PoolLevel::HasRoom => "has-room",
            PoolLevel::Filling => "filling",
            PoolLevel::NearlyFull => "nearly-full",
            PoolLevel::Full => "full",
        }
    }
}
