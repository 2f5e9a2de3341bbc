//! How large an image would become.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::format::{FormatKind, Preallocation};
use crate::formats::qcow2::CreateOptions;
use crate::graph::{Image, Node};

/// File sizes of a new image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Measurement {
    /// With the data that there is now.
    pub required: u64,
    /// More for the bitmaps, if they come along.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmaps: Option<u64>,
    /// With all of the disk written.
    #[serde(rename = "fully-allocated")]
    pub fully_allocated: u64,
}

/// For a disk of this size without any data.
pub fn measure_size(kind: FormatKind, options: &CreateOptions) -> Result<Measurement> {
    measured(kind, options, 0)
}

/// For a copy of an image.
pub fn measure(image: &Image, kind: FormatKind, options: &CreateOptions) -> Result<Measurement> {
    let size = image.size();
    let cluster = options.cluster_size;
    let mut data = 0;
    let mut counted_to = 0;
    let mut offset = 0;
    while offset < size {
        let status = image.status(offset, size - offset)?;
        if !status.zero {
            let start = (offset & !(cluster - 1)).max(counted_to);
            let end = (offset + status.len).next_multiple_of(cluster);
            data += end.saturating_sub(start);
            counted_to = end.max(counted_to);
        }
        offset += status.len;
    }
    let data = if kind == FormatKind::Raw { size } else { data };
    measured(kind, options, data)
}

fn measured(kind: FormatKind, options: &CreateOptions, data: u64) -> Result<Measurement> {
    match kind {
        FormatKind::Raw => {
            let size = options.size;
            Ok(Measurement { required: size, fully_allocated: size, bitmaps: None })
        }
        FormatKind::Qcow2 => {
            let size = options.size.next_multiple_of(options.cluster_size);
            let meta = qcow2_metadata(options, size);
            let reserved =
                matches!(options.preallocation, Preallocation::Falloc | Preallocation::Full);
            let data = if reserved { size } else { data };
            Ok(Measurement { required: meta + data, fully_allocated: meta + size, bitmaps: None })
        }
        other => Err(Error::NoSuchOperation { format: other.name(), what: "measuring" }),
    }
}

/// Header, tables and counts of an image whose clusters are all in use.
fn qcow2_metadata(options: &CreateOptions, size: u64) -> u64 {
    let cluster = options.cluster_size;
    let entry = if options.extended_l2 { 16 } else { 8 };
    let l2_tables = (size / cluster).div_ceil(cluster / entry);
    let l1 = (l2_tables * 8).next_multiple_of(cluster);
    let fixed = cluster + l1 + l2_tables * cluster;
    // Counts also count themselves: repeat until that changes nothing.
    let per_block = cluster * 8 / u64::from(options.refcount_bits);
    let clusters = (fixed + size) / cluster;
    let (mut table, mut blocks) = (0, 0);
    loop {
        let new_blocks = (clusters + table + blocks).div_ceil(per_block);
        let new_table = (new_blocks * 8).div_ceil(cluster);
        if (new_table, new_blocks) == (table, blocks) {
            return fixed + (table + blocks) * cluster;
        }
        (table, blocks) = (new_table, new_blocks);
    }
}
