//! Names of images, and leases of instances.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Session, Store, sync_dir, unique_name, write_atomically};
use crate::error::IoContext;
use crate::spec::Descriptor;
use crate::{Digest, Error, Name, Result, clock};

/// A name and what it points at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    pub name: Name,
    pub target: Descriptor,
    /// When the name was last set, in RFC 3339.
    pub updated: String,
}

/// What an instance keeps.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Lease {
    #[serde(default)]
    pub owner: String,
    pub target: Descriptor,
}

impl Store {
    fn reference_path(&self, name: &Name) -> PathBuf {
        let digest = Digest::of(name.to_string().as_bytes());
        self.path("refs").join(format!("{}.json", digest.hex()))
    }

    /// What a name points at.
    pub fn reference(&self, name: &Name) -> Result<Reference> {
        let path = self.reference_path(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NoSuchImage(name.to_string()));
            }
            Err(e) => return Err(e).at("reading", path),
        };
        serde_json::from_slice(&bytes).map_err(|e| Error::malformed(path.display().to_string(), e))
    }

    /// All names, sorted.
    pub fn references(&self) -> Result<Vec<Reference>> {
        let mut all: Vec<Reference> = self.records("refs")?;
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    pub(super) fn leases(&self) -> Result<Vec<Lease>> {
        self.records("leases")
    }

    fn records<T: serde::de::DeserializeOwned>(&self, dir: &str) -> Result<Vec<T>> {
        let dir = self.path(dir);
        let mut all = Vec::new();
        for entry in fs::read_dir(&dir).at("reading", &dir)? {
            let path = entry.at("reading", &dir)?.path();
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                // Removed in between.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e).at("reading", path),
            };
            // A lease, which does not wait for the disk, was caught by a power failure.
            if bytes.is_empty() {
                continue;
            }
            all.push(
                serde_json::from_slice(&bytes)
                    .map_err(|e| Error::malformed(path.display().to_string(), e))?,
            );
        }
        Ok(all)
    }

    /// Removes a name. What it pointed at stays until a collection.
    pub fn remove_reference(&self, name: &Name) -> Result<()> {
        let path = self.reference_path(name);
        match fs::remove_file(&path) {
            Ok(()) => sync_dir(&self.path("refs")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(Error::NoSuchImage(name.to_string()))
            }
            Err(e) => Err(e).at("removing", path),
        }
    }

    /// Ends what `hold` began. Nothing to do if there is no such lease. After a power failure it
    /// may be there again.
    pub fn release(&self, owner: &str) -> Result<()> {
        let path = self.lease_path(owner);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).at("removing", path),
            _ => Ok(()),
        }
    }

    /// What a lease of this owner keeps alive, if there is one.
    pub fn held(&self, owner: &str) -> Result<Option<Descriptor>> {
        let path = self.lease_path(owner);
        match fs::read(&path) {
            Ok(bytes) if bytes.is_empty() => Ok(None),
            Ok(bytes) => serde_json::from_slice::<Lease>(&bytes)
                .map(|lease| Some(lease.target))
                .map_err(|e| Error::malformed(path.display().to_string(), e)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).at("reading", path),
        }
    }

    /// Ends all leases whose owners' names begin so.
    pub fn release_all(&self, prefix: &str) -> Result<()> {
        for lease in self.leases()?.iter().filter(|l| l.owner.starts_with(prefix)) {
            self.release(&lease.owner)?;
        }
        Ok(())
    }

    fn lease_path(&self, owner: &str) -> PathBuf {
        self.path("leases").join(format!("{}.json", Digest::of(owner.as_bytes()).hex()))
    }
}

impl Session<'_> {
    /// Makes a name point at a manifest or an index that the store has.
    pub fn set_reference(&self, name: &Name, target: &Descriptor) -> Result<()> {
        let reference =
            Reference { name: name.clone(), target: target.clone(), updated: clock::now() };
        write_atomically(&self.reference_path(name), &record(&reference)?, &self.path("tmp"))
    }

    /// Keeps an image alive for an instance, even when its name goes or moves
    /// on, until `release` of the same owner. It does not wait for the disk, as every instance
    /// that starts would: who needs a lease after a power failure looks for it with `held`, and
    /// holds again.
    pub fn hold(&self, owner: &str, target: &Descriptor) -> Result<()> {
        let lease = record(&Lease { owner: owner.to_owned(), target: target.clone() })?;
        let (temporary, path) = (self.path("tmp").join(unique_name()), self.lease_path(owner));
        fs::write(&temporary, lease).at("writing", &temporary)?;
        fs::rename(&temporary, &path).at("writing", path)
    }
}

fn record(record: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(record).map_err(|e| Error::malformed("a record", e))
}
