//! Docker archives: `manifest.json` beside configurations and layers, which
//! are plain tar files.

use serde::{Deserialize, Serialize};

use super::import::{Imported, add_stream};
use super::source::Source;
use crate::progress::Progress;
use crate::spec::{Config, Manifest, media};
use crate::store::Session;
use crate::{Error, Result, limits};

/// One image of an archive.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Item {
    pub config: String,
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    pub layers: Vec<String>,
}

pub fn import(
    session: &Session<'_>,
    source: &Source,
    which: Option<&str>,
    progress: &dyn Progress,
) -> Result<Imported> {
    let bytes = source.small("manifest.json", limits::MANIFEST_BYTES)?;
    let items: Vec<Item> =
        serde_json::from_slice(&bytes).map_err(|e| source.bad(format!("manifest.json: {e}")))?;
    let named = |item: &Item, name: &str| item.repo_tags.iter().flatten().any(|tag| tag == name);
    let item = match (which, &items[..]) {
        (Some(which), items) => items
            .iter()
            .find(|item| named(item, which))
            .ok_or_else(|| source.bad(format!("it has no image {which:?}")))?,
        (None, [only]) => only,
        (None, []) => return Err(source.bad("it has no image")),
        (None, _) => {
            let names: Vec<&str> = items
                .iter()
                .flat_map(|i| i.repo_tags.iter().flatten())
                .map(String::as_str)
                .collect();
            return Err(
                source.bad(format!("it has several images; say which of {}", names.join(", ")))
            );
        }
    };
    let config_bytes = source.small(&item.config, limits::CONFIG_BYTES)?;
    let config = Config::parse(&config_bytes)?;
    if config.rootfs.diff_ids.len() != item.layers.len() {
        return Err(source.bad("its configuration and its manifest.json disagree about layers"));
    }
    let mut layers = Vec::new();
    for (name, diff_id) in item.layers.iter().zip(&config.rootfs.diff_ids) {
        let file =
            source.file(name)?.ok_or_else(|| source.bad(format!("layer {name} is missing")))?;
        let meter = progress.start("copying", *diff_id, 0);
        let layer = add_stream(session, media::OCI_LAYER, meter.reader(file), source.path())?;
        meter.finish();
        // Layers in these archives are as a rule not compressed; then the
        // digest that the configuration promises can be checked at once.
        let mut start = [0; 6];
        let n = std::io::Read::read(&mut session.blob("layer", layer.digest)?, &mut start)
            .map_err(|e| source.bad(e.to_string()))?;
        let media_type = match crate::Compression::of(&start[..n]) {
            Ok(crate::Compression::Gzip) => media::OCI_LAYER_GZIP,
            Ok(crate::Compression::Zstd) => media::OCI_LAYER_ZSTD,
            Ok(crate::Compression::None) if layer.digest == *diff_id => media::OCI_LAYER,
            Ok(crate::Compression::None) => {
                let what = format!("layer {name}");
                return Err(Error::wrong_digest(what, *diff_id, layer.digest));
            }
            Err(kind) => return Err(source.bad(format!("layer {name} is compressed as {kind}"))),
        };
        layers.push(crate::spec::Descriptor { media_type: media_type.into(), ..layer });
    }
    let config = session.add_bytes(media::OCI_CONFIG, &config_bytes)?;
    let target = session.add_json(media::OCI_MANIFEST, &Manifest::oci(config, layers))?;
    Ok(Imported { target, name: item.repo_tags.iter().flatten().next().cloned() })
}
