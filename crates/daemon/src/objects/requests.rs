//! Which requests made which instances: the same request makes no second one.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use guise_api::ApiError;
use guise_state::{Page, StateError, Store};

use super::Objects;
use crate::named::Named;

const REQUESTS: &str = "requests/";
/// How many requests are remembered: more than are under way at any time.
const REMEMBERED: usize = 256;

pub fn key_of(request: &Named) -> String {
    format!("{REQUESTS}{request}")
}

/// Keys of requests in the store, the oldest first.
pub struct Requests(Mutex<VecDeque<String>>);

impl Requests {
    pub fn of(store: &dyn Store) -> Result<Requests, StateError> {
        let mut entries = store.list(Page::all(REQUESTS))?.entries;
        entries.sort_by_key(|entry| entry.modified);
        Ok(Requests(Mutex::new(entries.into_iter().map(|entry| entry.key).collect())))
    }

    /// The keys of requests that are remembered no longer when there is one more.
    pub fn forget_oldest(&self) -> Vec<String> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let surplus = (known.len() + 1).saturating_sub(REMEMBERED);
        known.drain(..surplus).collect()
    }

    pub fn remember(&self, key: Option<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(key);
    }
}

impl Objects {
    /// The id of the instance that a request with this key has made.
    pub fn request(&self, key: &Named) -> Result<Option<String>, ApiError> {
        self.one(&key_of(key))
    }
}
