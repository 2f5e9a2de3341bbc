//! Everything that is kept, in the store.
//!
//! ```text
//! instances/ID    the instance, as JSON
//! names/NAME      its id: what keeps names apart
//! volumes/NAME    the volume
//! networks/NAME   the named network
//! requests/KEY    the id of the instance that this request made, also when it has gone
//! projects/NAME   the project, with what its instances take
//! tokens/NAME     the token, with the hash of its secret
//! tasks/ID        the task
//! ```
//!
//! Names and keys outside of the default project have `PROJECT/` before them.

mod projects;
mod requests;
mod tasks;
mod tokens;

use std::sync::Arc;

use guise_api::{ApiError, Code, Instance, NamedNetwork, Volume};
use guise_state::{Check, Entry, Outcome, Page, Revision, StateError, Store, Write};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::changes::Changes;
use crate::named::Named;
use crate::pool::Ballast;
use crate::{DaemonError, quota};
use requests::Requests;

pub struct Objects {
    store: Arc<dyn Store>,
    requests: Requests,
    /// What is taken of a project changes by one request at a time.
    reserving: tokio::sync::Mutex<()>,
    pub changes: Changes,
    pub ballast: Ballast,
}

const INSTANCES: &str = "instances/";
const VOLUMES: &str = "volumes/";
const NETWORKS: &str = "networks/";

fn instance_key(id: &str) -> String {
    format!("{INSTANCES}{id}")
}

fn name_key(named: &Named) -> String {
    format!("names/{named}")
}

fn name_of(instance: &Instance) -> Named {
    Named::new(&instance.project, &instance.name)
}

fn volume_key(named: &Named) -> String {
    format!("{VOLUMES}{named}")
}

