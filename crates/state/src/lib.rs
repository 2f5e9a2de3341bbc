//! The store behind the control plane.
//!
//! Everything that the daemon must not forget goes through the small trait [`Store`]:
//! keys in a flat, ordered name space (`instances/default/web`), values that the store
//! does not look into, and one counter, the [`Revision`], that every commit moves on by
//! one. Its building blocks are few on purpose:
//!
//! - [`Store::commit`] writes several keys at once, if what the caller read is still so;
//! - [`Store::watch`] gives every change since a revision, without gaps, or says that
//!   they are no longer all there;
//! - a lease removes its keys when nobody keeps it alive.
//!
//! There are no locks and no elections: they are made of these (a lock is a key that
//! did not exist, written under a lease).
//!
//! [`embedded`] is the backend of a single node. A distributed one has to pass the same
//! `conformance` suite.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod embedded;

use std::io::{Read, Write as IoWrite};
use std::path::PathBuf;
use std::time::Duration;

/// The number of a commit. 0 is before the first one.
pub type Revision = u64;

/// No key is longer than this, in bytes.
pub const MAX_KEY: usize = 1024;
/// No value is longer than this, in bytes.
pub const MAX_VALUE: usize = 1 << 20;
/// No commit checks and writes more keys than this.
pub const MAX_COMMIT: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub u64);

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Vec<u8>,
    /// The commit that made the key, and the one that wrote this value.
    pub created: Revision,
    pub modified: Revision,
    /// The key goes when this lease does.
    pub lease: Option<LeaseId>,
}

/// A part of the store at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The newest commit that is in it: where a watch goes on from.
    pub revision: Revision,
    /// In the order of their keys.
    pub entries: Vec<Entry>,
    /// There are more entries after the last one of these.
    pub more: bool,
}

/// Which part of the store a listing is to show.
#[derive(Clone, Copy, Debug, Default)]
pub struct Page<'a> {
    /// Only keys that begin so.
    pub prefix: &'a str,
    /// Only keys after this one.
    pub after: Option<&'a str>,
    /// At most so many; all where it is none.
    pub limit: Option<usize>,
}

impl<'a> Page<'a> {
    pub fn all(prefix: &'a str) -> Page<'a> {
        Page { prefix, ..Page::default() }
    }
}

/// What must be so for a commit to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// The key does not exist.
    Absent(String),
    /// The key was last written by this commit.
    Modified(String, Revision),
}

/// What a commit does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    Put {
        key: String,
        value: Vec<u8>,
        lease: Option<LeaseId>,
    },
    /// Deleting what does not exist is not an error.
    Delete {
        key: String,
    },
}

impl Write {
    pub fn put(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Write {
        Write::Put { key: key.into(), value: value.into(), lease: None }
    }

    pub fn delete(key: impl Into<String>) -> Write {
        Write::Delete { key: key.into() }
    }

    fn key(&self) -> &str {
        match self {
            Write::Put { key, .. } | Write::Delete { key } => key,
        }
    }
}

/// How a commit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it is durable.
    Committed(Revision),
    /// None of it happened: this key is not as the caller believed. Its entry now.
    Conflict { key: String, current: Option<Entry> },
}

/// One key's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub revision: Revision,
    pub key: String,
    /// The entry from then on; none when the key was deleted.
    pub entry: Option<Entry>,
}

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(
        "the state in {path} is in use by another daemon; stop that one, or choose another --state"
    )]
    InUse { path: PathBuf },
    #[error(
        "the state in {path} is damaged ({detail}); it was left as it is; restore a snapshot of it"
    )]
    Damaged { path: PathBuf, detail: String },
    #[error("the state in {path} was written by a newer Guise ({detail})")]
    Version { path: PathBuf, detail: String },
    #[error("cannot {doing} the state in {path}: {source}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("changes since revision {wanted} are no longer all there; the oldest is {oldest}")]
    Compacted { wanted: Revision, oldest: Revision },
    #[error("there is no lease {0}; it has run out")]
    NoLease(u64),
    #[error("{what} of {size} bytes or entries is over the limit of {limit}")]
    TooLarge { what: &'static str, size: usize, limit: usize },
    #[error("key {0:?} is empty or has characters other than letters, digits and -_./:@+")]
    Key(String),
    #[error("this is not a snapshot of Guise's state: {0}")]
    Snapshot(&'static str),
}

/// What the control plane asks of a store.
pub trait Store: Send + Sync {
    fn get(&self, key: &str) -> Result<Option<Entry>, StateError>;
    fn list(&self, page: Page<'_>) -> Result<Listing, StateError>;
    /// Does all of `writes` if all of `checks` hold, and nothing otherwise. When it
    /// returns, what it did survives a power failure. Each key is written at most once.
    fn commit(&self, checks: &[Check], writes: &[Write]) -> Result<Outcome, StateError>;
    /// Changes to keys with this prefix, from the commit after `since` on.
    fn watch(&self, prefix: &str, since: Revision) -> Result<Box<dyn Watch>, StateError>;

    /// A lease that runs out when it is not kept alive for `ttl`. After a restart of
    /// the store every lease has its whole time again.
    fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StateError>;
    fn keep_alive(&self, lease: LeaseId) -> Result<(), StateError>;
    /// Ends the lease now, and removes its keys.
    fn revoke_lease(&self, lease: LeaseId) -> Result<(), StateError>;

    /// Writes everything, as it is at one moment.
    fn snapshot(&self, to: &mut dyn IoWrite) -> Result<Revision, StateError>;
    /// Replaces everything by a snapshot, in one commit, or does nothing. Watches see
    /// the difference.
    fn restore(&self, from: &mut dyn Read) -> Result<Revision, StateError>;
}

/// Changes, one after another.
pub trait Watch: Send {
    /// The next change, or none when there was none for `patience`.
    fn next(&mut self, patience: Duration) -> Result<Option<Event>, StateError>;
}

/// Whether a key may be used: what fits URLs, file names and logs without quoting.
pub fn check_key(key: &str) -> Result<(), StateError> {
    if key.len() > MAX_KEY {
        return Err(StateError::TooLarge { what: "a key", size: key.len(), limit: MAX_KEY });
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@+".contains(&byte);
    if key.is_empty() || !key.bytes().all(allowed) {
        return Err(StateError::Key(key.to_owned()));
    }
    Ok(())
}

fn check_commit(checks: &[Check], writes: &[Write]) -> Result<(), StateError> {
    let size = checks.len() + writes.len();
    if size > MAX_COMMIT {
        return Err(StateError::TooLarge { what: "a commit", size, limit: MAX_COMMIT });
    }
    for check in checks {
        let (Check::Absent(key) | Check::Modified(key, _)) = check;
        check_key(key)?;
    }
    for write in writes {
        check_key(write.key())?;
        if let Write::Put { value, .. } = write
            && value.len() > MAX_VALUE
        {
            let size = value.len();
            return Err(StateError::TooLarge { what: "a value", size, limit: MAX_VALUE });
        }
    }
    Ok(())
}
