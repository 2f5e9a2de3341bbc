//! Images out of files.

use std::path::Path;

use super::source::Source;
use super::{docker, module, oci};
use crate::codec::Compression;
use crate::error::IoContext;
use crate::limits::Limits;
use crate::progress::Progress;
use crate::spec::{Config, Descriptor, History, Manifest, Platform, Process, media};
use crate::store::Session;
use crate::{Error, Result, clock, layer};

/// What an archive held.
#[derive(Debug, Clone)]
pub struct Imported {
    pub target: Descriptor,
    /// What the archive itself calls the image, if anything.
    pub name: Option<String>,
}

/// Reads an image from a file or an OCI layout. `which` chooses among several
/// by the names they have in there.
pub fn import(
    session: &Session<'_>,
    path: &Path,
    which: Option<&str>,
    limits: Limits,
    progress: &dyn Progress,
) -> Result<Imported> {
    if module::is_module(path)? {
        let target = module::import_module(session, path)?;
        return Ok(Imported { target, name: None });
    }
    let source = Source::open(session, path)?;
    let imported = if source.file("index.json")?.is_some() {
        oci::import(session, &source, which, progress)?
    } else if source.file("manifest.json")?.is_some() {
        docker::import(session, &source, which, progress)?
    } else if path.is_dir() {
        return Err(source.bad("it is a directory, but no OCI layout (it has no index.json)"));
    } else {
        let target = root_file_system(session, path, limits, progress)?;
        return Ok(Imported { target, name: None });
    };
    // What could not be started must not get a name.
    match session.image_of(&imported.target, &path.display().to_string(), None) {
        Ok(_) | Err(Error::IsKernel(_) | Error::NoPlatform { .. }) => Ok(imported),
        Err(e) => Err(e),
    }
}

/// A tar file of a root file system becomes an image of one layer.
fn root_file_system(
    session: &Session<'_>,
    path: &Path,
    limits: Limits,
    progress: &dyn Progress,
) -> Result<Descriptor> {
    let size = std::fs::metadata(path).at("reading", path)?.len();
    let mut file = std::fs::File::open(path).at("opening", path)?;
    let mut writer = session.blob_writer()?;
    std::io::copy(&mut file, &mut writer).at("copying", path)?;
    let (digest, stored) = writer.finish()?;
    let meter = progress.start("reading", digest, size);
    let explain = |e| Error::Layer { layer: digest, source: Box::new(e) };
    let blob = session.blob("layer", digest)?;
    let mut source = layer::source::Source::new(meter.reader(blob), limits).map_err(explain)?;
    let mut entries: u64 = 0;
    while source.next_entry().map_err(explain)?.is_some() {
        entries += 1;
    }
    if entries == 0 {
        return Err(Error::BadArchive { path: path.to_owned(), why: "it is empty".into() });
    }
    let diff_id = source.digest().map_err(explain)?;
    meter.finish();
    let mut start = [0; 6];
    let n =
        std::io::Read::read(&mut session.blob("layer", digest)?, &mut start).at("reading", path)?;
    let media_type = match Compression::of(&start[..n]) {
        Ok(Compression::Gzip) => media::OCI_LAYER_GZIP,
        Ok(Compression::Zstd) => media::OCI_LAYER_ZSTD,
        _ => media::OCI_LAYER,
    };
    let now = clock::now();
    let config = Config {
        created: Some(now.clone()),
        config: Some(Process { cmd: vec!["/bin/sh".into()], ..Process::default() }),
        history: vec![History {
            created: Some(now),
            created_by: Some("guise image import".into()),
            ..History::default()
        }],
        ..Config::of_layers(Platform::host(), vec![diff_id])
    };
    let config = session.add_json(media::OCI_CONFIG, &config)?;
    let layer = Descriptor::new(media_type, digest, stored);
    session.add_json(media::OCI_MANIFEST, &Manifest::oci(config, vec![layer]))
}

/// Copies a stream into a blob of unknown digest.
pub(super) fn add_stream(
    session: &Session<'_>,
    media_type: &str,
    mut from: impl std::io::Read,
    path: &Path,
) -> Result<Descriptor> {
    let mut writer = session.blob_writer()?;
    std::io::copy(&mut from, &mut writer).at("copying from", path)?;
    let (digest, size) = writer.finish()?;
    Ok(Descriptor::new(media_type, digest, size))
}