fn network_key(named: &Named) -> String {
    format!("{NETWORKS}{named}")
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
    pub fn new(store: Arc<dyn Store>, ballast: Ballast) -> Result<Objects, DaemonError> {
        let requests = Requests::of(&*store)?;
        let reserving = tokio::sync::Mutex::default();
        let changes = Changes::default();
        let objects = Objects { store, requests, reserving, changes, ballast };
        objects.count_reserved()?;
        Ok(objects)
    }

    /// The newest commit.
    pub fn revision(&self) -> Result<Revision, ApiError> {
        let first = Page { limit: Some(1), ..Page::default() };
        Ok(self.store.list(first).map_err(ApiError::internal)?.revision)
    }

    /// The keys that were written since a commit.
    pub fn written_since(&self, since: Revision) -> Result<Vec<String>, ApiError> {
        let now = self.revision()?;
        if since > now {
            return Err(ApiError::invalid(format!("revision {since} has not been reached yet"))
                .hint(format!("the newest is {now}")));
        }
        let mut watch = self.store.watch("", since).map_err(too_old)?;
        let mut keys = Vec::new();
        while let Some(event) = watch.next(std::time::Duration::ZERO).map_err(too_old)? {
            keys.push(event.key);
        }
        keys.sort();
        keys.dedup();
        Ok(keys)
    }

    fn all<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<T>, DaemonError> {
        self.store.list(Page::all(prefix))?.entries.iter().map(parse).collect()
    }

    fn one<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, ApiError> {
        let entry = self.store.get(key).map_err(refused)?;
        entry.as_ref().map(parse).transpose().map_err(ApiError::internal)
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

    /// Runs a commit where it may wait for the disk.
    async fn commit(&self, checks: Vec<Check>, writes: Vec<Write>) -> Result<Outcome, ApiError> {
        let store = self.store.clone();
        let commit = move || store.commit(&checks, &writes);
        tokio::task::spawn_blocking(commit).await.map_err(ApiError::internal)?.map_err(refused)
    }

    /// The same for what leaves less than there was, which a full disk must not prevent.
    async fn commit_less(
        &self,
        checks: Vec<Check>,
        writes: Vec<Write>,
    ) -> Result<Outcome, ApiError> {
        match self.commit(checks.clone(), writes.clone()).await {
            Err(error) if error.code == Code::Exhausted && self.ballast.throw_overboard() => {
                self.commit(checks, writes).await
            }
            committed => committed,
        }
    }

    /// Makes an instance, and takes its share of the project; its name must be free. Not when
    /// a request with the same key was faster.
    pub async fn create(
        &self,
        instance: &mut Instance,
        request: Option<&Named>,
    ) -> Result<bool, ApiError> {
        let _one = self.reserving.lock().await;
        let (mut project, unchanged) = self.project_to_change(&instance.project)?;
        project.reserved = quota::reserve(&project, instance)?;
        let (key, name) = (instance_key(&instance.id), name_key(&name_of(instance)));
        let mut checks = vec![Check::Absent(key.clone()), Check::Absent(name.clone()), unchanged];
        let mut writes =
            vec![put(key, instance)?, put(name, &instance.id)?, projects::put(&project)?];
        let request = request.map(requests::key_of);
        if let Some(request) = &request {
            checks.insert(0, Check::Absent(request.clone()));
            writes.push(put(request.clone(), &instance.id)?);
            writes.extend(self.requests.forget_oldest().into_iter().map(Write::delete));
        }
        match self.commit(checks, writes).await? {
            Outcome::Committed(revision) => {
                instance.revision = revision;
                self.requests.remember(request);
                self.changes.instance(instance);
                Ok(true)
            }
            Outcome::Conflict { key, .. } if Some(&key) == request.as_ref() => Ok(false),
            Outcome::Conflict { .. } => Err(taken(&instance.name)),
        }
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
            let name = name_key(&name_of(instance));
            checks.push(Check::Absent(name.clone()));
            writes.push(put(name, &instance.id)?);
            writes.push(Write::delete(name_key(&Named::new(&instance.project, old))));
        }
        let is_less = instance.removing || !instance.spec.running;
        let committed = match is_less {
            true => self.commit_less(checks, writes).await?,
            false => self.commit(checks, writes).await?,
        };
        match committed {
            Outcome::Committed(revision) => {
                instance.revision = revision;
                Ok(())
            }
            Outcome::Conflict { key: which, .. } if which == key => Err(changed(&instance.name)),
            Outcome::Conflict { .. } => Err(taken(&instance.name)),
        }
    }

    /// Removes an instance, and gives its share of the project back.
    pub async fn remove(&self, instance: &Instance) -> Result<(), ApiError> {
        let _one = self.reserving.lock().await;
        let (mut project, unchanged) = self.project_to_change(&instance.project)?;
        project.reserved = quota::release(project.reserved, instance);
        let writes = vec![
            Write::delete(instance_key(&instance.id)),
            Write::delete(name_key(&name_of(instance))),
            projects::put(&project)?,
        ];
        match self.commit_less(vec![unchanged], writes).await? {
            Outcome::Committed(revision) => {
                self.changes.gone("instance", &instance.project, &instance.id, revision);
                Ok(())
            }
            Outcome::Conflict { .. } => Err(changed(&instance.name)),
        }
    }

    /// Makes something that is known by its name, in a project that stays meanwhile.
    async fn create_named(
        &self,
        named: &Named,
        key: String,
        value: &impl Serialize,
    ) -> Result<Revision, ApiError> {
        let _one = self.reserving.lock().await;
        let (project, unchanged) = self.project_to_change(&named.project)?;
        let checks = vec![Check::Absent(key.clone()), unchanged];
        match self.commit(checks, vec![put(key, value)?, projects::put(&project)?]).await? {
            Outcome::Committed(revision) => Ok(revision),
            Outcome::Conflict { .. } => Err(taken(&named.name)),
        }
    }

    async fn remove_key(&self, key: String) -> Result<Revision, ApiError> {
        match self.commit_less(Vec::new(), vec![Write::delete(key)]).await? {
            Outcome::Committed(revision) => Ok(revision),
            Outcome::Conflict { key, .. } => Err(changed(&key)),
        }
    }

    pub fn volumes(&self) -> Result<Vec<Volume>, DaemonError> {
        self.all(VOLUMES)
    }

    pub fn volume(&self, named: &Named) -> Result<Option<Volume>, ApiError> {
        self.one(&volume_key(named))
    }

    pub async fn create_volume(&self, volume: &Volume) -> Result<(), ApiError> {
        let named = Named::new(&volume.project, &volume.name);
        let revision = self.create_named(&named, volume_key(&named), volume).await?;
        self.changes.is("volume", &named.project, &named.name, revision, volume);
        Ok(())
    }

    pub async fn remove_volume(&self, named: &Named) -> Result<(), ApiError> {
        let revision = self.remove_key(volume_key(named)).await?;
        self.changes.gone("volume", &named.project, &named.name, revision);
        Ok(())
    }

    pub fn networks(&self) -> Result<Vec<NamedNetwork>, DaemonError> {
        self.all(NETWORKS)
    }

    pub fn network(&self, named: &Named) -> Result<Option<NamedNetwork>, ApiError> {
        self.one(&network_key(named))
    }

    pub async fn create_network(&self, network: &NamedNetwork) -> Result<(), ApiError> {
        let named = Named::new(&network.project, &network.name);
        let revision = self.create_named(&named, network_key(&named), network).await?;
        self.changes.is("network", &named.project, &named.name, revision, network);
        Ok(())
    }

    pub async fn remove_network(&self, named: &Named) -> Result<(), ApiError> {
        let revision = self.remove_key(network_key(named)).await?;
        self.changes.gone("network", &named.project, &named.name, revision);
        Ok(())
    }
}

fn taken(name: &str) -> ApiError {
    ApiError::new(Code::Conflict, format!("the name {name} is taken"))
        .hint(format!("choose another --name, or remove it: guise rm {name}"))
}

fn too_old(error: StateError) -> ApiError {
    match error {
        StateError::Compacted { .. } => ApiError::new(Code::Gone, error.to_string())
            .hint("list what there is, and go on from that list's revision"),
        other => ApiError::internal(other),
    }
}

fn refused(error: StateError) -> ApiError {
    match error {
        StateError::Io { .. } => ApiError::new(Code::Exhausted, error.to_string())
            .hint("nothing was changed; see that the disk has room and can be written to"),
        StateError::Key(_) => ApiError::invalid(error.to_string()),
        StateError::TooLarge { .. } => {
            ApiError::new(Code::TooLarge, error.to_string()).hint("make what is asked for smaller")
        }
        other => ApiError::internal(other),
    }
}
