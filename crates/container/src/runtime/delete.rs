//! `delete`: nothing of the container stays.

use std::time::Duration;

use super::kill::{wait_at_most, wait_for_end};
use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::hooks;
use crate::spec::Spec;
use crate::state::{Entry, State, Status, Store};
use crate::sys::clone::signal_pidfd;

/// Deletes a stopped container, or with `force` any.
pub fn delete(store: &Store, id: &str, force: bool) -> Result<()> {
    let entry = match store.find(id) {
        Err(Error::NotFound(_)) if force => return Ok(()),
        other => other?,
    };
    let Some(state) = entry.load()? else {
        // A runtime that was killed early left only the directory.
        return if force { entry.remove() } else { Err(not_stopped(id, Status::Creating)) };
    };
    if force {
        end(&state);
    } else {
        if entry.status(&state) == Status::Running {
            // Who has seen the program's last work may ask before the process is gone.
            const MOMENT: Duration = Duration::from_millis(100);
            state.process().inspect(|process| wait_at_most(process, MOMENT));
        }
        let status = entry.status(&state);
        if status != Status::Stopped {
            return Err(not_stopped(id, status));
        }
    }
    let spec = entry.config().unwrap_or_default();
    clean_up(&entry, &state, &spec)
}

fn not_stopped(id: &str, status: Status) -> Error {
    Error::State {
        id: id.to_owned(),
        status: status.name(),
        wanted: "only a stopped container can be deleted (or use --force)",
    }
}

/// Kills the first process and waits until it is gone.
pub(super) fn end(state: &State) {
    let Some(process) = state.process() else { return };
    let cgroup = state.cgroup();
    let frozen = cgroup.is_frozen();
    let _ = signal_pidfd(&process, libc::SIGKILL);
    if frozen {
        // A frozen process of cgroup v1 does not even die.
        let _ = cgroup.freeze(false);
    }
    wait_for_end(&process);
}

/// Takes away cgroups and the state, then runs the hooks that come after.
pub fn clean_up(entry: &Entry, state: &State, spec: &Spec) -> Result<()> {
    let cgroup = state.cgroup();
    if !state.own_pid_namespace || state.pid == 0 {
        // Else the kernel has ended everything together with the first process,
        // which is known unless the runtime was killed while it made it.
        end_all(&cgroup);
    }
    let removed = cgroup.remove();
    entry.remove()?;
    let public = state.public(Status::Stopped);
    hooks::run_all("poststop", &spec.hooks.poststop, &public);
    removed
}

fn end_all(cgroup: &Cgroup) {
    const ATTEMPTS: usize = 100;
    for _ in 0..ATTEMPTS {
        match cgroup.processes() {
            Ok(pids) if !pids.is_empty() => {
                let _ = cgroup.signal_all(libc::SIGKILL);
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            _ => return,
        }
    }
}
