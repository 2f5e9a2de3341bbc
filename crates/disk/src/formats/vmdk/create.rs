//! New VMDK disks in the variants that VMware's hosted products have.

use uuid::Uuid;

use super::descriptor::{Descriptor, ExtentLine, Storing};
use super::grains::{GD_AT_END, GTES, SECTOR, SparseHeader};
use super::stream::Stream;
use crate::error::{Error, Result};
use crate::format::{BackingReference, Preallocation};
use crate::formats::raw;
use crate::storage::{SharedStorage, Storage};

const GRAIN: u64 = 128;
const DESCRIPTOR_SECTORS: u64 = 20;
/// What "two gigabytes" means here: a little less, in sectors.
pub(super) const SPLIT: u64 = (2 << 30) / SECTOR - 1024;
pub(super) const MAX_SIZE: u64 = 62 << 40;

/// The variants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subformat {
    #[default]
    MonolithicSparse,
    MonolithicFlat,
    TwoGbMaxExtentSparse,
    TwoGbMaxExtentFlat,
    StreamOptimized,
}

impl Subformat {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::MonolithicSparse,
        Self::MonolithicFlat,
        Self::TwoGbMaxExtentSparse,
        Self::TwoGbMaxExtentFlat,
        Self::StreamOptimized,
    ];

    /// As descriptors and options write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MonolithicSparse => "monolithicSparse",
            Self::MonolithicFlat => "monolithicFlat",
            Self::TwoGbMaxExtentSparse => "twoGbMaxExtentSparse",
            Self::TwoGbMaxExtentFlat => "twoGbMaxExtentFlat",
            Self::StreamOptimized => "streamOptimized",
        }
    }

    fn flat(self) -> bool {
        matches!(self, Self::MonolithicFlat | Self::TwoGbMaxExtentFlat)
    }

    fn split(self) -> bool {
        matches!(self, Self::TwoGbMaxExtentSparse | Self::TwoGbMaxExtentFlat)
    }
}

/// What can be chosen for a new disk.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    pub size: u64,
    pub subformat: Subformat,
    pub adapter: Option<String>,
    pub hardware: Option<u32>,
    /// The version of the guest's tools, for the descriptor.
    pub tools: Option<String>,
    /// Zeroes take no space, but older products do not know that.
    pub zeroed_grain: bool,
    pub preallocation: Preallocation,
    pub parent: Option<BackingReference>,
    /// The parent's identity.
    pub parent_id: u32,
}

impl super::Vmdk {
    /// Writes an empty disk. `name` is the file's own; `sibling` makes others
    /// beside it.
    pub fn create(
        storage: &SharedStorage,
        name: &str,
        options: &CreateOptions,
        sibling: &mut dyn FnMut(&str) -> Result<SharedStorage>,
    ) -> Result<()> {
        let adapter = options.adapter.as_deref().unwrap_or("ide");
        if !matches!(adapter, "ide" | "lsilogic" | "buslogic" | "legacyESX" | "pvscsi") {
            return Err(Error::option("adapter_type", format!("'{adapter}' is not known")));
        }
        if options.size > MAX_SIZE {
            return Err(Error::option("size", "a VMDK disk has at most 62 TiB"));
        }
        if options.parent.is_some() && options.subformat.flat() {
            return Err(Error::option("backing_file", "flat disks cannot have one"));
        }
        if options.tools.as_ref().is_some_and(|text| text.contains(['"', '\n'])) {
            return Err(Error::option("toolsversion", "stands in quotes on one line"));
        }
        let sectors = options.size.div_ceil(SECTOR);
        let mut descriptor = Descriptor {
            // The highest value means "no parent" elsewhere.
            cid: Uuid::new_v4().as_u128() as u32 & 0xffff_fffe,
            has_parent: options.parent.is_some(),
            parent: options.parent.as_ref().map(|parent| parent.name.clone()),
            create_type: options.subformat.name().to_owned(),
            extents: Vec::new(),
        };
        let storing = if options.subformat.flat() { Storing::Flat } else { Storing::Sparse };
        let line = |sectors, file: &str| ExtentLine {
            writable: true,
            sectors,
            storing,
            file: file.to_owned(),
            offset: 0,
        };
        let hardware = options.hardware.unwrap_or(4);
        if !options.subformat.split() && !options.subformat.flat() {
            descriptor.extents.push(line(sectors, name));
            let text = completed(descriptor.encode(adapter, hardware), options);
            return create_sparse(&**storage, sectors, Some(&text), options);
        }
        let stem = name.strip_suffix(".vmdk").unwrap_or(name);
        let mut left = sectors;
        let mut number = 1;
        loop {
            let here = if options.subformat.split() { left.min(SPLIT) } else { left };
            let file_name = match options.subformat {
                Subformat::TwoGbMaxExtentSparse => format!("{stem}-s{number:03}.vmdk"),
                Subformat::TwoGbMaxExtentFlat => format!("{stem}-f{number:03}.vmdk"),
                _ => format!("{stem}-flat.vmdk"),
            };
            let file = sibling(&file_name)?;
            if options.subformat.flat() {
                file.set_len(here * SECTOR)?;
                raw::preallocate(&*file, 0, here * SECTOR, options.preallocation)?;
                file.flush()?;
            } else {
                create_sparse(&*file, here, None, options)?;
            }
            descriptor.extents.push(line(here, &file_name));
            left -= here;
            number += 1;
            if left == 0 {
                break;
            }
        }
        let text = completed(descriptor.encode(adapter, hardware), options);
        storage.write_at(0, text.as_bytes())?;
        storage.flush()
    }
}

