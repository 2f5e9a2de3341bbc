//! The partitions of a disk, read from its contents without mounting anything.
//!
//! Tables come from guests: counts, sizes and links are bounded, and what does
//! not lie in the disk is not told.

mod gpt;
mod mbr;

use serde::Serialize;

use crate::error::Result;
use crate::graph::Node;

/// How a disk is divided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PartitionTable {
    pub scheme: Scheme,
    /// The disk's identifier as tools print it.
    pub id: String,
    /// What is wrong with it, if something is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<&'static str>,
    pub partitions: Vec<Partition>,
}

/// The kind of table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    Gpt,
    Mbr,
}

/// A stretch of a disk with a number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Partition {
    pub number: u32,
    /// In bytes, as is the length.
    pub start: u64,
    pub length: u64,
    #[serde(rename = "type")]
    pub kind: String,
    pub name: String,
    pub bootable: bool,
}

/// Reads the partition table; none where the disk has none.
pub fn partitions(disk: &dyn Node) -> Result<Option<PartitionTable>> {
    let Some(first) = sector(disk, 0, 512)?.filter(|first| first.ends_with(&[0x55, 0xaa])) else {
        return gpt::read(disk);
    };
    if mbr::is_protective(&first)
        && let Some(table) = gpt::read(disk)?
    {
        return Ok(Some(table));
    }
    mbr::read(disk, &first)
}

/// Bytes of a disk, if it has them.
fn sector(disk: &dyn Node, offset: u64, len: usize) -> Result<Option<Vec<u8>>> {
    if offset.checked_add(len as u64).is_none_or(|end| end > disk.size()) {
        return Ok(None);
    }
    let mut bytes = vec![0; len];
    disk.read(offset, &mut bytes)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests;
