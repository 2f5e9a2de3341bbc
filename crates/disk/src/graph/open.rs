//! Opening an image, and the images that it refers to.
//!
//! What an image refers to is named by the image, which may come from a
//! stranger: such names are followed only where the caller's policy allows,
//! only so deep, and never in a circle. A format that is not given is found
//! out from the contents for reading, never for writing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Image;
use crate::error::{Error, Result};
use crate::format::{BackingReference, Format, FormatKind, probe};
use crate::formats::luks::LuksVolume;
use crate::formats::ova::Ova;
use crate::formats::parallels::Parallels;
use crate::formats::parallels::bundle::{self, Bundle, Layer};
use crate::formats::qcow2::{self, Qcow2};
use crate::formats::raw::Raw;
use crate::formats::vdi::Vdi;
use crate::formats::vhd::Vhd;
use crate::formats::vhdx::Vhdx;
use crate::formats::vmdk::Vmdk;
use crate::storage::{Access, FileOptions, FileStorage, Share, SharedStorage};

/// The longest chain of backing files.
pub const MAX_DEPTH: usize = 64;

/// Which files an image may refer to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BackingPolicy {
    /// Those in the image's own directory, or below it.
    #[default]
    SameDirectory,
    /// Those in or below these directories, or the image's own.
    Within(Vec<PathBuf>),
    /// All: for images that are trusted.
    Anywhere,
    /// The backing file is not opened: the layer alone.
    Ignore,
}

/// Passphrases for encrypted images.
#[derive(Clone, Default)]
pub struct Passphrases(Option<Arc<Vec<u8>>>);

impl Passphrases {
    /// One passphrase for all images of a chain.
    pub fn one(passphrase: impl Into<Vec<u8>>) -> Self {
        Self(Some(Arc::new(passphrase.into())))
    }

    /// The passphrase, if there is one.
    pub fn get(&self) -> Option<&[u8]> {
        self.0.as_ref().map(|passphrase| &***passphrase)
    }
}

impl std::fmt::Debug for Passphrases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Passphrases(given)" } else { "Passphrases(none)" })
    }
}

/// How an image is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Found out from the contents if not given, which is for reading only.
    pub format: Option<FormatKind>,
    pub write: bool,
    /// Opens for reading although somebody else may be writing.
    pub share: bool,
    /// Past the page cache.
    pub direct: bool,
    /// Flushes are not passed on: for images that can be made again.
    pub unsafe_cache: bool,
    pub backing: BackingPolicy,
    /// The format of the backing file, in place of what the image says.
    pub backing_format: Option<FormatKind>,
    pub passphrases: Passphrases,
    /// Opens damaged images for writing.
    pub for_repair: bool,
    /// Metadata only: no passphrase is needed.
    pub without_contents: bool,
    /// Reads the disk as an internal snapshot has it.
    pub snapshot: Option<String>,
}

impl OpenOptions {
    /// For reading.
    pub fn read(format: Option<FormatKind>) -> Self {
        Self { format, ..Self::default() }
    }

    /// For reading and writing.
    pub fn write(format: FormatKind) -> Self {
        Self { format: Some(format), write: true, ..Self::default() }
    }

    fn file_options(&self, write: bool) -> FileOptions {
        FileOptions {
            access: if write { Access::Write } else { Access::Read },
            share: if self.share { Share::Freely } else { Share::Safely },
            direct: self.direct,
            never_flush: self.unsafe_cache,
            ..FileOptions::read()
        }
    }
}

/// Opens the files of one chain.
struct Opener<'a> {
    options: &'a OpenOptions,
    /// The real paths so far, top first.
    chain: Vec<PathBuf>,
}

impl Image {
    /// Opens an image and what is below it.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        if options.write && options.format.is_none() {
            return Err(Error::option(
                "format",
                format!("say which format '{}' has: it is not guessed for writing", path.display()),
            ));
        }
        Opener { options, chain: Vec::new() }.image(path, options.format, options.write)
    }

    /// Opens an image in storage that is open already; what it refers to is
    /// looked for beside `path`.
    pub fn over(storage: SharedStorage, path: &Path, options: &OpenOptions) -> Result<Self> {
        let mut opener = Opener { options, chain: vec![path.to_owned()] };
        let kind = match options.format {
            Some(kind) => kind,
            None => probe(&*storage)?,
        };
        opener.over(storage, path, kind, options.write)
    }
}

