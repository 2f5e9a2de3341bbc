//! Tasks: work that takes long, and goes on when nobody waits for it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Build;

/// What a task is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Work {
    /// Fetch an image into the store.
    Pull {
        image: String,
        /// Only if the store does not have it.
        #[serde(default)]
        missing: bool,
    },
    /// Send an image of the store to a registry.
    Push {
        image: String,
        /// The name there, if that is another one.
        #[serde(default)]
        to: Option<String>,
    },
    /// Build an image of a Containerfile.
    Build { build: Build },
}

impl Work {
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Work::Pull { .. } => "pull",
            Work::Push { .. } => "push",
            Work::Build { .. } => "build",
        }
    }

    /// What it is about.
    #[must_use]
    pub fn object(&self) -> &str {
        match self {
            Work::Pull { image, .. } | Work::Push { image, .. } => image,
            Work::Build { build } => build.tags.first().unwrap_or(&build.context),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskState {
    /// Others come first.
    #[default]
    Waiting,
    Running,
    /// It was asked to end, and comes to a place where it can.
    Cancelling,
    Done,
    Failed,
    Cancelled,
}

impl TaskState {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            TaskState::Waiting => "waiting",
            TaskState::Running => "running",
            TaskState::Cancelling => "cancelling",
            TaskState::Done => "done",
            TaskState::Failed => "failed",
            TaskState::Cancelled => "cancelled",
        }
    }

    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, TaskState::Done | TaskState::Failed | TaskState::Cancelled)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    pub id: String,
    pub project: String,
    /// Who asked for it: `owner`, or a token's name.
    pub by: String,
    pub work: Work,
    pub state: TaskState,
    /// RFC 3339.
    pub created: String,
    #[serde(default)]
    pub finished: Option<String>,
    /// Bytes that are through, of those that are known of.
    #[serde(default)]
    pub done_bytes: u64,
    #[serde(default)]
    pub total_bytes: u64,
    /// What it does, or did last.
    #[serde(default)]
    pub note: String,
    /// The image's digest, when it is done.
    #[serde(default)]
    pub result: Option<String>,
    #[serde(default)]
    pub error: Option<crate::ApiError>,
}
