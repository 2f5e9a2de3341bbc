//! The header of a qcow2 image and its extensions: reading, checking, writing.

use crate::bytes::{be16, be32, be64, put};
use crate::error::{Blame, Result};
use crate::storage::Storage;

pub(super) const MAGIC: u32 = 0x5146_49fb;
const V2_LEN: usize = 72;
const V3_LEN: usize = 104;
/// What this program writes: the fields of version 3 and the compression type.
const WRITTEN_LEN: usize = 112;

pub(super) const INCOMPAT_DIRTY: u64 = 1 << 0;
pub(super) const INCOMPAT_CORRUPT: u64 = 1 << 1;
pub(super) const INCOMPAT_DATA_FILE: u64 = 1 << 2;
pub(super) const INCOMPAT_COMPRESSION: u64 = 1 << 3;
pub(super) const INCOMPAT_EXTENDED_L2: u64 = 1 << 4;
const INCOMPAT_KNOWN: u64 = 0x1f;

pub(super) const COMPAT_LAZY: u64 = 1 << 0;

pub(super) const AUTOCLEAR_BITMAPS: u64 = 1 << 0;
pub(super) const AUTOCLEAR_RAW_DATA: u64 = 1 << 1;
pub(super) const AUTOCLEAR_KNOWN: u64 = 0x3;

const EXT_END: u32 = 0;
const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXT_FEATURES: u32 = 0x6803_f857;
const EXT_BITMAPS: u32 = 0x2385_2875;
const EXT_CRYPTO: u32 = 0x0537_be77;
const EXT_DATA_FILE: u32 = 0x4441_5441;

/// The largest tables that are accepted: with 64 KiB clusters, two exabytes.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFTABLE_BYTES: u64 = 8 << 20;
const MAX_SNAPSHOTS: u32 = 65_536;
const MAX_BITMAPS: u32 = 65_535;
const MAX_NAME: usize = 1023;

/// A range in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Region {
    pub offset: u64,
    pub len: u64,
}

/// Where the directory of dirty bitmaps is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BitmapDirectory {
    pub count: u32,
    pub region: Region,
}

/// Encryption methods by their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crypt {
    None,
    Aes,
    Luks,
}

/// All that the header and its extensions say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    pub size: u64,
    pub crypt: Crypt,
    pub l1_entries: u32,
    pub l1_offset: u64,
    pub reftable_offset: u64,
    pub reftable_clusters: u32,
    pub snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible: u64,
    pub compatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
    pub zstd: bool,
    pub backing: Option<String>,
    pub backing_format: Option<String>,
    pub data_file: Option<String>,
    pub bitmaps: Option<BitmapDirectory>,
    pub luks: Option<Region>,
    /// Extensions that are not known here, kept as they are.
    pub unknown: Vec<(u32, Vec<u8>)>,
}

impl Header {
    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub(super) fn extended_l2(&self) -> bool {
        self.incompatible & INCOMPAT_EXTENDED_L2 != 0
    }

    pub(super) fn external_data(&self) -> bool {
        self.incompatible & INCOMPAT_DATA_FILE != 0
    }

    pub(super) fn raw_external(&self) -> bool {
        self.autoclear & AUTOCLEAR_RAW_DATA != 0
    }

    pub(super) fn lazy(&self) -> bool {
        self.compatible & COMPAT_LAZY != 0
    }

    /// Bytes of one entry in an L2 table.
    pub(super) fn l2_entry_bytes(&self) -> u64 {
        if self.extended_l2() { 16 } else { 8 }
    }

    /// How much of the disk one L2 table describes.
    pub(super) fn l2_coverage(&self) -> u64 {
        (self.cluster_size() / self.l2_entry_bytes()) << self.cluster_bits
    }

