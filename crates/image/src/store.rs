//! The content store: one directory that holds every image of a user.
//!
//! ```text
//! format            the layout's version
//! lock              shared while something is added, exclusive for a collection
//! blobs/sha256/HEX  manifests, configurations, layers: immutable, verified on the way in
//! refs/HEX.json     one image name each (HEX is the digest of the name)
//! leases/OWNER.json what an instance keeps alive without a name
//! partial/ALG-HEX   blobs that are being fetched, resumed after an interruption
//! locks/            one file per thing that only one process at a time may make
//! tmp/              things that get their name when they are whole
//! layers/HEX/       a layer as a directory for overlayfs, by chain id
//! erofs/HEX.erofs   a root file system as one image, by chain id
//! kernels/HEX/      vmlinuz and modules, by manifest digest
//! ```
//!
//! Everything gets its final name by a rename once it is whole and on disk.
//! A process may be killed at any point: what it leaves is in `partial` or
//! `tmp`, where nothing looks for images, and goes at the next collection.

mod blobs;
mod gc;
mod lock;
mod refs;
mod scratch;

pub use gc::Collected;
pub(crate) use gc::remove_tree;
pub use lock::FileLock;
pub use refs::Reference;
pub use scratch::Scratch;

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::IoContext;
use crate::spec::{self, Config, Descriptor, Document, Manifest, Platform, media};
use crate::{Digest, Error, Name, Result, limits};

/// The layout's version.
const FORMAT: u32 = 1;

/// A content store.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// Held while things are added: no collection runs meanwhile.
#[derive(Debug)]
pub struct Session<'a> {
    store: &'a Store,
    _lock: FileLock,
}

/// An image whose manifest and configuration have been read.
#[derive(Debug, Clone)]
pub struct Image {
    /// The manifest's descriptor.
    pub descriptor: Descriptor,
    pub manifest: Manifest,
    pub config: Config,
}

impl Image {
    /// The identity of each layer on top of those below it, bottom first.
    #[must_use]
    pub fn chain_ids(&self) -> Vec<Digest> {
        spec::chain_ids(&self.config.rootfs.diff_ids)
    }

    /// The identity of the whole root file system.
    #[must_use]
    pub fn chain_id(&self) -> Digest {
        self.chain_ids().last().copied().unwrap_or_else(|| Digest::of(b""))
    }

    /// The WebAssembly program that it consists of, unless it is a root file system.
    #[must_use]
    pub fn module(&self) -> Option<&Descriptor> {
        self.manifest.module()
    }

    /// Whether what it runs is WebAssembly.
    #[must_use]
    pub fn is_wasm(&self) -> bool {
        let program = self.config.config.as_ref().and_then(|process| {
            process.entrypoint.first().or_else(|| process.cmd.first()).map(String::as_str)
        });
        self.config.platform().is_wasm() || program.is_some_and(|name| name.ends_with(".wasm"))
    }

    /// Bytes of its blobs in the store.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.manifest.layers.iter().map(|layer| layer.size).sum::<u64>()
            + self.manifest.config.size
            + self.descriptor.size
    }
}

