//! Lists in pages, and changes since one was read.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// A part of a list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// In the order of their ids or names.
    pub items: Vec<T>,
    /// Where `GET /v1/changes?since=` goes on from without a gap.
    pub revision: u64,
    /// There is more: ask again with this as `after`.
    pub next: Option<String>,
}

/// Which part of a list is wanted.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Paging {
    /// At most so many, 1 to 1000; otherwise 1000.
    #[serde(default)]
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// Only what comes after this id or name.
    #[serde(default)]
    pub after: Option<String>,
}

impl Paging {
    pub const MOST: usize = 1000;

    /// Cuts the part out of a whole list.
    pub fn of<T>(&self, mut all: Vec<T>, revision: u64, key: impl Fn(&T) -> String) -> Page<T> {
        all.sort_by_cached_key(&key);
        if let Some(after) = &self.after {
            all.retain(|item| key(item) > *after);
        }
        let limit = self.limit.unwrap_or(Self::MOST).clamp(1, Self::MOST);
        let more = all.len() > limit;
        all.truncate(limit);
        let next = all.last().filter(|_| more).map(key);
        Page { items: all, revision, next }
    }
}

/// What has become of an object. Changes that follow each other quickly may be told as one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// The store's newest commit then: who has seen this goes on from here.
    pub revision: u64,
    /// `instance`, `volume`, `network`, `project` or `task`.
    pub kind: String,
    pub project: String,
    /// The instance's or task's id, or else the name.
    pub id: String,
    /// The object as it is; none when it has gone.
    pub object: Option<serde_json::Value>,
}

#[cfg(test)]
mod tests;
