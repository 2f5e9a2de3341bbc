//! Garbage collection: what no name and no lease reaches goes.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::{FileLock, Store};
use crate::error::IoContext;
use crate::spec::{Config, Descriptor, Document, media};
use crate::{Digest, Result, limits, spec};

/// What a collection freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    pub items: u64,
    pub bytes: u64,
}

/// What is reachable, by the names of files.
#[derive(Default)]
struct Marks {
    blobs: HashSet<Digest>,
    /// Hexadecimal digits: names in `layers`, `erofs` and `kernels`.
    derived: HashSet<String>,
}

impl Store {
    /// Removes what is unreachable; none if something is being added just now.
    pub fn collect(&self) -> Result<Option<Collected>> {
        let Some(_lock) = FileLock::try_exclusive(&self.path("lock"))? else { return Ok(None) };
        let mut marks = Marks::default();
        for reference in self.references()? {
            self.mark(&reference.target, &mut marks);
        }
        for lease in self.leases()? {
            self.mark(&lease.target, &mut marks);
        }
        let mut freed = Collected::default();
        for algorithm in ["sha256", "sha512"] {
            self.sweep(&format!("blobs/{algorithm}"), &mut freed, |name| {
                format!("{algorithm}:{name}").parse().is_ok_and(|d| marks.blobs.contains(&d))
            })?;
        }
        for dir in ["layers", "erofs", "kernels"] {
            self.sweep(dir, &mut freed, |name| {
                let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
                marks.derived.contains(stem)
            })?;
        }
        // Nobody adds anything now, so whatever is unfinished is abandoned.
        for dir in ["partial", "tmp", "locks"] {
            self.sweep(dir, &mut freed, |_| false)?;
        }
        Ok(Some(freed))
    }

    /// Marks what a descriptor reaches. A document that cannot be read reaches
    /// nothing further: it cannot be used either.
    fn mark(&self, target: &Descriptor, marks: &mut Marks) {
        if !marks.blobs.insert(target.digest) {
            return;
        }
        match self.document(target) {
            Ok(Document::Index(index)) => {
                for manifest in &index.manifests {
                    // Other platforms' manifests are mostly not in the store.
                    if self.has_blob(manifest.digest) {
                        self.mark(manifest, marks);
                    }
                }
            }
            Ok(Document::Manifest(manifest)) => {
                marks.blobs.insert(manifest.config.digest);
                marks.blobs.extend(manifest.layers.iter().map(|layer| layer.digest));
                marks.derived.insert(target.digest.hex());
                if manifest.config.media_type == media::KERNEL_CONFIG {
                    return;
                }
                let config = self
                    .small_blob("the configuration", &manifest.config, limits::CONFIG_BYTES)
                    .and_then(|bytes| Config::parse(&bytes));
                if let Ok(config) = config {
                    let chain = spec::chain_ids(&config.rootfs.diff_ids);
                    marks.derived.extend(chain.iter().map(Digest::hex));
                }
            }
            Err(_) => {}
        }
    }

    fn sweep(&self, dir: &str, freed: &mut Collected, keep: impl Fn(&str) -> bool) -> Result<()> {
        let dir = self.path(dir);
        for entry in fs::read_dir(&dir).at("reading", &dir)? {
            let entry = entry.at("reading", &dir)?;
            if entry.file_name().to_str().is_some_and(&keep) {
                continue;
            }
            let path = entry.path();
            let is_dir = entry.file_type().at("reading", &path)?.is_dir();
            freed.bytes += size_on_disk(&path);
            // Lock files are no one's data.
            freed.items += u64::from(!dir.ends_with("locks"));
            if is_dir {
                remove_tree(&path).at("removing", &path)?;
            } else {
                fs::remove_file(&path).at("removing", &path)?;
            }
        }
        Ok(())
    }
}

/// Removes a directory whose subdirectories may be closed to their owner.
pub(crate) fn remove_tree(path: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        other => other,
    }
}

fn open_up(dir: &Path) -> std::io::Result<()> {
    fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

fn size_on_disk(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let below = if metadata.is_dir() {
        fs::read_dir(path)
            .map(|dir| dir.flatten().map(|entry| size_on_disk(&entry.path())).sum())
            .unwrap_or(0)
    } else {
        0
    };
    metadata.blocks() * 512 + below
}
