//! Tasks in the store: what was asked for, and how it ended.

use guise_api::{ApiError, Task};
use guise_state::{Outcome, Write};

use super::{Objects, changed};
use crate::DaemonError;

const TASKS: &str = "tasks/";

fn key_of(id: &str) -> String {
    format!("{TASKS}{id}")
}

impl Objects {
    pub fn tasks(&self) -> Result<Vec<Task>, DaemonError> {
        self.all(TASKS)
    }

    /// Writes a task as it is now, and forgets others.
    pub async fn keep_task(&self, task: &Task, forget: &[String]) -> Result<(), ApiError> {
        let mut writes = vec![super::put(key_of(&task.id), task)?];
        writes.extend(forget.iter().map(|id| Write::delete(key_of(id))));
        match self.commit(Vec::new(), writes).await? {
            Outcome::Committed(revision) => {
                self.changes.is("task", &task.project, &task.id, revision, task);
                Ok(())
            }
            Outcome::Conflict { key, .. } => Err(changed(&key)),
        }
    }
}
