//! A watch over the history.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Core, tables};
use crate::{Event, Revision, StateError, Watch};

pub struct HistoryWatch {
    core: Arc<Core>,
    prefix: String,
    /// The newest commit whose changes have been read.
    seen: Revision,
    read: VecDeque<Event>,
}

impl HistoryWatch {
    pub fn new(core: Arc<Core>, prefix: &str, since: Revision) -> HistoryWatch {
        HistoryWatch { core, prefix: prefix.to_owned(), seen: since, read: VecDeque::new() }
    }

    /// Waits for a commit after the one that was read last; false when none came.
    fn wait(&self, deadline: Instant) -> bool {
        let mut newest = self.core.newest.lock().unwrap_or_else(|error| error.into_inner());
        while *newest <= self.seen {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            newest = self
                .core
                .changed
                .wait_timeout(newest, left)
                .unwrap_or_else(|error| error.into_inner())
                .0;
        }
        true
    }
}

impl Watch for HistoryWatch {
    fn next(&mut self, patience: Duration) -> Result<Option<Event>, StateError> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(event) = self.read.pop_front() {
                return Ok(Some(event));
            }
            if !self.wait(deadline) {
                return Ok(None);
            }
            let (events, seen) = self
                .core
                .with(|path, database| tables::changes(path, database, &self.prefix, self.seen))?;
            self.read = events.into();
            self.seen = seen;
        }
    }
}
