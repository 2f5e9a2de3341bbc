//! What happens in the file: tables, transactions, and redb's errors as the store's.

use std::path::Path;
use std::time::Duration;

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageError,
    TableDefinition, WriteTransaction,
};

use super::{HISTORY, codec};
use crate::{Check, Entry, Event, LeaseId, Listing, Outcome, Page, Revision, StateError, Write};

const ENTRIES: TableDefinition<&str, &[u8]> = TableDefinition::new("entries");
/// (revision, place in its commit) to (key, encoded entry or nothing).
const CHANGES: TableDefinition<(u64, u32), (&str, &[u8])> = TableDefinition::new("changes");
/// Lease to its time in milliseconds.
const LEASES: TableDefinition<u64, u64> = TableDefinition::new("leases");
/// "format", "revision", "lease".
const COUNTERS: TableDefinition<&str, u64> = TableDefinition::new("counters");
const FORMAT: u64 = 1;

/// How many changes one look at the history takes.
const BATCH: usize = 256;

/// Why an operation on the file did not happen.
pub enum Failure {
    State(StateError),
    /// The database is of no use until it is opened anew.
    Reopen(StateError),
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Failure {
        Failure::State(error)
    }
}

fn failure(path: &Path, doing: &'static str, error: impl Into<redb::Error>) -> Failure {
    let path = path.to_owned();
    match error.into() {
        redb::Error::Io(source) => Failure::Reopen(StateError::Io { doing, path, source }),
        redb::Error::PreviousIo | redb::Error::DatabaseClosed => {
            let source = std::io::Error::other("an earlier write failed");
            Failure::Reopen(StateError::Io { doing, path, source })
        }
        redb::Error::DatabaseAlreadyOpen => Failure::State(StateError::InUse { path }),
        redb::Error::UpgradeRequired(version) => {
            Failure::State(StateError::Version { path, detail: format!("file format {version}") })
        }
        other => Failure::State(StateError::Damaged { path, detail: other.to_string() }),
    }
}

fn state_error(failure: Failure) -> StateError {
    let (Failure::State(error) | Failure::Reopen(error)) = failure;
    error
}

fn damaged(path: &Path, detail: &str) -> Failure {
    Failure::State(StateError::Damaged { path: path.to_owned(), detail: detail.to_owned() })
}

pub fn open(path: &Path) -> Result<Database, StateError> {
    let database = Database::create(path).map_err(|error| match error {
        DatabaseError::Storage(StorageError::Io(source))
            if source.kind() == std::io::ErrorKind::InvalidData =>
        {
            StateError::Damaged { path: path.to_owned(), detail: source.to_string() }
        }
        error => state_error(failure(path, "open", error)),
    })?;
    prepare(path, &database).map_err(state_error)?;
    Ok(database)
}

/// Makes the tables of a new file, and checks the format of an old one.
fn prepare(path: &Path, database: &Database) -> Result<(), Failure> {
    let fail = |error: redb::Error| failure(path, "prepare", error);
    let transaction = database.begin_write().map_err(|error| fail(error.into()))?;
    {
        let mut counters = transaction.open_table(COUNTERS).map_err(|error| fail(error.into()))?;
        let format = counters
            .get("format")
            .map_err(|error| fail(error.into()))?
            .map(|format| format.value());
        match format {
            None => {
                counters.insert("format", FORMAT).map_err(|error| fail(error.into()))?;
            }
            Some(FORMAT) => {}
            Some(other) => {
                let detail = format!("format {other}, this one knows {FORMAT}");
                let path = path.to_owned();
                return Err(StateError::Version { path, detail }.into());
            }
        }
        transaction.open_table(ENTRIES).map_err(|error| fail(error.into()))?;
        transaction.open_table(CHANGES).map_err(|error| fail(error.into()))?;
        transaction.open_table(LEASES).map_err(|error| fail(error.into()))?;
    }
    transaction.commit().map_err(|error| fail(error.into()))
}

/// Runs `work` in a transaction that reads.
fn reading<T>(
    path: &Path,
    database: &Database,
    work: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
) -> Result<T, Failure> {
    let fail = |error: redb::Error| failure(path, "read", error);
    let transaction = database.begin_read().map_err(|error| fail(error.into()))?;
    work(&transaction).map_err(fail)
}

