//! `list` and `state`.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::state::{State, Status, Store};

/// One container, as listed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    pub oci_version: &'static str,
    pub id: String,
    pub pid: i32,
    pub status: &'static str,
    pub bundle: String,
    pub rootfs: String,
    pub created: String,
    pub annotations: std::collections::BTreeMap<String, String>,
    /// The user's number.
    pub owner: String,
}

/// All containers. One that cannot be read is reported and left out.
pub fn list(store: &Store) -> Result<Vec<Listed>> {
    let mut all = Vec::new();
    for entry in store.list()? {
        let state = match entry.load() {
            Ok(Some(state)) => state,
            Ok(None) => continue,
            Err(e) => {
                tracing::warn!("{e}");
                continue;
            }
        };
        let status = entry.status(&state);
        all.push(Listed {
            oci_version: crate::spec::OCI_VERSION,
            id: state.id,
            pid: if status == Status::Stopped { 0 } else { state.pid },
            status: status.name(),
            bundle: state.bundle,
            rootfs: state.rootfs,
            created: state.created,
            annotations: state.annotations,
            owner: state.owner.to_string(),
        });
    }
    Ok(all)
}

/// One container's state, with what it is doing.
pub fn state(store: &Store, id: &str) -> Result<(State, Status)> {
    let entry = store.find(id)?;
    let state = entry.load()?.ok_or_else(|| Error::State {
        id: id.to_owned(),
        status: "creating",
        wanted: "its state is not written yet",
    })?;
    let status = entry.status(&state);
    Ok((state, status))
}
