//! OCI layouts: `oci-layout`, `index.json`, `blobs/`.

use serde::{Deserialize, Serialize};

use super::import::Imported;
use super::source::Source;
use crate::progress::Progress;
use crate::spec::{Descriptor, Document, Index, Platform};
use crate::store::{Session, choose};
use crate::{Result, limits};

/// Under which annotation an index has the names of its images.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The file that says what a directory is.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayoutFile {
    pub image_layout_version: String,
}

impl LayoutFile {
    pub fn current() -> Self {
        Self { image_layout_version: "1.0.0".into() }
    }
}

pub fn import(
    session: &Session<'_>,
    source: &Source,
    which: Option<&str>,
    progress: &dyn Progress,
) -> Result<Imported> {
    let layout: LayoutFile = serde_json::from_slice(&source.small("oci-layout", 4096)?)
        .map_err(|e| source.bad(format!("oci-layout: {e}")))?;
    if layout.image_layout_version != "1.0.0" {
        return Err(source.bad(format!("its layout version is {}", layout.image_layout_version)));
    }
    let index = source.small("index.json", limits::MANIFEST_BYTES)?;
    let index: Index =
        serde_json::from_slice(&index).map_err(|e| source.bad(format!("index.json: {e}")))?;
    let chosen = pick(&index.manifests, which).map_err(|why| source.bad(why))?;
    let name = chosen.annotations.get(REF_NAME).cloned();
    let target = copy(session, source, chosen, progress)?;
    Ok(Imported { target, name })
}

/// The image that was asked for, or the only one.
fn pick<'a>(manifests: &'a [Descriptor], which: Option<&str>) -> Result<&'a Descriptor, String> {
    let name = |m: &'a Descriptor| m.annotations.get(REF_NAME).map(String::as_str);
    match which {
        Some(which) => manifests
            .iter()
            .find(|m| name(m) == Some(which) || m.digest.to_string() == which)
            .ok_or_else(|| format!("it has no image {which:?}")),
        None => match manifests {
            [only] => Ok(only),
            [] => Err("it has no image".into()),
            many => {
                let names: Vec<&str> = many.iter().filter_map(name).collect();
                Err(format!("it has several images; say which of {}", names.join(", ")))
            }
        },
    }
}

/// Copies what a descriptor reaches. Gives the descriptor to name: an index
/// of which not everything is here gives way to this host's manifest.
fn copy(
    session: &Session<'_>,
    source: &Source,
    target: &Descriptor,
    progress: &dyn Progress,
) -> Result<Descriptor> {
    let bytes = source.small(&blob_name(target), limits::MANIFEST_BYTES)?;
    let document = Document::parse(&bytes, &target.media_type)?;
    let plain = Descriptor::new(document.media_type(), target.digest, bytes.len() as u64);
    match document {
        Document::Manifest(manifest) => {
            for blob in manifest.layers.iter().chain([&manifest.config]) {
                let from = source
                    .file(&blob_name(blob))?
                    .ok_or_else(|| source.bad(format!("blob {} is missing", blob.digest)))?;
                let meter = progress.start("copying", blob.digest, blob.size);
                session.add_known(blob, meter.reader(from))?;
                meter.finish();
            }
        }
        Document::Index(index) => {
            let mut whole = true;
            for manifest in &index.manifests {
                whole &= source.file(&blob_name(manifest))?.is_some();
            }
            if !whole {
                let name = source.path().display().to_string();
                let chosen = choose(&index.manifests, &Platform::host(), &name)?;
                return copy(session, source, chosen, progress);
            }
            for manifest in &index.manifests {
                if manifest.is_index() {
                    return Err(source.bad("it has an index in an index"));
                }
                copy(session, source, manifest, progress)?;
            }
        }
    }
    session.add_known(&plain, &bytes[..])?;
    Ok(plain)
}

pub fn blob_name(blob: &Descriptor) -> String {
    format!("blobs/{}/{}", blob.digest.algorithm(), blob.digest.hex())
}
