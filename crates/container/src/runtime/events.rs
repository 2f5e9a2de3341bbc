//! `events`: what a container uses, and when it runs out of memory.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use crate::cgroup::stats::collect;
use crate::error::Result;
use crate::state::{Status, Store};

/// One event, as printed.
#[derive(Debug, Serialize)]
pub struct Event {
    /// `stats` or `oom`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub id: String,
    pub data: Value,
}

/// What the container uses now.
pub fn stats(store: &Store, id: &str) -> Result<Event> {
    let state = store.find(id)?.state()?;
    Ok(Event { kind: "stats", id: id.to_owned(), data: collect(&state.cgroup()) })
}

/// Gives out an event each interval and on each kill for lack of memory, until
/// the container ends or the receiver has enough.
pub fn watch(
    store: &Store,
    id: &str,
    interval: Duration,
    mut receive: impl FnMut(&Event) -> bool,
) -> Result<()> {
    let entry = store.find(id)?;
    let state = entry.state()?;
    let cgroup = state.cgroup();
    let mut kills = cgroup.memory_kills();
    loop {
        if entry.status(&state) == Status::Stopped {
            return Ok(());
        }
        if !receive(&stats(store, id)?) {
            return Ok(());
        }
        let next = Instant::now() + interval;
        while Instant::now() < next {
            let now = cgroup.memory_kills();
            if now > kills {
                kills = now;
                let data = serde_json::json!({ "kills": kills });
                if !receive(&Event { kind: "oom", id: id.to_owned(), data }) {
                    return Ok(());
                }
            }
            if let Some(process) = state.process() {
                super::kill::wait_at_most(
                    &process,
                    next.saturating_duration_since(Instant::now()).min(LOOK_EVERY),
                );
            } else {
                return Ok(());
            }
        }
    }
}

/// How often a watcher looks for kills.
const LOOK_EVERY: Duration = Duration::from_millis(250);
