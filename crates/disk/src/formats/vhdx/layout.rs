//! The fixed parts of a VHDX file: headers, region table, metadata items.

use uuid::{Uuid, uuid};

use super::log::{Change, LogPlace, read_through};
use crate::bytes::{le16, le32, le64, put};
use crate::error::{Blame, Result};
use crate::format::BackingReference;
use crate::storage::{Storage, read_vec};

pub(super) const MB: u64 = 1 << 20;
pub(super) const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
const HEADER_LEN: usize = 4096;
const REGION_LEN: usize = 64 << 10;

const BAT: Uuid = uuid!("2dc27766-f623-4200-9d64-115e9bfd4a08");
const METADATA: Uuid = uuid!("8b7ca206-4790-4b9a-b8fe-575f050f886e");
const FILE_PARAMETERS: Uuid = uuid!("caa16737-fa36-4d43-b3b6-33f0aa44e76b");
const DISK_SIZE: Uuid = uuid!("2fa54224-cd1b-4876-b211-5dbed83bf4b8");
const DISK_ID: Uuid = uuid!("beca12ab-b2e6-4523-93ef-c309e000c746");
const LOGICAL_SECTOR: Uuid = uuid!("8141bf1d-a96f-4709-ba47-f233a8faab5f");
const PHYSICAL_SECTOR: Uuid = uuid!("cda348c7-445d-4471-9cc9-e9885251c556");
const PARENT_LOCATOR: Uuid = uuid!("a8d35f2d-b30b-454d-abf7-d3d84834ab0c");
const VHDX_LOCATOR: Uuid = uuid!("b04aefb7-d19e-4a81-b789-25b8e9445913");

const ITEM_IS_DISK: u32 = 2;
const ITEM_IS_REQUIRED: u32 = 4;

/// One of the two headers; the one with the higher number counts.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub sequence: u64,
    pub file_write: Uuid,
    pub data_write: Uuid,
    pub log: Uuid,
    pub log_place: LogPlace,
    /// Which of the two places it was read from.
    pub slot: usize,
}

fn guid(bytes: &[u8], at: usize) -> Uuid {
    let mut raw = [0; 16];
    raw.copy_from_slice(&bytes[at..at + 16]);
    Uuid::from_bytes_le(raw)
}

/// The checksum with its own field as zeroes.
fn sum(bytes: &[u8]) -> u32 {
    let mut sum = crc32c::crc32c(&bytes[..4]);
    sum = crc32c::crc32c_append(sum, &[0; 4]);
    crc32c::crc32c_append(sum, &bytes[8..])
}

fn sealed(bytes: &[u8], signature: &[u8; 4]) -> bool {
    bytes.starts_with(signature) && sum(bytes) == le32(bytes, 4)
}

impl Header {
    /// Reads the header that counts.
    pub(super) fn read(file: &dyn Storage, blame: &Blame) -> Result<Self> {
        let mut best: Option<Self> = None;
        for (slot, &at) in HEADERS.iter().enumerate() {
            let bytes = read_vec(file, at, HEADER_LEN)?;
            if !sealed(&bytes, b"head") || le16(&bytes, 66) != 1 {
                continue;
            }
            let header = Self {
                sequence: le64(&bytes, 8),
                file_write: guid(&bytes, 16),
                data_write: guid(&bytes, 32),
                log: guid(&bytes, 48),
                log_place: LogPlace { len: u64::from(le32(&bytes, 68)), offset: le64(&bytes, 72) },
                slot,
            };
            if le16(&bytes, 64) != 0 && !header.log.is_nil() {
                return Err(blame.unsupported(format!("log version {}", le16(&bytes, 64))));
            }
            if best.as_ref().is_none_or(|best| best.sequence < header.sequence) {
                best = Some(header);
            }
        }
        best.ok_or_else(|| blame.corrupt("both headers are damaged"))
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_LEN];
        put(&mut bytes, 0, b"head");
        put(&mut bytes, 8, &self.sequence.to_le_bytes());
        put(&mut bytes, 16, &self.file_write.to_bytes_le());
        put(&mut bytes, 32, &self.data_write.to_bytes_le());
        put(&mut bytes, 48, &self.log.to_bytes_le());
        put(&mut bytes, 66, &1_u16.to_le_bytes());
        put(&mut bytes, 68, &(self.log_place.len as u32).to_le_bytes());
        put(&mut bytes, 72, &self.log_place.offset.to_le_bytes());
        let checksum = sum(&bytes);
        put(&mut bytes, 4, &checksum.to_le_bytes());
        bytes
    }

    /// Writes it over the one that does not count, twice, so that both are
    /// current afterwards; one is sound at any time.
    pub(super) fn write(&mut self, file: &dyn Storage) -> Result<()> {
        for _ in 0..2 {
            self.sequence += 1;
            self.slot = 1 - self.slot;
            file.write_at(HEADERS[self.slot], &self.encode())?;
            file.flush()?;
        }
        Ok(())
    }
}

/// Where the two regions are that matter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Regions {
    pub bat: (u64, u64),
    pub metadata: (u64, u64),
}