    /// Reads and checks the header of a file.
    pub(super) fn read(storage: &dyn Storage, blame: &Blame) -> Result<Self> {
        let file_len = storage.len()?;
        let mut fixed = [0; WRITTEN_LEN];
        storage.read_at(0, &mut fixed)?;
        if be32(&fixed, 0) != MAGIC {
            return Err(blame.other_format());
        }
        let cluster_bits = be32(&fixed, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(blame.corrupt(format!("clusters of 2^{cluster_bits} bytes")));
        }
        // Everything of the header is in the first cluster.
        let head_len = (1_u64 << cluster_bits).min(file_len.max(V2_LEN as u64)) as usize;
        let mut head = vec![0; head_len.max(WRITTEN_LEN)];
        storage.read_at(0, &mut head)?;
        Self::parse(&head, head_len, file_len, blame)
    }

    /// Reads a header from the first cluster's bytes.
    pub(super) fn parse(
        head: &[u8],
        head_len: usize,
        file_len: u64,
        blame: &Blame,
    ) -> Result<Self> {
        let version = be32(head, 4);
        let header_len = match version {
            2 => V2_LEN,
            3 => be32(head, 100) as usize,
            other => return Err(blame.unsupported(format!("version {other}"))),
        };
        let v3 = version == 3;
        if v3 && header_len < V3_LEN || header_len > head_len {
            return Err(blame.corrupt(format!("a header of {header_len} bytes")));
        }
        let incompatible = if v3 { be64(head, 72) } else { 0 };
        if incompatible & !INCOMPAT_KNOWN != 0 {
            let names = unknown_features(head, header_len, head_len, incompatible);
            return Err(blame.unsupported(format!("incompatible features: {names}")));
        }
        let refcount_order = if v3 { be32(head, 96) } else { 4 };
        if refcount_order > 6 {
            return Err(blame.corrupt(format!("reference counts of 2^{refcount_order} bits")));
        }
        let compression = if v3 && header_len > V3_LEN { head[V3_LEN] } else { 0 };
        if compression > 1 || (compression != 0) != (incompatible & INCOMPAT_COMPRESSION != 0) {
            return Err(blame.unsupported(format!("compression type {compression}")));
        }
        let crypt = match be32(head, 32) {
            0 => Crypt::None,
            1 => Crypt::Aes,
            2 => Crypt::Luks,
            other => return Err(blame.unsupported(format!("encryption method {other}"))),
        };
        let mut header = Self {
            version,
            cluster_bits: be32(head, 20),
            size: be64(head, 24),
            crypt,
            l1_entries: be32(head, 36),
            l1_offset: be64(head, 40),
            reftable_offset: be64(head, 48),
            reftable_clusters: be32(head, 56),
            snapshots: be32(head, 60),
            snapshots_offset: be64(head, 64),
            incompatible,
            compatible: if v3 { be64(head, 80) } else { 0 },
            autoclear: if v3 { be64(head, 88) } else { 0 },
            refcount_order,
            zstd: compression == 1,
            backing: None,
            backing_format: None,
            data_file: None,
            bitmaps: None,
            luks: None,
            unknown: Vec::new(),
        };
        header.check_tables(file_len, blame)?;
        let backing = Region { offset: be64(head, 8), len: u64::from(be32(head, 16)) };
        let mut end = head_len;
        if backing.offset != 0 {
            let inside = backing.offset.checked_add(backing.len);
            if backing.len as usize > MAX_NAME || inside.is_none_or(|e| e > head_len as u64) {
                return Err(blame.corrupt("the backing file's name is outside the header"));
            }
            let at = backing.offset as usize;
            let name = &head[at..at + backing.len as usize];
            header.backing = Some(text(name, "backing file name", blame)?);
            end = at.max(header_len);
        }
        header.parse_extensions(&head[..end], header_len, blame)?;
        header.check_features(blame)?;
        Ok(header)
    }