/// Runs `work` in a transaction that writes, and makes it durable where `work` says so.
fn writing<T>(
    path: &Path,
    database: &Database,
    work: impl FnOnce(&WriteTransaction) -> Result<(T, bool), Failure>,
) -> Result<T, Failure> {
    let fail = |error: redb::Error| failure(path, "write", error);
    let transaction = database.begin_write().map_err(|error| fail(error.into()))?;
    let (value, keep) = work(&transaction)?;
    if keep {
        transaction.commit().map_err(|error| fail(error.into()))?;
    } else {
        transaction.abort().map_err(|error| fail(error.into()))?;
    }
    Ok(value)
}

pub fn revision(path: &Path, database: &Database) -> Result<Revision, StateError> {
    reading(path, database, |transaction| {
        let counters = transaction.open_table(COUNTERS)?;
        Ok(counters.get("revision")?.map_or(0, |value| value.value()))
    })
    .map_err(state_error)
}

pub fn leases(path: &Path, database: &Database) -> Result<Vec<(LeaseId, Duration)>, StateError> {
    reading(path, database, |transaction| {
        let leases = transaction.open_table(LEASES)?;
        leases
            .iter()?
            .map(|pair| {
                let (lease, ttl) = pair?;
                Ok((LeaseId(lease.value()), Duration::from_millis(ttl.value())))
            })
            .collect()
    })
    .map_err(state_error)
}

pub fn get(path: &Path, database: &Database, key: &str) -> Result<Option<Entry>, Failure> {
    let bytes = reading(path, database, |transaction| {
        let entries = transaction.open_table(ENTRIES)?;
        Ok(entries.get(key)?.map(|bytes| bytes.value().to_vec()))
    })?;
    bytes
        .map(|bytes| codec::decode(key, &bytes).ok_or_else(|| damaged(path, "a malformed entry")))
        .transpose()
}

pub fn list(path: &Path, database: &Database, page: Page<'_>) -> Result<Listing, Failure> {
    let limit = page.limit.unwrap_or(usize::MAX);
    let start = page.after.unwrap_or("").max(page.prefix);
    let (revision, found, more) = reading(path, database, |transaction| {
        let counters = transaction.open_table(COUNTERS)?;
        let revision = counters.get("revision")?.map_or(0, |value| value.value());
        let entries = transaction.open_table(ENTRIES)?;
        let mut found = Vec::new();
        for pair in entries.range(start..)? {
            let (key, bytes) = pair?;
            if !key.value().starts_with(page.prefix) {
                break;
            }
            if page.after == Some(key.value()) {
                continue;
            }
            if found.len() == limit {
                return Ok((revision, found, true));
            }
            found.push((key.value().to_owned(), bytes.value().to_vec()));
        }
        Ok((revision, found, false))
    })?;
    let entries = found
        .iter()
        .map(|(key, bytes)| codec::decode(key, bytes))
        .collect::<Option<Vec<Entry>>>()
        .ok_or_else(|| damaged(path, "a malformed entry"))?;
    Ok(Listing { revision, entries, more })
}

/// Writes entries and history of one revision.
struct Change<'t> {
    path: &'t Path,
    entries: redb::Table<'t, &'static str, &'static [u8]>,
    changes: redb::Table<'t, (u64, u32), (&'static str, &'static [u8])>,
    revision: Revision,
    place: u32,
}

