//! Instances and volumes in the store.
//!
//! ```text
//! instances/ID    the instance, as JSON
//! names/NAME      its id: what keeps names apart
//! volumes/NAME    the volume
//! networks/NAME   the named network
//! requests/KEY    the id of the instance that this request made, also when it has gone
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use guise_api::{ApiError, Code, Instance, NamedNetwork, Volume};
use guise_state::{Check, Entry, Outcome, Page, StateError, Store, Write};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::DaemonError;

pub struct Objects {
    store: Arc<dyn Store>,
    /// Keys of requests in the store, the oldest first.
    requests: Mutex<VecDeque<String>>,
}

const INSTANCES: &str = "instances/";
const VOLUMES: &str = "volumes/";
const NETWORKS: &str = "networks/";
const REQUESTS: &str = "requests/";
/// How many requests are remembered: more than are under way at any time.
const REMEMBERED: usize = 256;

fn instance_key(id: &str) -> String {
    format!("{INSTANCES}{id}")
}

fn name_key(name: &str) -> String {
    format!("names/{name}")
}

fn volume_key(name: &str) -> String {
    format!("{VOLUMES}{name}")
}

fn network_key(name: &str) -> String {
    format!("{NETWORKS}{name}")
}

fn request_key(key: &str) -> String {
    format!("{REQUESTS}{key}")
}

fn put(key: String, value: &impl Serialize) -> Result<Write, ApiError> {
    let value = serde_json::to_vec(value).map_err(ApiError::internal)?;
    Ok(Write::put(key, value))
}

fn parse<T: DeserializeOwned>(entry: &Entry) -> Result<T, DaemonError> {
    serde_json::from_slice(&entry.value)
        .map_err(|error| DaemonError::Object(entry.key.clone(), error))
}

fn changed(name: &str) -> ApiError {
    ApiError::new(Code::Conflict, format!("{name} has been changed meanwhile"))
        .hint("look at it again, and repeat the change")
}

impl Objects {
    pub fn new(store: Arc<dyn Store>) -> Result<Objects, DaemonError> {
        let mut requests = store.list(Page::all(REQUESTS))?.entries;
        requests.sort_by_key(|entry| entry.modified);
        let requests = requests.into_iter().map(|entry| entry.key).collect();
        Ok(Objects { store, requests: Mutex::new(requests) })
    }

    pub fn instances(&self) -> Result<Vec<Instance>, DaemonError> {
        let listing = self.store.list(Page::all(INSTANCES))?;
        let instance = |entry: &Entry| {
            let mut instance: Instance = parse(entry)?;
            instance.revision = entry.modified;
            Ok(instance)
        };
        listing.entries.iter().map(instance).collect()
    }

    pub fn volumes(&self) -> Result<Vec<Volume>, DaemonError> {
        self.store.list(Page::all(VOLUMES))?.entries.iter().map(parse).collect()
    }

    pub fn volume(&self, name: &str) -> Result<Option<Volume>, ApiError> {
        let entry = self.store.get(&volume_key(name)).map_err(ApiError::internal)?;
        entry.as_ref().map(parse).transpose().map_err(ApiError::internal)
    }

    /// Runs a commit where it may wait for the disk.
    async fn commit(&self, checks: Vec<Check>, writes: Vec<Write>) -> Result<Outcome, ApiError> {
        let store = self.store.clone();
        let commit = move || store.commit(&checks, &writes);
        tokio::task::spawn_blocking(commit).await.map_err(ApiError::internal)?.map_err(refused)
    }

    /// The id of the instance that a request with this key has made.
    pub fn request(&self, key: &str) -> Result<Option<String>, ApiError> {
        let entry = self.store.get(&request_key(key)).map_err(ApiError::internal)?;
        entry.as_ref().map(parse).transpose().map_err(ApiError::internal)
    }