    fn check_tables(&self, file_len: u64, blame: &Blame) -> Result<()> {
        let cluster = self.cluster_size();
        let inside = |offset: u64, len: u64| {
            offset.checked_add(len).is_some_and(|end| end <= file_len.next_multiple_of(cluster))
        };
        let aligned = |offset: u64| offset.is_multiple_of(cluster);
        if self.extended_l2() && self.cluster_bits < 14 {
            return Err(blame.corrupt("extended L2 entries with clusters below 16 KiB"));
        }
        let l1_bytes = u64::from(self.l1_entries) * 8;
        let needed = self.size.div_ceil(self.l2_coverage());
        if l1_bytes > MAX_L1_BYTES || u64::from(self.l1_entries) < needed {
            return Err(blame.corrupt(format!(
                "an L1 table of {} entries for a disk of {} bytes",
                self.l1_entries, self.size
            )));
        }
        if self.size > i64::MAX as u64 {
            return Err(blame.corrupt(format!("a disk of {} bytes", self.size)));
        }
        if !aligned(self.l1_offset) || !inside(self.l1_offset, l1_bytes) {
            return Err(blame.corrupt("the L1 table lies outside the file"));
        }
        let reftable = u64::from(self.reftable_clusters) * cluster;
        if reftable > MAX_REFTABLE_BYTES || reftable == 0 {
            return Err(blame.corrupt(format!("a reference count table of {reftable} bytes")));
        }
        if !aligned(self.reftable_offset) || !inside(self.reftable_offset, reftable) {
            return Err(blame.corrupt("the reference count table lies outside the file"));
        }
        if self.snapshots > MAX_SNAPSHOTS {
            return Err(blame.corrupt(format!("{} snapshots", self.snapshots)));
        }
        if self.snapshots > 0
            && (!aligned(self.snapshots_offset) || self.snapshots_offset >= file_len)
        {
            return Err(blame.corrupt("the snapshot table lies outside the file"));
        }
        Ok(())
    }

    fn check_features(&self, blame: &Blame) -> Result<()> {
        if self.external_data() && self.snapshots > 0 {
            return Err(blame.corrupt("snapshots together with an external data file"));
        }
        if self.external_data() && self.crypt != Crypt::None {
            return Err(blame.unsupported("encryption of an external data file"));
        }
        if self.crypt == Crypt::Luks && self.luks.is_none() {
            return Err(blame.corrupt("encrypted with LUKS, but without a LUKS header"));
        }
        Ok(())
    }

    fn parse_extensions(&mut self, head: &[u8], start: usize, blame: &Blame) -> Result<()> {
        let mut at = start;
        while at + 8 <= head.len() {
            let (kind, len) = (be32(head, at), be32(head, at + 4) as usize);
            at += 8;
            if kind == EXT_END {
                return Ok(());
            }
            if len > head.len() - at {
                return Err(blame.corrupt(format!("header extension {kind:#x} has no end")));
            }
            let body = &head[at..at + len];
            match kind {
                EXT_BACKING_FORMAT => {
                    self.backing_format = Some(text(body, "backing format", blame)?);
                }
                EXT_DATA_FILE => self.data_file = Some(text(body, "data file name", blame)?),
                EXT_BITMAPS if self.autoclear & AUTOCLEAR_BITMAPS != 0 => {
                    self.bitmaps = Some(parse_bitmaps(body, self.cluster_size(), blame)?);
                }
                EXT_CRYPTO => {
                    if len != 16 {
                        return Err(blame.corrupt("a LUKS header reference of a wrong size"));
                    }
                    let region = Region { offset: be64(body, 0), len: be64(body, 8) };
                    if !region.offset.is_multiple_of(self.cluster_size())
                        || region.len > 64 << 20
                        || region.offset.checked_add(region.len).is_none()
                    {
                        return Err(blame.corrupt("the LUKS header is at no possible place"));
                    }
                    self.luks = Some(region);
                }
                // Written anew with each header; a lost directory of bitmaps
                // is told by the cleared bit.
                EXT_FEATURES | EXT_BITMAPS => {}
                _ => self.unknown.push((kind, body.to_vec())),
            }
            at += len.next_multiple_of(8);
        }
        Ok(())
    }