impl<'t> Change<'t> {
    fn begin(path: &'t Path, transaction: &'t WriteTransaction) -> Result<Change<'t>, Failure> {
        let fail = |error: redb::Error| failure(path, "write", error);
        let mut counters = transaction.open_table(COUNTERS).map_err(|error| fail(error.into()))?;
        let before = counters
            .get("revision")
            .map_err(|error| fail(error.into()))?
            .map_or(0, |value| value.value());
        let revision = before + 1;
        counters.insert("revision", revision).map_err(|error| fail(error.into()))?;
        Ok(Change {
            path,
            entries: transaction.open_table(ENTRIES).map_err(|error| fail(error.into()))?,
            changes: transaction.open_table(CHANGES).map_err(|error| fail(error.into()))?,
            revision,
            place: 0,
        })
    }

    fn current(&self, key: &str) -> Result<Option<Entry>, Failure> {
        let bytes = self
            .entries
            .get(key)
            .map_err(|error| failure(self.path, "read", error))?
            .map(|bytes| bytes.value().to_vec());
        bytes
            .map(|bytes| {
                codec::decode(key, &bytes).ok_or_else(|| damaged(self.path, "a malformed entry"))
            })
            .transpose()
    }

    fn put(&mut self, key: &str, value: &[u8], lease: Option<LeaseId>) -> Result<(), Failure> {
        let created = self.current(key)?.map_or(self.revision, |entry| entry.created);
        let entry = Entry {
            key: key.to_owned(),
            value: value.to_vec(),
            created,
            modified: self.revision,
            lease,
        };
        let bytes = codec::encode(&entry);
        self.entries
            .insert(key, bytes.as_slice())
            .map_err(|error| failure(self.path, "write", error))?;
        self.note(key, &bytes)
    }

    fn delete(&mut self, key: &str) -> Result<(), Failure> {
        let existed =
            self.entries.remove(key).map_err(|error| failure(self.path, "write", error))?.is_some();
        if existed { self.note(key, &[]) } else { Ok(()) }
    }

    fn note(&mut self, key: &str, bytes: &[u8]) -> Result<(), Failure> {
        self.changes
            .insert((self.revision, self.place), (key, bytes))
            .map_err(|error| failure(self.path, "write", error))?;
        self.place += 1;
        Ok(())
    }

    /// Forgets the oldest changes, a whole commit at a time.
    fn trim(&mut self) -> Result<(), Failure> {
        let fail = |error: redb::Error| failure(self.path, "trim", error);
        while self.changes.len().map_err(|error| fail(error.into()))? > HISTORY {
            let oldest = self
                .changes
                .first()
                .map_err(|error| fail(error.into()))?
                .map(|(at, _)| at.value().0);
            let Some(oldest) = oldest.filter(|oldest| *oldest < self.revision) else { break };
            self.changes
                .retain_in((oldest, 0)..=(oldest, u32::MAX), |_, _| false)
                .map_err(|error| fail(error.into()))?;
        }
        Ok(())
    }
}

pub fn commit(
    path: &Path,
    database: &Database,
    checks: &[Check],
    writes: &[Write],
) -> Result<Outcome, Failure> {
    writing(path, database, |transaction| {
        let mut change = Change::begin(path, transaction)?;
        for check in checks {
            let (key, wanted) = match check {
                Check::Absent(key) => (key, None),
                Check::Modified(key, revision) => (key, Some(*revision)),
            };
            let current = change.current(key)?;
            if current.as_ref().map(|entry| entry.modified) != wanted {
                return Ok((Outcome::Conflict { key: key.clone(), current }, false));
            }
        }
        for write in writes {
            match write {
                Write::Delete { key } => change.delete(key)?,
                Write::Put { key, value, lease } => {
                    if let Some(lease) = lease {
                        lease_exists(path, transaction, *lease)?;
                    }
                    change.put(key, value, *lease)?;
                }
            }
        }
        change.trim()?;
        Ok((Outcome::Committed(change.revision), true))
    })
}

/// Makes the entries exactly these.
pub fn replace(path: &Path, database: &Database, wanted: &[Entry]) -> Result<Revision, Failure> {
    writing(path, database, |transaction| {
        let mut change = Change::begin(path, transaction)?;
        let present = change
            .entries
            .iter()
            .and_then(|all| all.map(|pair| Ok(pair?.0.value().to_owned())).collect())
            .map_err(|error: StorageError| failure(path, "read", error))?;
        let present: Vec<String> = present;
        for key in present {
            if wanted.binary_search_by(|entry| entry.key.as_str().cmp(&key)).is_err() {
                change.delete(&key)?;
            }
        }
        for entry in wanted {
            let same = change
                .current(&entry.key)?
                .is_some_and(|now| now.value == entry.value && now.lease.is_none());
            if !same {
                change.put(&entry.key, &entry.value, None)?;
            }
        }
        change.trim()?;
        Ok((change.revision, true))
    })
}

