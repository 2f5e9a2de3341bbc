//! Folders that hold a root file system: they become images of one layer.

use std::path::Path;

use crate::spec::{Config, Descriptor, Manifest, Platform, Process, media};
use crate::store::Session;
use crate::{Error, Result};

/// Where an image that says nothing else has its programs.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Puts a copy of a folder into the store. The same files make the same image at any time.
pub fn import_folder(session: &Session<'_>, folder: &Path) -> Result<Descriptor> {
    let bad = |why: &str| Error::BadArchive { path: folder.to_owned(), why: why.into() };
    if !folder.is_dir() {
        return Err(bad("it is no folder"));
    }
    let (layer, diff_id) = session.pack_folder(folder)?.ok_or_else(|| bad("it is empty"))?;
    let process = Process { env: vec![PATH.into()], ..Process::default() };
    let config = Config::of_layers(Platform::host(), vec![diff_id]);
    let config =
        session.add_json(media::OCI_CONFIG, &Config { config: Some(process), ..config })?;
    session.add_json(media::OCI_MANIFEST, &Manifest::oci(config, vec![layer]))
}

#[cfg(test)]
mod tests;