impl Store {
    /// Opens the store in a directory, which is made if it is not there.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let store = Self { root: root.into() };
        let format = store.root.join("format");
        match fs::read_to_string(&format) {
            Ok(found) if found.trim() == FORMAT.to_string() => return Ok(store),
            Ok(found) => {
                return Err(Error::NewerStore {
                    path: store.root,
                    found: found.trim().to_owned(),
                    known: FORMAT,
                });
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).at("reading", &format),
        }
        for dir in [
            "blobs/sha256",
            "blobs/sha512",
            "refs",
            "leases",
            "partial",
            "locks",
            "tmp",
            "layers",
            "erofs",
            "kernels",
        ] {
            let dir = store.root.join(dir);
            fs::create_dir_all(&dir).at("making", &dir)?;
        }
        // Layers hold other people's set-user-id files: nobody else may walk in.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&store.root, private).at("protecting", &store.root)?;
        write_atomically(&format, FORMAT.to_string().as_bytes(), &store.root.join("tmp"))?;
        Ok(store)
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Begins adding things.
    pub fn session(&self) -> Result<Session<'_>> {
        let lock = FileLock::shared(&self.root.join("lock"))?;
        Ok(Session { store: self, _lock: lock })
    }

    /// The image of a name, for a platform (this host's, unless said otherwise).
    pub fn image(&self, name: &Name, platform: Option<&Platform>) -> Result<Image> {
        let reference = self.reference(name)?;
        self.image_of(&reference.target, &name.to_string(), platform)
    }

    /// The image behind a manifest's or an index's descriptor.
    pub fn image_of(
        &self,
        target: &Descriptor,
        name: &str,
        platform: Option<&Platform>,
    ) -> Result<Image> {
        let host = Platform::host();
        let wanted = platform.unwrap_or(&host);
        match self.document(target)? {
            Document::Manifest(manifest) => {
                if manifest.config.media_type == media::KERNEL_CONFIG {
                    return Err(Error::IsKernel(name.to_owned()));
                }
                let bytes =
                    self.small_blob("the configuration", &manifest.config, limits::CONFIG_BYTES)?;
                let config = Config::of(&manifest, &bytes, name)?;
                if let Some(platform) = platform
                    && !config.platform().serves(platform)
                {
                    return Err(Error::NoPlatform {
                        image: name.to_owned(),
                        wanted: platform.to_string(),
                        available: config.platform().to_string(),
                    });
                }
                Ok(Image { descriptor: target.clone(), manifest, config })
            }
            Document::Index(index) => {
                let chosen = choose(&index.manifests, wanted, name)?;
                if chosen.is_index() {
                    return Err(Error::malformed(format!("image {name}"), "an index in an index"));
                }
                self.image_of(chosen, name, None)
            }
        }
    }

    /// A manifest or an index.
    pub fn document(&self, target: &Descriptor) -> Result<Document> {
        let bytes = self.small_blob("the manifest", target, limits::MANIFEST_BYTES)?;
        Document::parse(&bytes, &target.media_type)
    }

    /// A path within the store.
    pub(crate) fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.join(below)
    }
}

impl std::ops::Deref for Session<'_> {
    type Target = Store;

    fn deref(&self) -> &Store {
        self.store
    }
}

/// The manifest of an index that serves a platform: the first that matches. WebAssembly
/// serves this host where nothing else does.
pub(crate) fn choose<'a>(
    manifests: &'a [Descriptor],
    wanted: &Platform,
    name: &str,
) -> Result<&'a Descriptor> {
    if let [only] = manifests
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let mut matching = manifests
        .iter()
        .filter(|m| m.platform.as_ref().is_some_and(|platform| platform.serves(wanted)));
    let of_wasm = || {
        let is_wasm = |m: &&Descriptor| m.platform.as_ref().is_some_and(Platform::is_wasm);
        manifests.iter().find(is_wasm).filter(|_| *wanted == Platform::host())
    };
    matching.next().or_else(of_wasm).ok_or_else(|| {
        let mut available: Vec<String> = manifests
            .iter()
            .filter_map(|m| m.platform.as_ref())
            // What build tools attach their attestations to.
            .filter(|platform| platform.os != "unknown")
            .map(Platform::to_string)
            .collect();
        available.sort();
        available.dedup();
        Error::NoPlatform {
            image: name.to_owned(),
            wanted: wanted.to_string(),
            available: if available.is_empty() { "none".into() } else { available.join(", ") },
        }
    })
}

/// Replaces a small file: its old or its new contents survive any crash.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8], tmp: &Path) -> Result<()> {
    let temporary = tmp.join(unique_name());
    fs::write(&temporary, bytes).at("writing", &temporary)?;
    fs::File::open(&temporary).and_then(|f| f.sync_all()).at("writing", &temporary)?;
    fs::rename(&temporary, path).at("writing", path)?;
    sync_dir(path.parent().unwrap_or(path))
}

/// Makes renames within a directory survive a power failure.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).at("syncing", dir)
}

/// An unnamed file below `dir`, gone when it is closed.
pub(crate) fn scratch_file(dir: &Path) -> Result<fs::File> {
    let path = dir.join(unique_name());
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).open(&path).at("making", &path)?;
    fs::remove_file(&path).at("unlinking", &path)?;
    Ok(file)
}

/// A name that no other process and no other thread uses.
pub(crate) fn unique_name() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    format!("{}-{now:x}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests;