pub fn oldest_change(path: &Path, database: &Database) -> Result<Revision, Failure> {
    reading(path, database, |transaction| {
        let changes = transaction.open_table(CHANGES)?;
        Ok(changes.first()?.map_or(0, |(at, _)| at.value().0))
    })
}

/// Changes after revision `seen` to keys with this prefix, and how far they go: never
/// into the middle of a commit.
pub fn changes(
    path: &Path,
    database: &Database,
    prefix: &str,
    seen: Revision,
) -> Result<(Vec<Event>, Revision), Failure> {
    type Raw = (Revision, String, Vec<u8>);
    let (raw, upto, oldest) = reading(path, database, |transaction| {
        let counters = transaction.open_table(COUNTERS)?;
        let newest = counters.get("revision")?.map_or(0, |value| value.value());
        let changes = transaction.open_table(CHANGES)?;
        let oldest = changes.first()?.map_or(0, |(at, _)| at.value().0);
        let mut raw: Vec<Raw> = Vec::new();
        let mut last = seen;
        for pair in changes.range((seen + 1, 0)..)? {
            let (at, change) = pair?;
            let revision = at.value().0;
            if raw.len() >= BATCH && revision != last {
                return Ok((raw, last, oldest));
            }
            last = revision;
            let (key, bytes) = change.value();
            if key.starts_with(prefix) {
                raw.push((revision, key.to_owned(), bytes.to_vec()));
            }
        }
        Ok((raw, newest.max(seen), oldest))
    })?;
    if seen + 1 < oldest {
        return Err(StateError::Compacted { wanted: seen + 1, oldest }.into());
    }
    let events = raw
        .into_iter()
        .map(|(revision, key, bytes)| {
            let entry = match bytes.is_empty() {
                true => None,
                false => Some(
                    codec::decode(&key, &bytes)
                        .ok_or_else(|| damaged(path, "a malformed change"))?,
                ),
            };
            Ok(Event { revision, key, entry })
        })
        .collect::<Result<Vec<Event>, Failure>>()?;
    Ok((events, upto))
}

fn lease_exists(
    path: &Path,
    transaction: &WriteTransaction,
    lease: LeaseId,
) -> Result<(), Failure> {
    let fail = |error: redb::Error| failure(path, "read", error);
    let leases = transaction.open_table(LEASES).map_err(|error| fail(error.into()))?;
    match leases.get(lease.0).map_err(|error| fail(error.into()))? {
        Some(_) => Ok(()),
        None => Err(StateError::NoLease(lease.0).into()),
    }
}

pub fn add_lease(path: &Path, database: &Database, ttl: Duration) -> Result<LeaseId, Failure> {
    let fail = |error: redb::Error| failure(path, "write", error);
    writing(path, database, |transaction| {
        let mut counters = transaction.open_table(COUNTERS).map_err(|error| fail(error.into()))?;
        let lease = 1 + counters
            .get("lease")
            .map_err(|error| fail(error.into()))?
            .map_or(0, |value| value.value());
        counters.insert("lease", lease).map_err(|error| fail(error.into()))?;
        transaction
            .open_table(LEASES)
            .map_err(|error| fail(error.into()))?
            .insert(lease, ttl.as_millis() as u64)
            .map_err(|error| fail(error.into()))?;
        Ok((LeaseId(lease), true))
    })
}

/// Removes a lease and the keys that depend on it.
pub fn end_lease(path: &Path, database: &Database, lease: LeaseId) -> Result<Revision, Failure> {
    let fail = |error: redb::Error| failure(path, "write", error);
    writing(path, database, |transaction| {
        transaction
            .open_table(LEASES)
            .map_err(|error| fail(error.into()))?
            .remove(lease.0)
            .map_err(|error| fail(error.into()))?;
        let mut change = Change::begin(path, transaction)?;
        let mut leased = Vec::new();
        for pair in change.entries.iter().map_err(|error| fail(error.into()))? {
            let (key, bytes) = pair.map_err(|error| fail(error.into()))?;
            let entry = codec::decode(key.value(), bytes.value())
                .ok_or_else(|| damaged(path, "a malformed entry"))?;
            if entry.lease == Some(lease) {
                leased.push(entry.key);
            }
        }
        for key in &leased {
            change.delete(key)?;
        }
        change.trim()?;
        Ok((change.revision, true))
    })
}
