//! Facts about an image.

use std::path::Path;

use serde::Serialize;

use crate::error::Result;
use crate::format::Detail;
use crate::formats::qcow2::SnapshotInfo;
use crate::graph::{BackingPolicy, Image, Node, OpenOptions};

/// What `info` tells, with the names that QEMU's tools use.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<SnapshotEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename_format: Option<String>,
    pub virtual_size: u64,
    pub filename: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u64>,
    pub format: &'static str,
    pub actual_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_backing_filename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format_specific: Option<Specific>,
    pub dirty_flag: bool,
}

/// Facts of one format.
#[derive(Clone, Debug, Serialize)]
pub struct Specific {
    #[serde(rename = "type")]
    pub kind: &'static str,
    #[serde(serialize_with = "as_map")]
    pub data: Vec<(String, Detail)>,
}

fn as_map<S: serde::Serializer>(
    data: &[(String, Detail)],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    Detail::Map(data.to_vec()).serialize(serializer)
}

/// A snapshot in a list.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotEntry {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icount: Option<u64>,
    pub vm_clock_nsec: u64,
    pub name: String,
    pub date_sec: u32,
    pub date_nsec: u32,
    pub vm_clock_sec: u64,
    pub id: String,
    pub vm_state_size: u64,
}

impl From<&SnapshotInfo> for SnapshotEntry {
    fn from(info: &SnapshotInfo) -> Self {
        Self {
            icount: info.icount,
            vm_clock_nsec: info.vm_clock_ns % 1_000_000_000,
            name: info.name.clone(),
            date_sec: info.date.0,
            date_nsec: info.date.1,
            vm_clock_sec: info.vm_clock_ns / 1_000_000_000,
            id: info.id.clone(),
            vm_state_size: info.vm_state_size,
        }
    }
}

/// Facts about one image, without opening what is below it.
pub fn info(path: &Path, options: &OpenOptions) -> Result<ImageInfo> {
    let options = OpenOptions {
        backing: match &options.backing {
            // A data file is needed to open the image at all.
            BackingPolicy::SameDirectory => BackingPolicy::Ignore,
            other => other.clone(),
        },
        without_contents: true,
        ..options.clone()
    };
    let layer_only = OpenOptions { backing: BackingPolicy::Ignore, ..options };
    let image = Image::open(path, &layer_only)?;
    let format = image.format();
    let backing = format.backing();
    let full = backing.as_ref().map(|reference| {
        let dir = path.parent().unwrap_or(Path::new(""));
        dir.join(&reference.name).display().to_string()
    });
    let details = format.details();
    let encrypted = details.iter().any(|(key, _)| key == "encrypt").then_some(true);
    let raw = image.kind() == crate::format::FormatKind::Raw;
    Ok(ImageInfo {
        snapshots: format
            .as_qcow2()
            .map(|qcow2| qcow2.snapshots().iter().map(SnapshotEntry::from).collect())
            .unwrap_or_default(),
        backing_filename_format: backing.as_ref().and_then(|reference| reference.format.clone()),
        virtual_size: image.size(),
        filename: path.display().to_string(),
        cluster_size: (!raw).then(|| format.cluster_size()),
        format: image.kind().qemu_name(),
        actual_size: image.allocated_bytes()?,
        encrypted,
        full_backing_filename: full,
        backing_filename: backing.map(|reference| reference.name),
        format_specific: (!details.is_empty())
            .then(|| Specific { kind: image.kind().qemu_name(), data: details }),
        dirty_flag: format.as_qcow2().is_some_and(|qcow2| qcow2.is_dirty()),
    })
}