impl Opener<'_> {
    fn image(&mut self, path: &Path, format: Option<FormatKind>, write: bool) -> Result<Image> {
        let described = path.join(bundle::FILE_NAME);
        let path = if described.is_file() { &described } else { path };
        let storage: SharedStorage =
            Arc::new(FileStorage::open(path, self.options.file_options(write))?);
        let real =
            path.canonicalize().map_err(|e| Error::io("open", path.display().to_string(), e))?;
        self.chain.push(real);
        let kind = match format {
            Some(kind) => kind,
            None => probe(&*storage)?,
        };
        self.over(storage, path, kind, write)
    }

    fn over(
        &mut self,
        storage: SharedStorage,
        path: &Path,
        kind: FormatKind,
        write: bool,
    ) -> Result<Image> {
        let top = self.chain.len() <= 1;
        if kind == FormatKind::Parallels
            && let Some(bundle) = Bundle::read(&*storage)?
        {
            return self.bundle(&bundle, path, write);
        }
        let format = self.format(storage, path, kind, write)?;
        if let Some(name) = self.options.snapshot.as_ref().filter(|_| top) {
            let Some(qcow2) = format.as_qcow2() else {
                return Err(Error::NoSuchOperation { format: kind.name(), what: "snapshots" });
            };
            qcow2.view_snapshot(name)?;
        }
        let backing = match format.backing() {
            Some(reference) if self.options.backing != BackingPolicy::Ignore => {
                Some(Arc::new(self.backing(path, &reference, top)?))
            }
            _ => None,
        };
        Ok(Image::new(format, backing, path, write))
    }

    fn format(
        &self,
        storage: SharedStorage,
        path: &Path,
        kind: FormatKind,
        write: bool,
    ) -> Result<Box<dyn Format>> {
        Ok(match kind {
            FormatKind::Raw => Box::new(Raw::open(storage)?),
            FormatKind::Qcow2 => {
                let peek = Qcow2::peek(&*storage)?;
                let data_file = match &peek.data_file {
                    Some(name) => Some(self.sibling(path, name, write)?),
                    None => None,
                };
                let open = qcow2::Open {
                    write,
                    data_file,
                    passphrase: self.options.passphrases.get(),
                    without_contents: self.options.without_contents,
                    for_repair: self.options.for_repair,
                };
                Box::new(Qcow2::open(storage, open)?)
            }
            FormatKind::Vmdk => {
                let sibling = |name: &str| self.sibling(path, name, write);
                Box::new(Vmdk::open(storage, write, &sibling)?)
            }
            FormatKind::Vhd => Box::new(Vhd::open(storage, write)?),
            FormatKind::Vhdx => Box::new(Vhdx::open(storage, write)?),
            FormatKind::Vdi => Box::new(Vdi::open(storage, write)?),
            FormatKind::Parallels => Box::new(Parallels::open(storage, write)?),
            FormatKind::Luks => Box::new(LuksVolume::open(
                storage,
                self.options.passphrases.get(),
                self.options.without_contents,
            )?),
            FormatKind::Ova => Box::new(Ova::open(storage, write)?),
        })
    }

    /// The disk that a description's files make up, lowest layer first.
    fn bundle(&self, bundle: &Bundle, path: &Path, write: bool) -> Result<Image> {
        let mut below = None;
        let mut layers = bundle.layers.iter().peekable();
        while let Some(Layer { file, plain }) = layers.next() {
            let is_top = layers.peek().is_none();
            let write = write && is_top;
            let storage = self.sibling(path, file, write)?;
            let format: Box<dyn Format> = if *plain {
                Box::new(Raw::open(storage)?)
            } else {
                Box::new(Parallels::open(storage, write)?)
            };
            if format.size() != bundle.size {
                return Err(bundle.blame.corrupt(format!(
                    "'{file}' has {} bytes, the disk {}",
                    format.size(),
                    bundle.size
                )));
            }
            let image = Image::new(format, below, path, write);
            if is_top {
                return Ok(image);
            }
            below = Some(Arc::new(image));
        }
        Err(bundle.blame.corrupt("it names no file"))
    }

    /// A file that belongs to the image, by the name that the image has for it.
    fn sibling(&self, path: &Path, name: &str, write: bool) -> Result<SharedStorage> {
        let at = self.allowed(path, name)?;
        Ok(Arc::new(FileStorage::open(&at, self.options.file_options(write))?))
    }

    fn backing(&mut self, path: &Path, reference: &BackingReference, top: bool) -> Result<Image> {
        let refuse =
            |why: &str| Error::Backing { name: reference.name.clone(), why: why.to_owned() };
        if self.chain.len() >= MAX_DEPTH {
            return Err(refuse("the chain of backing files is too long"));
        }
        let at = self.allowed(path, &reference.name)?;
        let real = at.canonicalize().map_err(|e| Error::io("open", at.display().to_string(), e))?;
        if self.chain.contains(&real) {
            return Err(refuse("it is above itself in the chain"));
        }
        let format = match (&reference.format, self.options.backing_format.filter(|_| top)) {
            (_, Some(kind)) => Some(kind),
            (Some(name), None) => Some(
                FormatKind::from_name(name)
                    .ok_or_else(|| refuse(&format!("its format '{name}' is not known")))?,
            ),
            (None, None) => None,
        };
        self.image(&at, format, false)
    }

    /// The path behind a name in an image, if the policy lets it be opened.
    fn allowed(&self, path: &Path, name: &str) -> Result<PathBuf> {
        let refuse = |why: &str| Error::Backing { name: name.to_owned(), why: why.to_owned() };
        if name.is_empty() {
            return Err(refuse("the image does not name it"));
        }
        let plain = name.strip_prefix("file:").unwrap_or(name);
        if plain.starts_with("json:") || plain.contains("://") {
            return Err(refuse("only names of files are followed"));
        }
        let beside = path.parent().unwrap_or(Path::new(""));
        let own = if beside.as_os_str().is_empty() { Path::new(".") } else { beside };
        let at = beside.join(plain);
        let real = |path: &Path| {
            path.canonicalize().map_err(|e| Error::io("open", path.display().to_string(), e))
        };
        let extra: &[PathBuf] = match &self.options.backing {
            BackingPolicy::Anywhere => return Ok(at),
            BackingPolicy::Within(dirs) => dirs,
            BackingPolicy::SameDirectory | BackingPolicy::Ignore => &[],
        };
        let target = real(&at)?;
        // The directory of the top image counts, also further down the chain.
        let top = match self.chain.first().and_then(|first| first.parent()) {
            Some(dir) => dir.to_owned(),
            None => real(own)?,
        };
        let mut dirs = vec![top];
        for dir in extra {
            dirs.push(real(dir)?);
        }
        if !dirs.iter().any(|dir| target.starts_with(dir)) {
            return Err(refuse("it lies outside the directories that images may refer to"));
        }
        Ok(at)
    }
}
