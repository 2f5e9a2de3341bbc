//! `update`: other limits for a running container.

use crate::error::{Error, Result};
use crate::spec::Resources;
use crate::state::{Status, Store};

/// Changes the limits that are given and leaves the others.
pub fn update(store: &Store, id: &str, resources: &Resources) -> Result<()> {
    let entry = store.find(id)?;
    let state = entry.state()?;
    if entry.status(&state) == Status::Stopped {
        return Err(Error::State {
            id: id.to_owned(),
            status: Status::Stopped.name(),
            wanted: "there is nothing to limit",
        });
    }
    let cgroup = state.cgroup();
    cgroup.apply(resources)?;
    cgroup.update_devices(resources)
}