    /// Makes an instance; its name must be free. Not when a request with the same key was
    /// faster.
    pub async fn create(
        &self,
        instance: &mut Instance,
        request: Option<&str>,
    ) -> Result<bool, ApiError> {
        let (key, name) = (instance_key(&instance.id), name_key(&instance.name));
        let mut checks = vec![Check::Absent(key.clone()), Check::Absent(name.clone())];
        let mut writes = vec![put(key, instance)?, put(name, &instance.id)?];
        let request = request.map(request_key);
        if let Some(request) = &request {
            checks.insert(0, Check::Absent(request.clone()));
            writes.push(put(request.clone(), &instance.id)?);
            writes.extend(self.forget_oldest().into_iter().map(Write::delete));
        }
        match self.commit(checks, writes).await? {
            Outcome::Committed(revision) => {
                instance.revision = revision;
                let mut known = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
                known.extend(request);
                Ok(true)
            }
            Outcome::Conflict { key, .. } if Some(&key) == request.as_ref() => Ok(false),
            Outcome::Conflict { .. } => Err(taken(&instance.name)),
        }
    }

    /// The keys of requests that are remembered no longer when there is one more.
    fn forget_oldest(&self) -> Vec<String> {
        let mut known = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let surplus = (known.len() + 1).saturating_sub(REMEMBERED);
        known.drain(..surplus).collect()
    }

    /// Writes a changed instance; with `old_name`, under a new name.
    pub async fn update(
        &self,
        instance: &mut Instance,
        old_name: Option<&str>,
    ) -> Result<(), ApiError> {
        let key = instance_key(&instance.id);
        let mut checks = vec![Check::Modified(key.clone(), instance.revision)];
        let mut writes = vec![put(key.clone(), instance)?];
        if let Some(old) = old_name {
            let name = name_key(&instance.name);
            checks.push(Check::Absent(name.clone()));
            writes.push(put(name, &instance.id)?);
            writes.push(Write::delete(name_key(old)));
        }
        match self.commit(checks, writes).await? {
            Outcome::Committed(revision) => {
                instance.revision = revision;
                Ok(())
            }
            Outcome::Conflict { key: which, .. } if which == key => Err(changed(&instance.name)),
            Outcome::Conflict { .. } => Err(taken(&instance.name)),
        }
    }

    pub async fn remove(&self, instance: &Instance) -> Result<(), ApiError> {
        let writes = vec![
            Write::delete(instance_key(&instance.id)),
            Write::delete(name_key(&instance.name)),
        ];
        self.commit(Vec::new(), writes).await.map(drop)
    }

    pub async fn create_volume(&self, volume: &Volume) -> Result<(), ApiError> {
        let key = volume_key(&volume.name);
        match self.commit(vec![Check::Absent(key.clone())], vec![put(key, volume)?]).await? {
            Outcome::Committed(_) => Ok(()),
            Outcome::Conflict { .. } => Err(taken(&volume.name)),
        }
    }

    pub fn networks(&self) -> Result<Vec<NamedNetwork>, DaemonError> {
        self.store.list(Page::all(NETWORKS))?.entries.iter().map(parse).collect()
    }

    pub fn network(&self, name: &str) -> Result<Option<NamedNetwork>, ApiError> {
        let entry = self.store.get(&network_key(name)).map_err(ApiError::internal)?;
        entry.as_ref().map(parse).transpose().map_err(ApiError::internal)
    }

    pub async fn create_network(&self, network: &NamedNetwork) -> Result<(), ApiError> {
        let key = network_key(&network.name);
        match self.commit(vec![Check::Absent(key.clone())], vec![put(key, network)?]).await? {
            Outcome::Committed(_) => Ok(()),
            Outcome::Conflict { .. } => Err(taken(&network.name)),
        }
    }

    pub async fn remove_network(&self, name: &str) -> Result<(), ApiError> {
        self.commit(Vec::new(), vec![Write::delete(network_key(name))]).await.map(drop)
    }

    pub async fn remove_volume(&self, name: &str) -> Result<(), ApiError> {
        self.commit(Vec::new(), vec![Write::delete(volume_key(name))]).await.map(drop)
    }
}

fn taken(name: &str) -> ApiError {
    ApiError::new(Code::Conflict, format!("the name {name} is taken"))
        .hint(format!("choose another --name, or remove it: guise rm {name}"))
}

fn refused(error: StateError) -> ApiError {
    match error {
        StateError::Io { .. } => ApiError::new(Code::Exhausted, error.to_string())
            .hint("nothing was changed; see that the disk has room and can be written to"),
        other => ApiError::internal(other),
    }
}
