//! New images, from options by name.

mod encryption;
mod help;
mod others;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use help::{OptionHelp, Takes, amend_options, create_options};

use super::parse_size;
use crate::error::{Error, Result};
use crate::format::{BackingReference, FormatKind, Preallocation};
use crate::formats::qcow2::{CreateOptions, Encryption, Qcow2};
use crate::formats::raw::Raw;
use crate::graph::{Image, Node, OpenOptions, Passphrases};
use crate::storage::{FileOptions, FileStorage, SharedStorage};

/// What is to be made.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    pub path: PathBuf,
    pub kind: FormatKind,
    /// Taken from the backing file if not given.
    pub size: Option<u64>,
    /// The format's options by name.
    pub options: BTreeMap<String, String>,
    pub backing: Option<BackingReference>,
    /// Do not look whether the backing file is there.
    pub trust_backing: bool,
    /// How to open the backing file, to learn its size.
    pub open: OpenOptions,
    pub passphrases: Passphrases,
    /// The file need not survive a crash of the host right now.
    pub unsafe_cache: bool,
}

impl CreateRequest {
    /// An image without options.
    pub fn new(path: impl Into<PathBuf>, kind: FormatKind, size: Option<u64>) -> Self {
        Self {
            path: path.into(),
            kind,
            size,
            options: BTreeMap::new(),
            backing: None,
            trust_backing: false,
            open: OpenOptions::default(),
            passphrases: Passphrases::default(),
            unsafe_cache: false,
        }
    }
}

/// The option of every format's files.
const NO_COW: &str = "nocow";

/// Options that are taken out one by one; what is left is not known.
struct Options<'a> {
    kind: FormatKind,
    left: BTreeMap<&'a str, &'a str>,
}

impl<'a> Options<'a> {
    fn take(&mut self, name: &str) -> Option<&'a str> {
        self.left.remove(name)
    }

    fn switch(&mut self, name: &str) -> Result<bool> {
        match self.take(name) {
            None | Some("off" | "false" | "no") => Ok(false),
            Some("on" | "true" | "yes") => Ok(true),
            Some(other) => Err(Error::option(name, format!("takes on or off, not '{other}'"))),
        }
    }

    fn number(&mut self, name: &str) -> Result<Option<u32>> {
        let bad = |text| Error::option(name, format!("'{text}' is not a number"));
        self.take(name).map(|text| text.parse().map_err(|_| bad(text))).transpose()
    }

    fn size(&mut self, name: &str) -> Result<Option<u64>> {
        self.take(name).map(parse_size).transpose()
    }

    fn preallocation(&mut self) -> Result<Preallocation> {
        let Some(name) = self.take("preallocation") else { return Ok(Preallocation::Off) };
        Preallocation::from_name(name)
            .ok_or_else(|| Error::option("preallocation", format!("'{name}' is not known")))
    }

    fn end(self) -> Result<()> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(name) => {
                Err(Error::option(*name, format!("{} has no such option", self.kind.name())))
            }
        }
    }
}

/// Makes an image, and says how large its disk is.
pub fn create(request: &CreateRequest) -> Result<u64> {
    let mut options = Options {
        kind: request.kind,
        left: request.options.iter().map(|(k, v)| (&**k, &**v)).collect(),
    };
    let asked = options.size("size")?;
    // For the file itself, whatever is in it: see `new_file`.
    options.switch(NO_COW)?;
    let backing = match options.take("backing_file") {
        Some(name) => Some(BackingReference {
            name: name.to_owned(),
            format: options.take("backing_fmt").map(str::to_owned),
        }),
        None => request.backing.clone(),
    };
    let size = match request.size.or(asked) {
        Some(size) => {
            if let Some(reference) = backing.as_ref().filter(|_| !request.trust_backing) {
                backing_size(request, reference)?;
            }
            size
        }
        None => match &backing {
            Some(reference) => backing_size(request, reference)?,
            None => return Err(Error::option("size", "a new image needs one")),
        },
    };
    match request.kind {
        FormatKind::Raw => {
            if backing.is_some() {
                return Err(Error::option("backing_file", "raw images cannot have one"));
            }
            let preallocation = options.preallocation()?;
            options.end()?;
            Raw::create(&*new_file(&request.path, request)?, size, preallocation)?;
            Ok(size)
        }
        FormatKind::Qcow2 => {
            let choices = take_qcow2_options(&mut options, size, backing, &request.passphrases)?;
            options.end()?;
            create_qcow2(request, &choices)?;
            Ok(size)
        }
        other => {
            // These formats count in sectors.
            let size = size.next_multiple_of(512);
            others::create(request, other, size, backing.as_ref(), options)?;
            Ok(size)
        }
    }
}

