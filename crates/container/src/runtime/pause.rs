//! `pause` and `resume`.

use crate::error::{Error, Result};
use crate::state::{Status, Store};

/// Stops all processes of a running container.
pub fn pause(store: &Store, id: &str) -> Result<()> {
    change(store, id, true)
}

/// Lets them run again.
pub fn resume(store: &Store, id: &str) -> Result<()> {
    change(store, id, false)
}

fn change(store: &Store, id: &str, frozen: bool) -> Result<()> {
    let entry = store.find(id)?;
    let state = entry.state()?;
    let status = entry.status(&state);
    let fits = match status {
        Status::Running | Status::Created => frozen,
        Status::Paused => !frozen,
        _ => false,
    };
    if !fits {
        return Err(Error::State {
            id: id.to_owned(),
            status: status.name(),
            wanted: if frozen {
                "only a running container can be paused"
            } else {
                "only a paused container can be resumed"
            },
        });
    }
    state.cgroup().freeze(frozen)
}
