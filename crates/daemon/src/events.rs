//! What happened: to whoever listens, and the last of it to who comes later.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use guise_api::{Event, Instance};
use guise_container::state::timestamp;
use tokio::sync::broadcast;

/// How many events are kept, and how many a listener may be behind.
const KEPT: usize = 1024;

pub struct Events {
    last: Mutex<VecDeque<Event>>,
    sender: broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Events {
        Events { last: Mutex::default(), sender: broadcast::channel(KEPT).0 }
    }
}

impl Events {
    pub fn instance(&self, instance: &Instance, action: &str, detail: Option<String>) {
        self.tell("instance", &instance.id, &instance.name, action, detail);
    }

    pub fn tell(&self, kind: &str, id: &str, name: &str, action: &str, detail: Option<String>) {
        let event = Event {
            time: timestamp(),
            kind: kind.to_owned(),
            id: id.to_owned(),
            name: name.to_owned(),
            action: action.to_owned(),
            detail,
        };
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
