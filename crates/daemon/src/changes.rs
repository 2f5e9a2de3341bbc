//! What has become of objects: to whoever watches.
//!
//! Changes that are in the store have their commit's number. What is only known in memory,
//! such as that an instance runs now, goes with the number of the commit before it: who
//! comes back with that number is told the present state of everything that lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use guise_api::{Change, Instance};
use guise_state::Revision;
use serde::Serialize;
use tokio::sync::broadcast;

/// How far behind a watcher may be.
const BEHIND: usize = 1024;

pub struct Changes {
    sender: broadcast::Sender<Arc<Change>>,
    newest: AtomicU64,
}

impl Default for Changes {
    fn default() -> Changes {
        Changes { sender: broadcast::channel(BEHIND).0, newest: AtomicU64::new(0) }
    }
}

impl Changes {
    pub fn listen(&self) -> broadcast::Receiver<Arc<Change>> {
        self.sender.subscribe()
    }

    pub fn instance(&self, instance: &Instance) {
        self.is("instance", &instance.project, &instance.id, instance.revision, instance);
    }

    /// The object is so from now on.
    pub fn is(
        &self,
        kind: &str,
        project: &str,
        id: &str,
        revision: Revision,
        object: &impl Serialize,
    ) {
        self.tell(kind, project, id, revision, || serde_json::to_value(object).ok());
    }

    pub fn gone(&self, kind: &str, project: &str, id: &str, revision: Revision) {
        self.tell(kind, project, id, revision, || None);
    }

    fn tell(
        &self,
        kind: &str,
        project: &str,
        id: &str,
        revision: Revision,
        object: impl FnOnce() -> Option<serde_json::Value>,
    ) {
        let newest = self.newest.fetch_max(revision, Ordering::SeqCst).max(revision);
        if self.sender.receiver_count() == 0 {
            return;
        }
        let change = Change {
            revision: newest,
            kind: kind.to_owned(),
            project: project.to_owned(),
            id: id.to_owned(),
            object: object(),
        };
        // Whoever watched has gone in between.
        let _ = self.sender.send(Arc::new(change));
    }
}