/// With what only a new disk's options say.
fn completed(mut text: String, options: &CreateOptions) -> String {
    if let Some(tools) = &options.tools {
        text += &format!("ddb.toolsVersion = \"{tools}\"\n");
    }
    if options.parent.is_none() {
        return text;
    }
    text.replace("parentCID=00000000", &format!("parentCID={:08x}", options.parent_id))
}

/// A sparse extent with all its tables, or an empty stream.
fn create_sparse(
    file: &dyn Storage,
    sectors: u64,
    text: Option<&str>,
    options: &CreateOptions,
) -> Result<()> {
    let packed = options.subformat == Subformat::StreamOptimized;
    let mut header = SparseHeader {
        version: if packed { 3 } else { 1 },
        flags: SparseHeader::flags(packed, options.zeroed_grain),
        // The disk ends where it ends; only tables cover whole grains.
        capacity: sectors,
        grain: GRAIN,
        descriptor: (0, 0),
        gtes: GTES,
        redundant_directory: 0,
        directory: 0,
        overhead: GRAIN,
        compression: u16::from(packed),
    };
    let mut at = 1;
    if let Some(text) = text {
        if text.len() as u64 > DESCRIPTOR_SECTORS * SECTOR {
            return Err(Error::option("backing_file", "the name is too long"));
        }
        header.descriptor = (at, DESCRIPTOR_SECTORS);
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize((DESCRIPTOR_SECTORS * SECTOR) as usize, 0);
        file.write_at(at * SECTOR, &bytes)?;
        at += DESCRIPTOR_SECTORS;
    }
    if packed {
        header.directory = GD_AT_END;
        return Stream::create(file, header);
    }
    let tables = header.tables();
    let directory_sectors = (tables * 4).div_ceil(SECTOR);
    let table_sectors = GTES * 4 / SECTOR;
    let directory_at = |at: &mut u64| -> Result<u64> {
        let place = *at;
        let first_table = place + directory_sectors;
        let mut bytes = Vec::with_capacity((directory_sectors * SECTOR) as usize);
        for table in 0..tables {
            bytes.extend(((first_table + table * table_sectors) as u32).to_le_bytes());
        }
        bytes.resize((directory_sectors * SECTOR) as usize, 0);
        file.write_at(place * SECTOR, &bytes)?;
        *at = first_table + tables * table_sectors;
        Ok(place)
    };
    header.redundant_directory = directory_at(&mut at)?;
    header.directory = directory_at(&mut at)?;
    header.overhead = at.next_multiple_of(GRAIN);
    file.set_len(header.overhead * SECTOR)?;
    file.write_at(0, &header.encode())?;
    file.flush()
}