fn new_file(path: &Path, request: &CreateRequest) -> Result<SharedStorage> {
    let no_cow =
        matches!(request.options.get(NO_COW).map(String::as_str), Some("on" | "true" | "yes"));
    let never_flush = request.unsafe_cache;
    let options = FileOptions { never_flush, no_cow, ..FileOptions::create() };
    Ok(Arc::new(FileStorage::open(path, options)?))
}

/// The size of the image below, which has to be there and sound.
fn backing_size(request: &CreateRequest, reference: &BackingReference) -> Result<u64> {
    let dir = request.path.parent().unwrap_or(Path::new(""));
    let format = match &reference.format {
        Some(name) => Some(FormatKind::from_name(name).ok_or_else(|| {
            Error::option("backing_fmt", format!("'{name}' is not a known format"))
        })?),
        None => None,
    };
    let options = OpenOptions { format, write: false, ..request.open.clone() };
    Ok(Image::open(&dir.join(&reference.name), &options)?.size())
}

fn create_qcow2(request: &CreateRequest, choices: &CreateOptions) -> Result<()> {
    let storage = new_file(&request.path, request)?;
    let data_file = match &choices.data_file {
        Some(name) => {
            let dir = request.path.parent().unwrap_or(Path::new(""));
            Some(new_file(&dir.join(name), request)?)
        }
        None => None,
    };
    Qcow2::create(&storage, data_file.as_ref(), choices)
}

/// Choices for a qcow2 image from options by name, for tools that only
/// calculate with them.
pub fn qcow2_options(given: &BTreeMap<String, String>, size: u64) -> Result<CreateOptions> {
    let mut options = Options {
        kind: FormatKind::Qcow2,
        left: given.iter().map(|(k, v)| (&**k, &**v)).collect(),
    };
    let size = options.size("size")?.unwrap_or(size);
    let choices = take_qcow2_options(&mut options, size, None, &Passphrases::default())?;
    options.end()?;
    Ok(choices)
}

fn take_qcow2_options(
    options: &mut Options<'_>,
    size: u64,
    backing: Option<BackingReference>,
    passphrases: &Passphrases,
) -> Result<CreateOptions> {
    let mut choices = CreateOptions::new(size);
    choices.extended_l2 = options.switch("extended_l2")?;
    if let Some(size) = options.size("cluster_size")? {
        choices.cluster_size = size;
    }
    choices.version = match options.take("compat") {
        None | Some("1.1" | "v3" | "3") => 3,
        Some("0.10" | "v2" | "2") => 2,
        Some(other) => return Err(Error::option("compat", format!("'{other}' is not known"))),
    };
    choices.zstd = match options.take("compression_type") {
        None | Some("zlib") => false,
        Some("zstd") => true,
        Some(other) => {
            return Err(Error::option("compression_type", format!("'{other}' is not known")));
        }
    };
    choices.lazy_refcounts = options.switch("lazy_refcounts")?;
    if let Some(bits) = options.number("refcount_bits")? {
        choices.refcount_bits = bits;
    }
    choices.data_file = options.take("data_file").map(str::to_owned);
    choices.data_file_raw = options.switch("data_file_raw")?;
    choices.preallocation = options.preallocation()?;
    choices.backing = backing;
    let _secret_is_given_otherwise = options.take("encrypt.key-secret");
    match options.take("encrypt.format") {
        None => {}
        Some("luks") => {
            let Some(passphrase) = passphrases.get() else {
                return Err(Error::option("encrypt.format", "needs a passphrase"));
            };
            let luks = encryption::take(options, "encrypt.")?;
            choices.encryption = Some(Encryption { passphrase: passphrase.to_vec(), luks });
        }
        Some(other) => {
            return Err(Error::option(
                "encrypt.format",
                format!("new images are encrypted with luks, not '{other}'"),
            ));
        }
    }
    Ok(choices)
}
