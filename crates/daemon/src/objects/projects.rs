//! Projects in the store, each with what its instances take.
//!
//! Whatever is made in a project writes the project's record in the same commit. So a quota
//! cannot be exceeded by two at once, and nothing is made in a project that has just gone.

use std::collections::BTreeMap;

use guise_api::{ApiError, Code, DEFAULT_PROJECT, Instance, Project, Quota, Reserved};
use guise_container::state::timestamp;
use guise_state::{Check, Outcome, Write};

use super::{NETWORKS, Objects, VOLUMES, changed, parse};
use crate::{DaemonError, quota};

const PROJECTS: &str = "projects/";

fn key_of(name: &str) -> String {
    format!("{PROJECTS}{name}")
}

pub fn put(project: &Project) -> Result<Write, ApiError> {
    super::put(key_of(&project.name), project)
}

pub fn no_project(name: &str) -> ApiError {
    ApiError::new(Code::NotFound, format!("there is no project {name}"))
        .hint("guise project ls lists them")
}

fn empty(name: &str, quota: Quota) -> Project {
    let reserved = Reserved::default();
    Project { name: name.to_owned(), created: timestamp(), quota, reserved }
}

impl Objects {
    /// All projects. The default one is always there.
    pub fn projects(&self) -> Result<Vec<Project>, DaemonError> {
        let mut all: Vec<Project> = self.all(PROJECTS)?;
        if !all.iter().any(|project| project.name == DEFAULT_PROJECT) {
            all.push(empty(DEFAULT_PROJECT, Quota::default()));
        }
        Ok(all)
    }

    pub fn project(&self, name: &str) -> Result<Project, ApiError> {
        Ok(self.project_to_change(name)?.0)
    }

    /// A project, and what must still be so when it is written.
    pub(super) fn project_to_change(&self, name: &str) -> Result<(Project, Check), ApiError> {
        let key = key_of(name);
        match self.store.get(&key).map_err(super::refused)? {
            Some(entry) => {
                let project = parse(&entry).map_err(ApiError::internal)?;
                Ok((project, Check::Modified(key, entry.modified)))
            }
            None if name == DEFAULT_PROJECT => {
                Ok((empty(name, Quota::default()), Check::Absent(key)))
            }
            None => Err(no_project(name)),
        }
    }

    /// Makes a project, unless there is one of this name and with this quota already.
    pub async fn create_project(&self, name: &str, quota: Quota) -> Result<Project, ApiError> {
        let _one = self.reserving.lock().await;
        if let Ok((project, Check::Modified(..))) = self.project_to_change(name) {
            if project.quota == quota {
                return Ok(project);
            }
            return Err(ApiError::new(
                Code::Conflict,
                format!("there is a project {name} already, with another quota"),
            )
            .hint(format!("change that: guise project set {name}")));
        }
        let project = empty(name, quota);
        self.write_project(&project, Check::Absent(key_of(name))).await?;
        Ok(project)
    }

    pub async fn set_quota(&self, name: &str, quota: Quota) -> Result<Project, ApiError> {
        let _one = self.reserving.lock().await;
        let (mut project, unchanged) = self.project_to_change(name)?;
        project.quota = quota;
        self.write_project(&project, unchanged).await?;
        Ok(project)
    }

    async fn write_project(&self, project: &Project, unchanged: Check) -> Result<(), ApiError> {
        match self.commit(vec![unchanged], vec![put(project)?]).await? {
            Outcome::Committed(revision) => {
                self.changes.is("project", &project.name, &project.name, revision, project);
                Ok(())
            }
            Outcome::Conflict { .. } => Err(changed(&project.name)),
        }
    }

    /// Removes a project that has nothing.
    pub async fn remove_project(&self, name: &str) -> Result<(), ApiError> {
        let _one = self.reserving.lock().await;
        let (project, unchanged) = self.project_to_change(name)?;
        if name == DEFAULT_PROJECT {
            return Err(ApiError::new(Code::State, "the default project stays"));
        }
        let has = |what: &str, hint: String| {
            Err(ApiError::new(Code::State, format!("project {name} has {what}"))
                .hint(format!("remove them first: {hint}")))
        };
        if project.reserved.instances > 0 {
            return has("instances", format!("guise --project {name} ps -a"));
        }
        for (prefix, what, noun) in
            [(VOLUMES, "volumes", "volume"), (NETWORKS, "networks", "network")]
        {
            let prefix = format!("{prefix}{name}/");
            let page = guise_state::Page { limit: Some(1), ..guise_state::Page::all(&prefix) };
            if !self.store.list(page).map_err(ApiError::internal)?.entries.is_empty() {
                return has(what, format!("guise --project {name} {noun} ls"));
            }
        }
        match self.commit(vec![unchanged], vec![Write::delete(key_of(name))]).await? {
            Outcome::Committed(revision) => {
                self.changes.gone("project", name, name, revision);
                Ok(())
            }
            Outcome::Conflict { .. } => Err(changed(name)),
        }
    }

    /// Counts what instances take of their projects, for a store that was written before
    /// there were projects.
    pub(super) fn count_reserved(&self) -> Result<(), DaemonError> {
        let mut by_project: BTreeMap<String, Vec<Instance>> = BTreeMap::new();
        for instance in self.instances()? {
            by_project.entry(instance.project.clone()).or_default().push(instance);
        }
        for mut project in self.projects()? {
            let instances = by_project.remove(&project.name).unwrap_or_default();
            let reserved = quota::total(instances.iter());
            if project.reserved != reserved {
                project.reserved = reserved;
                let value = serde_json::to_vec(&project)
                    .map_err(|error| DaemonError::Object(key_of(&project.name), error))?;
                self.store.commit(&[], &[Write::put(key_of(&project.name), value)])?;
            }
        }
        Ok(())
    }
}
