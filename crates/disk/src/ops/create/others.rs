//! New images in the formats besides raw and qcow2.

use std::path::Path;

use super::{CreateRequest, Options, encryption, new_file};
use crate::error::{Error, Result};
use crate::format::{BackingReference, FormatKind};
use crate::formats::luks::LuksVolume;
use crate::formats::ova::Ova;
use crate::formats::parallels::Parallels;
use crate::formats::raw;
use crate::formats::vdi::Vdi;
use crate::formats::vhd::Vhd;
use crate::formats::vhdx::{self, Vhdx};
use crate::formats::vmdk::{self, Subformat, Vmdk};
use crate::storage::{FileOptions, FileStorage};

fn fixed(options: &mut Options<'_>) -> Result<bool> {
    match options.take("subformat") {
        None | Some("dynamic") => Ok(false),
        Some("fixed") => Ok(true),
        Some(other) => Err(Error::option("subformat", format!("'{other}' is not known"))),
    }
}

/// Makes the image.
pub(super) fn create(
    request: &CreateRequest,
    kind: FormatKind,
    size: u64,
    backing: Option<&BackingReference>,
    mut options: Options<'_>,
) -> Result<()> {
    let layered = matches!(kind, FormatKind::Vmdk | FormatKind::Vhd | FormatKind::Vhdx);
    if let Some(backing) = backing {
        if !layered {
            let what = format!("{} images cannot have one", kind.name());
            return Err(Error::option("backing_file", what));
        }
        let same = backing.format.as_deref().and_then(FormatKind::from_name);
        if same.is_some_and(|format| format != kind) {
            let what = format!("{} images stand on their own format only", kind.name());
            return Err(Error::option("backing_fmt", what));
        }
    }
    match kind {
        FormatKind::Vmdk => vmdk_image(request, size, backing, options),
        FormatKind::Vhd => {
            let fixed = fixed(&mut options)?;
            options.switch("force_size")?;
            let preallocation = options.preallocation()?;
            options.end()?;
            let file = new_file(&request.path, request)?;
            Vhd::create(&*file, size, fixed, preallocation, backing)
        }
        FormatKind::Vhdx => {
            options.switch("block_state_zero")?;
            let choices = vhdx::CreateOptions {
                size,
                block: options.size("block_size")?.unwrap_or(0),
                log: options.size("log_size")?.unwrap_or(0),
                fixed: fixed(&mut options)?,
                preallocation: options.preallocation()?,
                parent: backing.cloned(),
                linkage: match backing {
                    Some(backing) => {
                        Some(Vhdx::open(beside(request, &backing.name)?, false)?.data_identity())
                    }
                    None => None,
                },
            };
            options.end()?;
            Vhdx::create(&*new_file(&request.path, request)?, &choices)
        }
        FormatKind::Vdi => {
            let fixed = options.switch("static")?;
            let preallocation = options.preallocation()?;
            options.end()?;
            Vdi::create(&*new_file(&request.path, request)?, size, fixed, preallocation)
        }
        FormatKind::Parallels => {
            let cluster = options.size("cluster_size")?.unwrap_or(1 << 20);
            let preallocation = options.preallocation()?;
            options.end()?;
            Parallels::create(&*new_file(&request.path, request)?, size, cluster, preallocation)
        }
        FormatKind::Luks => {
            let _secret_is_given_otherwise = options.take("key-secret");
            let luks = encryption::take(&mut options, "")?;
            let preallocation = options.preallocation()?;
            options.end()?;
            let Some(passphrase) = request.passphrases.get() else {
                return Err(Error::option("key-secret", "a LUKS volume needs a passphrase"));
            };
            let file = new_file(&request.path, request)?;
            LuksVolume::create(&*file, size, passphrase, &luks)?;
            let contents = file.len()?.saturating_sub(size);
            raw::preallocate(&*file, contents, size, preallocation)
        }
        FormatKind::Ova => {
            options.end()?;
            Ova::create(&new_file(&request.path, request)?, size)
        }
        FormatKind::Raw | FormatKind::Qcow2 => {
            Err(Error::NoSuchOperation { format: kind.name(), what: "options of that kind" })
        }
    }
}

fn beside(request: &CreateRequest, name: &str) -> Result<crate::storage::SharedStorage> {
    let dir = request.path.parent().unwrap_or(Path::new(""));
    Ok(std::sync::Arc::new(FileStorage::open(&dir.join(name), FileOptions::read())?))
}

fn vmdk_image(
    request: &CreateRequest,
    size: u64,
    backing: Option<&BackingReference>,
    mut options: Options<'_>,
) -> Result<()> {
    let subformat = match options.take("subformat") {
        None => Subformat::default(),
        Some(name) => Subformat::ALL
            .into_iter()
            .find(|subformat| subformat.name() == name)
            .ok_or_else(|| Error::option("subformat", format!("'{name}' is not known")))?,
    };
    let version_6 = options.switch("compat6")?;
    let hardware = match options.take("hwversion") {
        Some(_) if version_6 => {
            return Err(Error::option("compat6", "is hwversion=6: one of them is enough"));
        }
        None if version_6 => Some(6),
        None | Some("undefined") => None,
        Some(number) => Some(
            number
                .parse()
                .map_err(|_| Error::option("hwversion", format!("'{number}' is not a number")))?,
        ),
    };
    let parent_id = match backing {
        Some(backing) => {
            let unread = |name: &str| {
                Err(Error::Backing {
                    name: name.to_owned(),
                    why: "only the parent's own file is looked at".to_owned(),
                })
            };
            let parent = Vmdk::open(beside(request, &backing.name)?, false, &unread)?;
            parent.content_id()
        }
        None => 0,
    };
    let choices = vmdk::CreateOptions {
        size,
        subformat,
        adapter: options.take("adapter_type").map(str::to_owned),
        hardware,
        tools: options.take("toolsversion").map(str::to_owned),
        zeroed_grain: options.switch("zeroed_grain")?,
        preallocation: options.preallocation()?,
        parent: backing.cloned(),
        parent_id,
    };
    options.end()?;
    let name = request.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let dir = request.path.parent().unwrap_or(Path::new("")).to_owned();
    let file = new_file(&request.path, request)?;
    Vmdk::create(&file, &name, &choices, &mut |sibling| new_file(&dir.join(sibling), request))
}
