//! Where the contents of a disk are.

use serde::Serialize;

use crate::error::Result;
use crate::format::FormatKind;
use crate::graph::{Image, Node, Status};

/// One stretch, as `map` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapEntry {
    pub start: u64,
    pub length: u64,
    pub depth: usize,
    pub present: bool,
    pub zero: bool,
    pub data: bool,
    pub compressed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    #[serde(skip)]
    pub file: Option<String>,
}

/// All stretches of a part of the disk, neighbours joined.
pub fn map(
    image: &Image,
    start: u64,
    len: u64,
    mut tell: impl FnMut(MapEntry) -> Result<()>,
) -> Result<()> {
    let end = start.saturating_add(len).min(image.size());
    let mut offset = start;
    let mut pending: Option<MapEntry> = None;
    while offset < end {
        let status = image.status(offset, end - offset)?;
        let entry = entry(image, offset, &status)?;
        offset += status.len;
        match &mut pending {
            Some(before) if joins(before, &entry) => before.length += entry.length,
            _ => {
                if let Some(before) = pending.replace(entry) {
                    tell(before)?;
                }
            }
        }
    }
    match pending {
        Some(entry) => tell(entry),
        None => Ok(()),
    }
}

fn entry(image: &Image, start: u64, status: &Status) -> Result<MapEntry> {
    let layer = image.layer(status.depth);
    let file = match (layer, status.place) {
        (Some(layer), Some(place)) => layer
            .format()
            .storages()
            .get(usize::from(place.file))
            .map(|storage| storage.name().to_owned()),
        _ => None,
    };
    // A raw layer has an opinion on everything, holes included.
    let raw = layer.is_some_and(|layer| layer.kind() == FormatKind::Raw);
    Ok(MapEntry {
        start,
        length: status.len,
        depth: status.depth,
        present: status.present || raw,
        zero: status.zero,
        data: status.data,
        compressed: status.compressed,
        offset: status.place.map(|place| place.offset),
        file,
    })
}

fn joins(before: &MapEntry, next: &MapEntry) -> bool {
    let follows = match (before.offset, next.offset) {
        (Some(a), Some(b)) => a + before.length == b,
        (None, None) => true,
        _ => false,
    };
    follows
        && before.file == next.file
        && (before.depth, before.present, before.zero, before.data, before.compressed)
            == (next.depth, next.present, next.zero, next.data, next.compressed)
}
