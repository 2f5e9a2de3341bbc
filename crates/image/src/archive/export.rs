//! Images into files. The same image always gives the same bytes.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::docker::Item;
use super::oci::{LayoutFile, REF_NAME, blob_name};
use crate::codec::Decoder;
use crate::error::IoContext;
use crate::spec::{Descriptor, Document, Index, Platform, media};
use crate::store::{Store, scratch_file};
use crate::tar::{Entry, Kind, Writer};
use crate::{Error, Name, Result, limits};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A directory.
    OciLayout,
    OciArchive,
    DockerArchive,
}

/// Writes an image to a file, which must not be there, or to an OCI layout,
/// which may hold other images.
pub fn export(
    store: &Store,
    name: &Name,
    platform: Option<&Platform>,
    format: Format,
    to: &Path,
) -> Result<()> {
    let _session = store.session()?;
    let target = store.reference(name)?.target;
    match format {
        Format::OciLayout => layout(store, &target, name, to),
        Format::OciArchive => fresh(to, |file| oci_archive(store, &target, name, file, to)),
        Format::DockerArchive => fresh(to, |file| docker_archive(store, name, platform, file, to)),
    }
}

/// Makes a file, and takes it away again if that fails half-way.
fn fresh(to: &Path, write: impl FnOnce(File) -> Result<()>) -> Result<()> {
    let file = File::create_new(to).at("making", to)?;
    let written = write(file);
    if written.is_err() {
        let _ = fs::remove_file(to);
    }
    written
}

/// All blobs that a descriptor reaches, its own last.
fn reachable(store: &Store, target: &Descriptor, blobs: &mut Vec<Descriptor>) -> Result<()> {
    match store.document(target)? {
        Document::Manifest(manifest) => {
            blobs.extend(manifest.layers.iter().cloned());
            blobs.push(manifest.config);
        }
        Document::Index(index) => {
            for manifest in &index.manifests {
                reachable(store, manifest, blobs)?;
            }
        }
    }
    blobs.push(target.clone());
    Ok(())
}

/// What an index calls the image: its tag, as other tools do.
fn named(target: &Descriptor, name: &Name) -> Descriptor {
    let mut target = target.clone();
    let tag = name.tag().map_or_else(|| name.to_string(), str::to_owned);
    target.annotations.insert(REF_NAME.into(), tag);
    target
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::malformed("a document", e))
}

fn index_of(manifests: Vec<Descriptor>) -> Index {
    Index {
        schema_version: 2,
        media_type: Some(media::OCI_INDEX.into()),
        manifests,
        annotations: Default::default(),
    }
}

fn layout(store: &Store, target: &Descriptor, name: &Name, to: &Path) -> Result<()> {
    let mut blobs = Vec::new();
    reachable(store, target, &mut blobs)?;
    for algorithm in ["sha256", "sha512"] {
        let dir = to.join("blobs").join(algorithm);
        fs::create_dir_all(&dir).at("making", &dir)?;
    }
    for blob in &blobs {
        let path = to.join(blob_name(blob));
        if path.is_file() {
            continue;
        }
        let temporary = path.with_extension("part");
        fs::copy(store.blob_path(blob.digest), &temporary).at("copying to", &temporary)?;
        fs::rename(&temporary, &path).at("naming", &path)?;
    }
    let index_path = to.join("index.json");
    let mut manifests = match fs::read(&index_path) {
        Ok(bytes) => {
            serde_json::from_slice::<Index>(&bytes)
                .map_err(|e| Error::BadArchive { path: index_path.clone(), why: e.to_string() })?
                .manifests
        }
        Err(_) => Vec::new(),
    };
    let own = named(target, name);
    manifests.retain(|m| m.annotations.get(REF_NAME) != own.annotations.get(REF_NAME));
    manifests.push(own);
    let marker = to.join("oci-layout");
    fs::write(&marker, json(&LayoutFile::current())?).at("writing", &marker)?;
    let temporary = to.join("index.json.part");
    fs::write(&temporary, json(&index_of(manifests))?).at("writing", &temporary)?;
    fs::rename(&temporary, &index_path).at("naming", &index_path)
}

fn oci_archive(
    store: &Store,
    target: &Descriptor,
    name: &Name,
    file: File,
    to: &Path,
) -> Result<()> {
    let mut blobs = Vec::new();
    reachable(store, target, &mut blobs)?;
    blobs.sort_by_key(|blob| blob.digest);
    blobs.dedup_by_key(|blob| blob.digest);
    let mut tar = Writer::new(BufWriter::with_capacity(256 << 10, file));
    let io = |result: io::Result<()>| result.at("writing", to);
    for blob in &blobs {
        let mut entry = Entry::new(blob_name(blob), Kind::File, 0o644);
        entry.size = blob.size;
        io(tar.append(&entry, store.blob("blob", blob.digest)?))?;
    }
    io(tar.file("index.json", &json(&index_of(vec![named(target, name)]))?))?;
    io(tar.file("oci-layout", &json(&LayoutFile::current())?))?;
    io(tar.finish().and_then(|mut out| out.flush()))
}

fn docker_archive(
    store: &Store,
    name: &Name,
    platform: Option<&Platform>,
    file: File,
    to: &Path,
) -> Result<()> {
    let image = store.image(name, platform)?;
    let mut tar = Writer::new(BufWriter::with_capacity(256 << 10, file));
    let io = |result: io::Result<()>| result.at("writing", to);
    let mut layers = Vec::new();
    for (layer, diff_id) in image.manifest.layers.iter().zip(&image.config.rootfs.diff_ids) {
        let path = format!("{}.tar", diff_id.hex());
        if !layers.contains(&path) {
            // The header says the size, which only unpacking tells.
            let explain = |e| Error::Layer { layer: layer.digest, source: Box::new(e) };
            let blob = store.blob("layer", layer.digest)?;
            let mut decoder = Decoder::new(blob).map_err(explain)?;
            let mut scratch = scratch_file(&store.path("tmp"))?;
            let size = io::copy(&mut decoder, &mut scratch).at("unpacking a layer for", to)?;
            io::Seek::rewind(&mut scratch).at("unpacking a layer for", to)?;
            let mut entry = Entry::new(path.as_bytes(), Kind::File, 0o644);
            entry.size = size;
            io(tar.append(&entry, scratch))?;
        }
        layers.push(path);
    }
    let config = format!("{}.json", image.manifest.config.digest.hex());
    let bytes =
        store.small_blob("the configuration", &image.manifest.config, limits::CONFIG_BYTES)?;
    io(tar.file(&config, &bytes))?;
    let item = Item { config, repo_tags: Some(vec![name.to_string()]), layers };
    io(tar.file("manifest.json", &json(&[item])?))?;
    io(tar.finish().and_then(|mut out| out.flush()))
}