    /// The first cluster with this header.
    pub(super) fn to_cluster(&self, blame: &Blame) -> Result<Vec<u8>> {
        let mut head = vec![0; V2_LEN];
        put(&mut head, 0, &MAGIC.to_be_bytes());
        put(&mut head, 4, &self.version.to_be_bytes());
        put(&mut head, 20, &self.cluster_bits.to_be_bytes());
        put(&mut head, 24, &self.size.to_be_bytes());
        let crypt = match self.crypt {
            Crypt::None => 0_u32,
            Crypt::Aes => 1,
            Crypt::Luks => 2,
        };
        put(&mut head, 32, &crypt.to_be_bytes());
        put(&mut head, 36, &self.l1_entries.to_be_bytes());
        put(&mut head, 40, &self.l1_offset.to_be_bytes());
        put(&mut head, 48, &self.reftable_offset.to_be_bytes());
        put(&mut head, 56, &self.reftable_clusters.to_be_bytes());
        put(&mut head, 60, &self.snapshots.to_be_bytes());
        put(&mut head, 64, &self.snapshots_offset.to_be_bytes());
        if self.version >= 3 {
            head.resize(WRITTEN_LEN, 0);
            put(&mut head, 72, &self.incompatible.to_be_bytes());
            put(&mut head, 80, &self.compatible.to_be_bytes());
            put(&mut head, 88, &self.autoclear.to_be_bytes());
            put(&mut head, 96, &self.refcount_order.to_be_bytes());
            put(&mut head, 100, &(WRITTEN_LEN as u32).to_be_bytes());
            head[V3_LEN] = u8::from(self.zstd);
        }
        if let Some(format) = &self.backing_format {
            extension(&mut head, EXT_BACKING_FORMAT, format.as_bytes());
        }
        if let Some(name) = &self.data_file {
            extension(&mut head, EXT_DATA_FILE, name.as_bytes());
        }
        if let Some(luks) = &self.luks {
            let mut body = luks.offset.to_be_bytes().to_vec();
            body.extend(luks.len.to_be_bytes());
            extension(&mut head, EXT_CRYPTO, &body);
        }
        if let Some(bitmaps) = &self.bitmaps {
            let mut body = bitmaps.count.to_be_bytes().to_vec();
            body.extend([0; 4]);
            body.extend(bitmaps.region.len.to_be_bytes());
            body.extend(bitmaps.region.offset.to_be_bytes());
            extension(&mut head, EXT_BITMAPS, &body);
        }
        for (kind, body) in &self.unknown {
            extension(&mut head, *kind, body);
        }
        let names = feature_names();
        let rest = 2 * 8 + self.backing.as_ref().map_or(0, String::len);
        // They are for people: where a small cluster has no room, they are left out.
        if self.version >= 3 && (head.len() + names.len() + rest) as u64 <= self.cluster_size() {
            extension(&mut head, EXT_FEATURES, &names);
        }
        extension(&mut head, EXT_END, &[]);
        if let Some(name) = &self.backing {
            let at = head.len() as u64;
            put(&mut head, 8, &at.to_be_bytes());
            put(&mut head, 16, &(name.len() as u32).to_be_bytes());
            head.extend(name.as_bytes());
        }
        if head.len() as u64 > self.cluster_size() {
            return Err(blame.unsupported(format!(
                "the header with its names needs {} bytes, more than a cluster",
                head.len()
            )));
        }
        head.resize(self.cluster_size() as usize, 0);
        Ok(head)
    }
}

fn extension(head: &mut Vec<u8>, kind: u32, body: &[u8]) {
    head.extend(kind.to_be_bytes());
    head.extend((body.len() as u32).to_be_bytes());
    head.extend(body);
    head.resize(head.len().next_multiple_of(8), 0);
}

fn text(bytes: &[u8], what: &str, blame: &Blame) -> Result<String> {
    if bytes.len() > MAX_NAME {
        return Err(blame.corrupt(format!("a {what} of {} bytes", bytes.len())));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(blame.corrupt(format!("a {what} that is not text"))),
    }
}

