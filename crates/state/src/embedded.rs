//! The store of a single node: one file, by `redb`.
//!
//! Three tables: the entries, the history (the last [`HISTORY`] changes, which watches
//! read), and the leases. A watch keeps no queue: it remembers the revision it has read
//! to and looks into the history when a commit wakes it, so that a slow watcher costs
//! nothing and learns it when it is too late.
//!
//! Leases run on this process's monotonic clock: a wall clock that jumps ends none. A
//! thread ends those that have run out.
//!
//! After a failed write (a full disk) redb refuses everything until the file is opened
//! anew; [`EmbeddedStore`] does that on the next call, so that the daemon goes on when
//! there is room again.

mod codec;
mod leases;
mod snapshot;
mod tables;
mod watch;

use std::collections::BTreeMap;
use std::io::{Read, Write as IoWrite};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::time::{Duration, Instant};

use redb::Database;

use crate::{
    Check, Entry, LeaseId, Listing, Outcome, Page, Revision, StateError, Store, Watch, Write,
    check_commit, check_key,
};

/// How many changes are kept for watches.
pub const HISTORY: u64 = 10_000;

pub struct EmbeddedStore {
    core: Arc<Core>,
    reaper: leases::Reaper,
}

/// What the store, its watches and the thread that ends leases share.
struct Core {
    path: PathBuf,
    database: RwLock<Option<Database>>,
    /// The newest revision, for watches that wait.
    newest: Mutex<Revision>,
    changed: Condvar,
    /// When each lease runs out, and the time it has.
    deadlines: Mutex<BTreeMap<LeaseId, (Instant, Duration)>>,
}

impl EmbeddedStore {
    /// Opens the store in this file, and makes it where there is none.
    pub fn open(path: &Path) -> Result<EmbeddedStore, StateError> {
        let database = tables::open(path)?;
        let newest = tables::revision(path, &database)?;
        let now = Instant::now();
        let deadlines = tables::leases(path, &database)?
            .into_iter()
            .map(|(lease, ttl)| (lease, (now + ttl, ttl)))
            .collect();
        let core = Arc::new(Core {
            path: path.to_owned(),
            database: RwLock::new(Some(database)),
            newest: Mutex::new(newest),
            changed: Condvar::new(),
            deadlines: Mutex::new(deadlines),
        });
        let reaper = leases::Reaper::start(core.clone())?;
        Ok(EmbeddedStore { core, reaper })
    }
}

impl Core {
    /// Runs an operation on the database, opening it anew if the last one failed.
    fn with<T>(
        &self,
        operation: impl Fn(&Path, &Database) -> Result<T, tables::Failure>,
    ) -> Result<T, StateError> {
        for _ in 0..2 {
            let failure = {
                let database = self.database.read().unwrap_or_else(|error| error.into_inner());
                match &*database {
                    None => None,
                    Some(database) => match operation(&self.path, database) {
                        Ok(value) => return Ok(value),
                        Err(tables::Failure::State(error)) => return Err(error),
                        Err(tables::Failure::Reopen(error)) => Some(error),
                    },
                }
            };
            let mut database = self.database.write().unwrap_or_else(|error| error.into_inner());
            // The file is locked while it is open, so the old one goes first.
            *database = None;
            if let Some(error) = failure {
                return Err(error);
            }
            *database = Some(tables::open(&self.path)?);
        }
        let source = std::io::Error::other("it was closed again and again by failures");
        Err(StateError::Io { doing: "open", path: self.path.clone(), source })
    }

    fn commit(&self, checks: &[Check], writes: &[Write]) -> Result<Outcome, StateError> {
        let outcome = self.with(|path, database| tables::commit(path, database, checks, writes))?;
        if let Outcome::Committed(revision) = outcome {
            self.announce(revision);
        }
        Ok(outcome)
    }

    fn announce(&self, revision: Revision) {
        let mut newest = self.newest.lock().unwrap_or_else(|error| error.into_inner());
        *newest = revision.max(*newest);
        self.changed.notify_all();
    }
}

impl Store for EmbeddedStore {
    fn get(&self, key: &str) -> Result<Option<Entry>, StateError> {
        check_key(key)?;
        self.core.with(|path, database| tables::get(path, database, key))
    }

    fn list(&self, page: Page<'_>) -> Result<Listing, StateError> {
        self.core.with(|path, database| tables::list(path, database, page))
    }

    fn commit(&self, checks: &[Check], writes: &[Write]) -> Result<Outcome, StateError> {
        check_commit(checks, writes)?;
        self.core.commit(checks, writes)
    }

    fn watch(&self, prefix: &str, since: Revision) -> Result<Box<dyn Watch>, StateError> {
        let oldest = self.core.with(tables::oldest_change)?;
        if since + 1 < oldest {
            return Err(StateError::Compacted { wanted: since + 1, oldest });
        }
        Ok(Box::new(watch::HistoryWatch::new(self.core.clone(), prefix, since)))
    }

    fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StateError> {
        let lease = self.core.with(|path, database| tables::add_lease(path, database, ttl))?;
        self.reaper.track(lease, ttl);
        Ok(lease)
    }

    fn keep_alive(&self, lease: LeaseId) -> Result<(), StateError> {
        let mut deadlines = self.core.deadlines.lock().unwrap_or_else(|error| error.into_inner());
        match deadlines.get_mut(&lease) {
            Some((deadline, ttl)) => {
                *deadline = Instant::now() + *ttl;
                Ok(())
            }
            None => Err(StateError::NoLease(lease.0)),
        }
    }

    fn revoke_lease(&self, lease: LeaseId) -> Result<(), StateError> {
        let known =
            self.core.deadlines.lock().unwrap_or_else(|error| error.into_inner()).remove(&lease);
        match known {
            Some(_) => self.core.end_lease(lease),
            None => Err(StateError::NoLease(lease.0)),
        }
    }

    fn snapshot(&self, to: &mut dyn IoWrite) -> Result<Revision, StateError> {
        let listing = self.list(Page::all(""))?;
        snapshot::write(&listing, to).map_err(|source| StateError::Io {
            doing: "write a snapshot of",
            path: self.core.path.clone(),
            source,
        })?;
        Ok(listing.revision)
    }

    fn restore(&self, from: &mut dyn Read) -> Result<Revision, StateError> {
        let entries = snapshot::read(from, &self.core.path)?;
        let revision =
            self.core.with(|path, database| tables::replace(path, database, &entries))?;
        self.core.announce(revision);
        Ok(revision)
    }
}

#[cfg(test)]
mod tests;