impl Regions {
    pub(super) fn read(file: &dyn Storage, changes: &[Change], blame: &Blame) -> Result<Self> {
        let mut table = None;
        for at in REGION_TABLES {
            let bytes = read_through(file, changes, at, REGION_LEN)?;
            if sealed(&bytes, b"regi") {
                table = Some(bytes);
                break;
            }
        }
        let table = table.ok_or_else(|| blame.corrupt("both region tables are damaged"))?;
        let count = le32(&table, 8) as usize;
        if count > 2047 {
            return Err(blame.corrupt(format!("{count} regions")));
        }
        let file_len = file.len()?;
        let (mut bat, mut metadata) = (None, None);
        for entry in table[16..16 + count * 32].chunks_exact(32) {
            let (offset, len) = (le64(entry, 16), u64::from(le32(entry, 24)));
            if offset.checked_add(len).is_none_or(|end| end > file_len) || offset < MB {
                return Err(blame.corrupt("a region lies outside the file"));
            }
            match guid(entry, 0) {
                BAT => bat = Some((offset, len)),
                METADATA => metadata = Some((offset, len)),
                other if le32(entry, 28) & 1 != 0 => {
                    return Err(blame.unsupported(format!("region {other}")));
                }
                _ => {}
            }
        }
        match (bat, metadata) {
            (Some(bat), Some(metadata)) => Ok(Self { bat, metadata }),
            _ => Err(blame.corrupt("a region is missing")),
        }
    }

    pub(super) fn write(&self, file: &dyn Storage) -> Result<()> {
        let mut table = vec![0; REGION_LEN];
        put(&mut table, 0, b"regi");
        put(&mut table, 8, &2_u32.to_le_bytes());
        for (index, (id, (offset, len))) in
            [(BAT, self.bat), (METADATA, self.metadata)].into_iter().enumerate()
        {
            let at = 16 + index * 32;
            put(&mut table, at, &id.to_bytes_le());
            put(&mut table, at + 16, &offset.to_le_bytes());
            put(&mut table, at + 24, &(len as u32).to_le_bytes());
            put(&mut table, at + 28, &1_u32.to_le_bytes());
        }
        let checksum = sum(&table);
        put(&mut table, 4, &checksum.to_le_bytes());
        REGION_TABLES.iter().try_for_each(|&at| file.write_at(at, &table))
    }
}

/// The metadata items.
#[derive(Clone, Debug)]
pub(super) struct Parameters {
    pub block: u64,
    pub fixed: bool,
    pub size: u64,
    /// Where the file has the size.
    pub size_at: u64,
    pub sector: u64,
    pub parent: Option<BackingReference>,
}

impl Parameters {
    pub(super) fn read(
        file: &dyn Storage,
        changes: &[Change],
        region: (u64, u64),
        blame: &Blame,
    ) -> Result<Self> {
        if region.1 < REGION_LEN as u64 {
            return Err(blame.corrupt("the metadata region is too small"));
        }
        let table = read_through(file, changes, region.0, REGION_LEN)?;
        let count = usize::from(le16(&table, 10));
        if !table.starts_with(b"metadata") || count > 2047 {
            return Err(blame.corrupt("the metadata table is damaged"));
        }
        let (mut parameters, mut size, mut sector, mut locator) = (None, None, None, None);
        let mut size_at = 0;
        for entry in table[32..32 + count * 32].chunks_exact(32) {
            let (offset, len) = (u64::from(le32(entry, 16)), u64::from(le32(entry, 20)));
            if offset + len > region.1 || len > 1 << 20 {
                return Err(blame.corrupt("a metadata item lies outside its region"));
            }
            let item = |least: usize| -> Result<Vec<u8>> {
                if (len as usize) < least {
                    return Err(blame.corrupt("a metadata item is too short"));
                }
                read_through(file, changes, region.0 + offset, len as usize)
            };
            match guid(entry, 0) {
                FILE_PARAMETERS => parameters = Some(item(8)?),
                DISK_SIZE => {
                    size = Some(le64(&item(8)?, 0));
                    size_at = region.0 + offset;
                }
                LOGICAL_SECTOR => sector = Some(u64::from(le32(&item(4)?, 0))),
                PARENT_LOCATOR => locator = Some(item(20)?),
                DISK_ID | PHYSICAL_SECTOR => {}
                other if le32(entry, 24) & ITEM_IS_REQUIRED != 0 => {
                    return Err(blame.unsupported(format!("metadata item {other}")));
                }
                _ => {}
            }
        }
        let (Some(parameters), Some(size), Some(sector)) = (parameters, size, sector) else {
            return Err(blame.corrupt("a metadata item is missing"));
        };
        let block = u64::from(le32(&parameters, 0));
        let flags = le32(&parameters, 4);
        if !block.is_power_of_two() || !(MB..=256 * MB).contains(&block) {
            return Err(blame.corrupt(format!("blocks of {block} bytes")));
        }
        if !matches!(sector, 512 | 4096) || size > 64 << 40 || !size.is_multiple_of(sector) {
            return Err(blame.corrupt(format!("a disk of {size} bytes, sectors of {sector}")));
        }
        let parent = match (flags & 2 != 0, locator) {
            (false, _) => None,
            (true, Some(locator)) => Some(read_locator(&locator, blame)?),
            (true, None) => return Err(blame.corrupt("it has a parent that it does not name")),
        };
        Ok(Self { block, fixed: flags & 1 != 0, size, size_at, sector, parent })
    }

