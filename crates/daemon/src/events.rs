//! What happened: to whoever listens, and the last of it to who comes later.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use guise_api::{ALL_PROJECTS, Event, Instance};
use guise_container::state::timestamp;
use tokio::sync::broadcast;

use crate::named::Named;

/// How many events are kept, and how many a listener may be behind.
const KEPT: usize = 1024;

pub struct Events {
    last: Mutex<VecDeque<Event>>,
    sender: broadcast::Sender<Event>,
}

fn event(kind: &str, project: &str, name: &str, action: &str) -> Event {
    Event {
        time: timestamp(),
        kind: kind.to_owned(),
        project: project.to_owned(),
        id: name.to_owned(),
        name: name.to_owned(),
        action: action.to_owned(),
        detail: None,
    }
}

impl Default for Events {
    fn default() -> Events {
        Events { last: Mutex::default(), sender: broadcast::channel(KEPT).0 }
    }
}

impl Events {
    pub fn instance(&self, instance: &Instance, action: &str, detail: Option<String>) {
        self.tell(Event {
            id: instance.id.clone(),
            detail,
            ..event("instance", &instance.project, &instance.name, action)
        });
    }

    /// About something that a project has under a name.
    pub fn named(&self, kind: &str, named: &Named, action: &str) {
        self.tell(event(kind, &named.project, &named.name, action));
    }

    /// About something that belongs to no project.
    pub fn of_host(&self, kind: &str, id: &str, name: &str, action: &str) {
        self.tell(Event { id: id.to_owned(), ..event(kind, ALL_PROJECTS, name, action) });
    }

    /// About a file system that the daemon uses.
    pub fn pool(&self, name: &str, path: &str, action: &str, detail: &str) {
        self.tell(Event {
            id: path.to_owned(),
            detail: Some(detail.to_owned()),
            ..event("pool", ALL_PROJECTS, name, action)
        });
    }

    fn tell(&self, event: Event) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back(event.clone());
        // Nobody may listen.
        let _ = self.sender.send(event);
    }

    /// What is kept, and what comes after it, without a gap.
    pub fn listen(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        (last.iter().cloned().collect(), self.sender.subscribe())
    }
}
