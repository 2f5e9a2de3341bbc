//! `DiskDescriptor.xml`: which files a Parallels disk consists of, and which
//! of them are snapshots below others.
//!
//! A snapshot tree goes from the top's identifier by `ParentGUID` to the root;
//! each snapshot has one file in each part of the disk. Disks of one part are
//! read, which is what Parallels makes unless asked to split.

use crate::error::{Blame, Result};
use crate::storage::{Storage, read_vec};

/// What the file is called in the disk's directory.
pub const FILE_NAME: &str = "DiskDescriptor.xml";

const ROOT: &str = "Parallels_disk_image";
const MAX_TEXT: u64 = 1 << 20;
const MAX_LAYERS: usize = 64;
const SECTOR: u64 = 512;
/// The parent of what has none.
const NOBODY: &str = "{00000000-0000-0000-0000-000000000000}";

/// A disk as its description has it.
#[derive(Debug)]
pub struct Bundle {
    pub size: u64,
    /// The lowest first.
    pub layers: Vec<Layer>,
    pub(crate) blame: Blame,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Relative to the description.
    pub file: String,
    /// The file is the disk, byte for byte.
    pub plain: bool,
}

impl Bundle {
    /// Reads a description; `None` where the file is something else.
    pub fn read(storage: &dyn Storage) -> Result<Option<Self>> {
        let len = storage.len()?.min(MAX_TEXT);
        let head = read_vec(storage, 0, len.min(1024) as usize)?;
        if !String::from_utf8_lossy(&head).contains(ROOT) {
            return Ok(None);
        }
        let blame = Blame::new("parallels", storage.name());
        let bytes = read_vec(storage, 0, len as usize)?;
        Self::parse(&String::from_utf8_lossy(&bytes), blame).map(Some)
    }

    fn parse(text: &str, blame: Blame) -> Result<Self> {
        let missing = |what: &str| blame.corrupt(format!("it has no {what}"));
        let disk = element(text, ROOT).ok_or_else(|| missing(ROOT))?;
        let sectors = element(disk, "Disk_Parameters")
            .and_then(|parameters| element(parameters, "Disk_size"))
            .and_then(|size| size.trim().parse::<u64>().ok())
            .ok_or_else(|| missing("Disk_size"))?;
        let size = sectors.checked_mul(SECTOR).filter(|&size| size <= i64::MAX as u64);
        let size = size.ok_or_else(|| blame.corrupt(format!("a disk of {sectors} sectors")))?;
        let storage = element(disk, "StorageData").ok_or_else(|| missing("StorageData"))?;
        let parts: Vec<&str> = elements(storage, "Storage").take(2).collect();
        let [part] = parts[..] else {
            return Err(blame.unsupported("disks that are split into parts"));
        };
        let mut files = Vec::new();
        for image in elements(part, "Image").take(MAX_LAYERS + 1) {
            let field = |name| element(image, name).map(|text| unescape(text.trim()));
            let plain = match field("Type").as_deref() {
                Some("Compressed") => false,
                Some("Plain") => true,
                other => {
                    return Err(
                        blame.unsupported(format!("files of type {}", other.unwrap_or("?")))
                    );
                }
            };
            let file = field("File").filter(|file| !file.is_empty());
            let file = file.ok_or_else(|| missing("File"))?;
            let id = field("GUID").ok_or_else(|| missing("GUID"))?;
            files.push((id, Layer { file, plain }));
        }
        let layers = match element(disk, "Snapshots") {
            Some(snapshots) => order(&files, snapshots, &blame)?,
            None if files.len() == 1 => files.into_iter().map(|(_, layer)| layer).collect(),
            None => return Err(missing("Snapshots")),
        };
        Ok(Self { size, layers, blame })
    }
}

/// Follows the parents from the top, and puts the lowest first.
fn order(files: &[(String, Layer)], snapshots: &str, blame: &Blame) -> Result<Vec<Layer>> {
    let shots: Vec<(&str, &str)> = elements(snapshots, "Shot")
        .take(MAX_LAYERS + 1)
        .filter_map(|shot| {
            Some((element(shot, "GUID")?.trim(), element(shot, "ParentGUID")?.trim()))
        })
        .collect();
    let mut id = match element(snapshots, "TopGUID") {
        Some(top) => top.trim(),
        // Older descriptions: the one that nobody has below him.
        None => shots
            .iter()
            .map(|(id, _)| *id)
            .find(|id| !shots.iter().any(|(_, parent)| parent == id))
            .ok_or_else(|| blame.corrupt("its snapshots are a circle"))?,
    };
    let mut layers = Vec::new();
    while id != NOBODY {
        if layers.len() == MAX_LAYERS {
            return Err(blame.corrupt("its snapshots are a circle, or too many"));
        }
        let (_, layer) = files
            .iter()
            .find(|(own, _)| own == id)
            .ok_or_else(|| blame.corrupt(format!("it has no file for snapshot {id}")))?;
        layers.push(layer.clone());
        id = shots
            .iter()
            .find(|(own, _)| *own == id)
            .map(|(_, parent)| *parent)
            .ok_or_else(|| blame.corrupt(format!("it does not list snapshot {id}")))?;
    }
    layers.reverse();
    Ok(layers)
}

/// The contents of the first element of this name.
fn element<'a>(text: &'a str, name: &'a str) -> Option<&'a str> {
    elements(text, name).next()
}

/// The contents of elements that are not within one of the same name.
fn elements<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let at = rest.find('<')?;
            rest = &rest[at + 1..];
            let Some(after) = rest.strip_prefix(name) else { continue };
            if !after.starts_with(['>', ' ', '\t', '\r', '\n']) {
                continue;
            }
            let start = after.find('>')? + 1;
            let content = &after[start..];
            let end = content.match_indices("</").find(|(at, _)| {
                let tag = &content[at + 2..];
                tag.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with('>'))
            })?;
            rest = &content[end.0..];
            return Some(&content[..end.0]);
        }
    })
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&")
}

#[cfg(test)]
mod tests;
