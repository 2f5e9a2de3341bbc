//! Who may do what: projects with quotas, and tokens with roles in them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The project of what is made without naming one.
pub const DEFAULT_PROJECT: &str = "default";
pub(crate) fn default_project() -> String {
    DEFAULT_PROJECT.to_owned()
}

/// In a grant: every project, those that come included, and what belongs to none. In a
/// request: everything that the caller may see.
pub const ALL_PROJECTS: &str = "*";
/// The header that names a request's project.
pub const PROJECT_HEADER: &str = "guise-project";

/// What a token allows, each with all that the ones before it allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// To look at objects, logs and measurements.
    Viewer,
    /// To make, change and remove instances, volumes and networks, and to be inside them.
    Operator,
    /// In a project: what reaches the host, such as mounts of its paths. In all of them:
    /// projects, tokens and the audit trail as well.
    Admin,
}

impl Role {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }
}

/// Roles by project; [`ALL_PROJECTS`] stands for every one.
pub type Grants = BTreeMap<String, Role>;

/// A token, without what proves that somebody has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    pub name: String,
    #[schema(value_type = BTreeMap<String, Role>)]
    pub grants: Grants,
    /// RFC 3339.
    pub created: String,
    /// When it stops working, if ever; RFC 3339.
    pub expires: Option<String>,
    pub expired: bool,
}

/// A request for a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    pub name: String,
    #[schema(value_type = BTreeMap<String, Role>)]
    pub grants: Grants,
    /// How long it works; for ever where it is not said.
    #[serde(default)]
    pub expires_seconds: Option<u64>,
}

/// A new token, and the only time that its secret is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MadeToken {
    pub token: Token,
    pub secret: String,
}

/// The most that a project's instances may have together; none is no limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    pub instances: Option<u64>,
    pub vcpus: Option<f64>,
    pub memory_bytes: Option<u64>,
    pub disk_bytes: Option<u64>,
}

/// What a project's instances have been promised, whether they run or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Reserved {
    pub instances: u64,
    pub vcpus: f64,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Project {
    pub name: String,
    /// RFC 3339.
    pub created: String,
    #[serde(default)]
    pub quota: Quota,
    #[serde(default)]
    pub reserved: Reserved,
}

/// A request for a project.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewProject {
    pub name: String,
    #[serde(default)]
    pub quota: Quota,
}

/// One line of the audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditRecord {
    /// RFC 3339.
    pub time: String,
    /// `owner`, or the name of a token; empty when nobody could be told from the request.
    pub who: String,
    /// The address that the request came from; none on the daemon's own socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The request: its method and the API's path, with the names of parameters.
    pub what: String,
    pub project: String,
    /// The object that it was about.
    pub object: String,
    /// The answer's HTTP status; 0 when the client left before there was one.
    pub status: u16,
    /// Requests like this one that were not written down, because there were too many.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unwritten: u64,
}

// The signature is serde's.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(count: &u64) -> bool {
    *count == 0
}