    pub(super) fn write(&self, file: &dyn Storage, at: u64, linkage: Option<Uuid>) -> Result<()> {
        let mut flags = u32::from(self.fixed);
        let mut items = vec![
            (FILE_PARAMETERS, ITEM_IS_REQUIRED, Vec::new()),
            (DISK_SIZE, ITEM_IS_REQUIRED | ITEM_IS_DISK, self.size.to_le_bytes().to_vec()),
            (DISK_ID, ITEM_IS_REQUIRED | ITEM_IS_DISK, Uuid::new_v4().to_bytes_le().to_vec()),
            (
                LOGICAL_SECTOR,
                ITEM_IS_REQUIRED | ITEM_IS_DISK,
                (self.sector as u32).to_le_bytes().to_vec(),
            ),
            (PHYSICAL_SECTOR, ITEM_IS_REQUIRED | ITEM_IS_DISK, 4096_u32.to_le_bytes().to_vec()),
        ];
        if let Some(parent) = &self.parent {
            flags |= 2;
            let locator = encode_locator(&parent.name, linkage.unwrap_or_default());
            items.push((PARENT_LOCATOR, ITEM_IS_REQUIRED, locator));
        }
        items[0].2 = (self.block as u32).to_le_bytes().to_vec();
        items[0].2.extend(flags.to_le_bytes());
        let mut table = vec![0; REGION_LEN];
        put(&mut table, 0, b"metadata");
        put(&mut table, 10, &(items.len() as u16).to_le_bytes());
        let mut offset = REGION_LEN as u64;
        for (index, (id, flags, bytes)) in items.iter().enumerate() {
            let entry = 32 + index * 32;
            put(&mut table, entry, &id.to_bytes_le());
            put(&mut table, entry + 16, &(offset as u32).to_le_bytes());
            put(&mut table, entry + 20, &(bytes.len() as u32).to_le_bytes());
            put(&mut table, entry + 24, &flags.to_le_bytes());
            file.write_at(at + offset, bytes)?;
            offset += (bytes.len() as u64).next_multiple_of(8);
        }
        file.write_at(at, &table)
    }
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn from_utf16(bytes: &[u8]) -> String {
    let units: Vec<u16> =
        bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    String::from_utf16_lossy(&units)
}

fn encode_locator(name: &str, linkage: Uuid) -> Vec<u8> {
    let windows = name.replace('/', "\\");
    let (key, path) = if name.starts_with('/') {
        ("absolute_win32_path", windows)
    } else {
        ("relative_path", format!(".\\{windows}"))
    };
    let pairs = [("parent_linkage".to_owned(), format!("{{{linkage}}}")), (key.to_owned(), path)];
    let mut locator = vec![0; 20 + pairs.len() * 12];
    put(&mut locator, 0, &VHDX_LOCATOR.to_bytes_le());
    put(&mut locator, 18, &(pairs.len() as u16).to_le_bytes());
    for (index, (key, value)) in pairs.iter().enumerate() {
        let (key, value) = (utf16(key), utf16(value));
        let entry = 20 + index * 12;
        let at = locator.len() as u32;
        put(&mut locator, entry, &at.to_le_bytes());
        put(&mut locator, entry + 4, &(at + key.len() as u32).to_le_bytes());
        put(&mut locator, entry + 8, &(key.len() as u16).to_le_bytes());
        put(&mut locator, entry + 10, &(value.len() as u16).to_le_bytes());
        locator.extend(key);
        locator.extend(value);
    }
    locator
}

fn read_locator(locator: &[u8], blame: &Blame) -> Result<BackingReference> {
    if guid(locator, 0) != VHDX_LOCATOR {
        return Err(blame.unsupported("a parent that is not a VHDX file"));
    }
    let count = usize::from(le16(locator, 18));
    let mut best = None;
    for index in 0..count {
        let Some(entry) = locator.get(20 + index * 12..32 + index * 12) else {
            return Err(blame.corrupt("the parent locator has no end"));
        };
        let part = |at: u32, len: u16| locator.get(at as usize..at as usize + usize::from(len));
        let (Some(key), Some(value)) =
            (part(le32(entry, 0), le16(entry, 8)), part(le32(entry, 4), le16(entry, 10)))
        else {
            return Err(blame.corrupt("the parent locator has no end"));
        };
        let value = from_utf16(value).replace('\\', "/");
        match from_utf16(key).as_str() {
            "relative_path" => best = Some(value.trim_start_matches("./").to_owned()),
            "absolute_win32_path" if best.is_none() => best = Some(value),
            _ => {}
        }
    }
    let name = best.ok_or_else(|| blame.corrupt("the parent locator has no path"))?;
    Ok(BackingReference { name, format: Some("vhdx".to_owned()) })
}