fn parse_bitmaps(body: &[u8], cluster: u64, blame: &Blame) -> Result<BitmapDirectory> {
    if body.len() != 24 {
        return Err(blame.corrupt("a bitmap directory reference of a wrong size"));
    }
    let directory = BitmapDirectory {
        count: be32(body, 0),
        region: Region { len: be64(body, 8), offset: be64(body, 16) },
    };
    let region = directory.region;
    if directory.count == 0
        || directory.count > MAX_BITMAPS
        || region.len > u64::from(MAX_BITMAPS) * 1100
        || !region.offset.is_multiple_of(cluster)
        || region.offset.checked_add(region.len).is_none()
    {
        return Err(blame.corrupt("the bitmap directory is at no possible place"));
    }
    Ok(directory)
}

const FEATURES: [(u8, u8, &str); 8] = [
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];

/// Names of the features, for programs that do not know one of them.
fn feature_names() -> Vec<u8> {
    let mut table = Vec::with_capacity(FEATURES.len() * 48);
    for (kind, bit, name) in FEATURES {
        let start = table.len();
        table.extend([kind, bit]);
        table.extend(name.as_bytes());
        table.resize(start + 48, 0);
    }
    table
}

/// What the image itself calls the features that are not known here.
fn unknown_features(head: &[u8], start: usize, end: usize, bits: u64) -> String {
    let mut names = Vec::new();
    let unknown = bits & !INCOMPAT_KNOWN;
    for bit in (0..64).filter(|bit| unknown & 1 << bit != 0) {
        names.push(feature_name(&head[..end], start, bit).unwrap_or(format!("bit {bit}")));
    }
    names.join(", ")
}

fn feature_name(head: &[u8], mut at: usize, bit: u8) -> Option<String> {
    while at + 8 <= head.len() {
        let (kind, len) = (be32(head, at), be32(head, at + 4) as usize);
        at += 8;
        if kind == EXT_END || len > head.len() - at {
            return None;
        }
        if kind == EXT_FEATURES {
            let entry = head[at..at + len].chunks_exact(48).find(|e| e[0] == 0 && e[1] == bit)?;
            let name = entry[2..].split(|&byte| byte == 0).next()?;
            return Some(String::from_utf8_lossy(name).into_owned());
        }
        at += len.next_multiple_of(8);
    }
    None
}

/// Reads a table of 64-bit entries that the header's check found in the file.
pub(super) fn read_table(storage: &dyn Storage, offset: u64, entries: usize) -> Result<Vec<u64>> {
    let bytes = crate::storage::read_vec(storage, offset, entries * 8)?;
    Ok(bytes.chunks_exact(8).map(|entry| be64(entry, 0)).collect())
}

/// A table's bytes as they stand in the file.
pub(super) fn table_bytes(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

/// One reference count out of a block's bytes, for any width.
pub(super) fn refcount_get(block: &[u8], order: u32, index: usize) -> u64 {
    match order {
        0..=2 => {
            let width = 1_usize << order;
            let shift = (index * width) % 8;
            u64::from(block[index * width / 8] >> shift) & ((1 << width) - 1)
        }
        3 => u64::from(block[index]),
        4 => u64::from(be16(block, index * 2)),
        5 => u64::from(be32(block, index * 4)),
        _ => be64(block, index * 8),
    }
}

/// Stores one reference count in a block's bytes.
pub(super) fn refcount_set(block: &mut [u8], order: u32, index: usize, value: u64) {
    match order {
        0..=2 => {
            let width = 1_usize << order;
            let shift = (index * width) % 8;
            let mask = ((1_u8 << width) - 1) << shift;
            let byte = &mut block[index * width / 8];
            *byte = *byte & !mask | (value as u8) << shift & mask;
        }
        3 => block[index] = value as u8,
        4 => put(block, index * 2, &(value as u16).to_be_bytes()),
        5 => put(block, index * 4, &(value as u32).to_be_bytes()),
        _ => put(block, index * 8, &value.to_be_bytes()),
    }
}
