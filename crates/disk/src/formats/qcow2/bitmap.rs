//! Persistent dirty bitmaps: which parts of the disk changed since some time.
//!
//! While an image is open for writing its bitmaps live in memory, in chunks of
//! one cluster, and the file says that its copies are in use (so a crash makes
//! them invalid rather than wrong). They are written anew on closing.

use std::sync::atomic::Ordering;

use super::Qcow2;
use super::header::{AUTOCLEAR_BITMAPS, BitmapDirectory, Header, Region, read_table as read_words};
use super::meta::{Free, Meta};
use crate::bytes::{be16, be32, be64, put};
use crate::error::{Blame, Error, Result};
use crate::format::{Detail, Format};
use crate::storage::{Storage, read_vec};

const FIXED: usize = 24;
const IN_USE: u32 = 1 << 0;
const AUTO: u32 = 1 << 1;
const EXTRA_COMPATIBLE: u32 = 1 << 2;
const TYPE_DIRTY: u8 = 1;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const MAX_NAME: usize = 1023;

/// A bitmap as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapInfo {
    pub name: String,
    pub granularity: u64,
    /// It records writes.
    pub enabled: bool,
    /// It was in use when its last user ended: not to be trusted.
    pub in_use: bool,
}

impl BitmapInfo {
    pub(super) fn detail(&self) -> Detail {
        let mut flags = Vec::new();
        if self.in_use {
            flags.push(Detail::text("in-use"));
        }
        if self.enabled {
            flags.push(Detail::text("auto"));
        }
        Detail::Map(vec![
            ("flags".to_owned(), Detail::List(flags)),
            ("name".to_owned(), Detail::text(&self.name)),
            ("granularity".to_owned(), Detail::Number(self.granularity)),
        ])
    }
}

/// One cluster's worth of bits.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Chunk {
    Clear,
    Full,
    Bits(Vec<u8>),
}

/// A bitmap in memory.
#[derive(Clone, Debug)]
pub(super) struct LiveBitmap {
    name: String,
    granularity_bits: u32,
    enabled: bool,
    /// Not consistent: kept as it is until somebody removes it.
    broken: bool,
    extra: Vec<u8>,
    chunks: Vec<Chunk>,
    chunk_bytes: usize,
    /// The table and the clusters it occupies now.
    table: Region,
    clusters: Vec<u64>,
}

impl LiveBitmap {
    fn new(name: &str, granularity_bits: u32, enabled: bool, chunk_bytes: usize) -> Self {
        Self {
            name: name.to_owned(),
            granularity_bits,
            enabled,
            broken: false,
            extra: Vec::new(),
            chunks: Vec::new(),
            chunk_bytes,
            table: Region::default(),
            clusters: Vec::new(),
        }
    }

    fn info(&self) -> BitmapInfo {
        BitmapInfo {
            name: self.name.clone(),
            granularity: 1 << self.granularity_bits,
            enabled: self.enabled,
            in_use: self.broken,
        }
    }

    /// Whether it records writes.
    pub(super) fn enabled(&self) -> bool {
        self.enabled && !self.broken
    }

    fn bits_per_chunk(&self) -> u64 {
        self.chunk_bytes as u64 * 8
    }

    /// Fits the bitmap to a disk of this size.
    pub(super) fn fit(&mut self, size: u64) {
        if !self.broken {
            let bits = size.div_ceil(1 << self.granularity_bits);
            self.chunks.resize(bits.div_ceil(self.bits_per_chunk()) as usize, Chunk::Clear);
        }
    }

    /// Notes a change, if the bitmap records.
    pub(super) fn mark(&mut self, offset: u64, len: u64) {
        if self.enabled && !self.broken && len > 0 {
            let first = offset >> self.granularity_bits;
            let last = (offset + len - 1) >> self.granularity_bits;
            self.set(first, last + 1);
        }
    }

    fn set(&mut self, mut from: u64, to: u64) {
        let per = self.bits_per_chunk();
        while from < to {
            let index = (from / per) as usize;
            let stop = to.min((index as u64 + 1) * per);
            let bytes = self.chunk_bytes;
            let Some(chunk) = self.chunks.get_mut(index) else { return };
            if stop - from == per {
                *chunk = Chunk::Full;
            }
            if *chunk == Chunk::Clear {
                *chunk = Chunk::Bits(vec![0; bytes]);
            }
            if let Chunk::Bits(bits) = chunk {
                for bit in from % per..from % per + (stop - from) {
                    bits[(bit / 8) as usize] |= 1 << (bit % 8);
                }
            }
            from = stop;
        }
    }

    /// Whether a change was noted for the place.
    fn get(&self, offset: u64) -> bool {
        let bit = offset >> self.granularity_bits;
        let within = bit % self.bits_per_chunk();
        match self.chunks.get((bit / self.bits_per_chunk()) as usize) {
            Some(Chunk::Full) => true,
            Some(Chunk::Bits(bits)) => bits[(within / 8) as usize] & 1 << (within % 8) != 0,
            _ => false,
        }
    }
}

/// Reads the directory; with `contents`, the bits as well.
fn read_directory(
    storage: &dyn Storage,
    header: &Header,
    contents: bool,
    blame: &Blame,
) -> Result<Vec<LiveBitmap>> {
    let Some(directory) = header.bitmaps else { return Ok(Vec::new()) };
    let file_len = storage.len()?;
    let region = directory.region;
    if region.offset + region.len > file_len {
        return Err(blame.corrupt("the bitmap directory lies outside the file"));
    }
    let bytes = read_vec(storage, region.offset, region.len as usize)?;
    let mut bitmaps = Vec::new();
    let mut at = 0;
    // Tables that name one cluster many times must not multiply the file.
    let mut budget = file_len / header.cluster_size() + 1;
    for index in 0..directory.count {
        let bad = |what: &str| blame.corrupt(format!("bitmap {index}: {what}"));
        if bytes.len() - at < FIXED {
            return Err(bad("lies outside the directory"));
        }
        let entry = &bytes[at..];
        let (name_len, extra_len) = (usize::from(be16(entry, 18)), be32(entry, 20) as usize);
        let Some(rest) = entry.get(FIXED..FIXED.saturating_add(extra_len + name_len)) else {
            return Err(bad("has no end"));
        };
        let (extra, name) = rest.split_at(extra_len);
        let flags = be32(entry, 12);
        let granularity_bits = u32::from(entry[17]);
        if entry[16] != TYPE_DIRTY || !(9..=31).contains(&granularity_bits) {
            return Err(bad("is of no known kind"));
        }
        if extra_len > 0 && flags & EXTRA_COMPATIBLE == 0 {
            return Err(bad("has extra data of no known kind"));
        }
        let name = String::from_utf8_lossy(name).into_owned();
        let mut bitmap = LiveBitmap::new(
            &name,
            granularity_bits,
            flags & AUTO != 0,
            header.cluster_size() as usize,
        );
        bitmap.broken = flags & IN_USE != 0;
        bitmap.extra = extra.to_vec();
        bitmap.table = Region { offset: be64(entry, 0), len: u64::from(be32(entry, 8)) * 8 };
        if bitmap.table.offset.checked_add(bitmap.table.len).is_none_or(|end| end > file_len) {
            return Err(bad("has its table outside the file"));
        }
        if contents {
            read_bits(storage, header, &mut bitmap, &mut budget, file_len, blame)?;
        }
        bitmaps.push(bitmap);
        at = (at + FIXED + extra_len + name_len).next_multiple_of(8).min(bytes.len());
    }
    Ok(bitmaps)
}

fn read_bits(
    storage: &dyn Storage,
    header: &Header,
    bitmap: &mut LiveBitmap,
    budget: &mut u64,
    file_len: u64,
    blame: &Blame,
) -> Result<()> {
    let cluster = header.cluster_size();
    let table = read_words(storage, bitmap.table.offset, (bitmap.table.len / 8) as usize)?;
    for word in table {
        let offset = word & OFFSET;
        if offset == 0 {
            bitmap.chunks.push(if word & 1 != 0 { Chunk::Full } else { Chunk::Clear });
            continue;
        }
        if *budget == 0 || !offset.is_multiple_of(cluster) || offset >= file_len {
            return Err(blame.corrupt(format!("bitmap '{}' has impossible data", bitmap.name)));
        }
        *budget -= 1;
        bitmap.clusters.push(offset);
        let bits =
            if bitmap.broken { Vec::new() } else { read_vec(storage, offset, cluster as usize)? };
        bitmap.chunks.push(Chunk::Bits(bits));
    }
    Ok(())
}

/// Stretches that bitmaps occupy: directory, tables, data.
pub(super) fn occupied(
    storage: &dyn Storage,
    header: &Header,
    blame: &Blame,
) -> Result<Vec<Region>> {
    let mut regions = Vec::new();
    if let Some(directory) = header.bitmaps {
        regions.push(directory.region);
        for bitmap in read_directory(storage, header, true, blame)? {
            regions.push(bitmap.table);
            let cluster = header.cluster_size();
            regions.extend(bitmap.clusters.iter().map(|&offset| Region { offset, len: cluster }));
        }
    }
    Ok(regions)
}

fn encode_directory(bitmaps: &[LiveBitmap], in_use: bool) -> Vec<u8> {
    let mut directory = Vec::new();
    for bitmap in bitmaps {
        let mut entry = [0; FIXED];
        put(&mut entry, 0, &bitmap.table.offset.to_be_bytes());
        put(&mut entry, 8, &((bitmap.table.len / 8) as u32).to_be_bytes());
        let mut flags = 0;
        if bitmap.broken || (in_use && bitmap.enabled) {
            flags |= IN_USE;
        }
        if bitmap.enabled {
            flags |= AUTO;
        }
        if !bitmap.extra.is_empty() {
            flags |= EXTRA_COMPATIBLE;
        }
        put(&mut entry, 12, &flags.to_be_bytes());
        entry[16] = TYPE_DIRTY;
        entry[17] = bitmap.granularity_bits as u8;
        put(&mut entry, 18, &(bitmap.name.len() as u16).to_be_bytes());
        put(&mut entry, 20, &(bitmap.extra.len() as u32).to_be_bytes());
        directory.extend(entry);
        directory.extend(&bitmap.extra);
        directory.extend(bitmap.name.as_bytes());
        directory.resize(directory.len().next_multiple_of(8), 0);
    }
    directory
}

impl Qcow2 {
    /// All bitmaps of the image.
    pub fn bitmaps(&self) -> Result<Vec<BitmapInfo>> {
        let meta = self.meta.lock();
        if self.writable {
            return Ok(meta.bitmaps.iter().map(LiveBitmap::info).collect());
        }
        let listed = read_directory(self.file(), &meta.header, false, &self.blame)?;
        Ok(listed.iter().map(LiveBitmap::info).collect())
    }

    pub(super) fn load_bitmaps(&self, meta: &mut Meta) -> Result<()> {
        meta.bitmaps = read_directory(self.file(), &meta.header, true, &self.blame)?;
        let size = meta.header.size;
        meta.bitmaps.iter_mut().for_each(|bitmap| bitmap.fit(size));
        Ok(())
    }

    /// Says in the file that its bitmaps lag behind.
    pub(super) fn mark_bitmaps_in_use(&self, meta: &mut Meta) -> Result<()> {
        if let Some(directory) = meta.header.bitmaps
            && !meta.bitmaps_in_use
        {
            let bytes = encode_directory(&meta.bitmaps, true);
            if bytes.len() as u64 == directory.region.len {
                self.file().write_at(directory.region.offset, &bytes)?;
                self.file().flush()?;
            }
        }
        meta.bitmaps_in_use = true;
        Ok(())
    }

    /// Writes bitmaps that changed, and a directory of all.
    pub(super) fn store_bitmaps(&self) -> Result<()> {
        let mut meta = self.meta.lock();
        if !meta.bitmaps_in_use {
            return Ok(());
        }
        let cluster = self.shape.cluster();
        let mut frees = Vec::new();
        if let Some(directory) = meta.header.bitmaps {
            let region = directory.region;
            frees.push(Free { offset: region.offset, len: region.len });
        }
        frees.append(&mut meta.bitmap_frees);
        let mut bitmaps = std::mem::take(&mut meta.bitmaps);
        for bitmap in bitmaps.iter_mut().filter(|bitmap| !bitmap.broken) {
            frees.extend(bitmap_frees(bitmap, cluster));
            bitmap.clusters.clear();
            let mut words = Vec::with_capacity(bitmap.chunks.len());
            for chunk in &bitmap.chunks {
                words.push(match chunk {
                    Chunk::Clear => 0,
                    Chunk::Full => 1,
                    Chunk::Bits(bits) => {
                        let offset = meta.refs.take_all(self.file(), 1, &self.blame)?;
                        self.file().write_at(offset, bits)?;
                        bitmap.clusters.push(offset);
                        offset
                    }
                });
            }
            let bytes = super::header::table_bytes(&words);
            bitmap.table = Region { offset: 0, len: bytes.len() as u64 };
            if !bytes.is_empty() {
                let count = bitmap.table.len.div_ceil(cluster);
                bitmap.table.offset = meta.refs.take_all(self.file(), count, &self.blame)?;
                self.file().write_at(bitmap.table.offset, &bytes)?;
            }
        }
        let bytes = encode_directory(&bitmaps, false);
        let mut directory = None;
        if !bytes.is_empty() {
            let len = bytes.len() as u64;
            let offset = meta.refs.take_all(self.file(), len.div_ceil(cluster), &self.blame)?;
            self.file().write_at(offset, &bytes)?;
            directory = Some(BitmapDirectory {
                count: bitmaps.len() as u32,
                region: Region { offset, len },
            });
        }
        meta.bitmaps = bitmaps;
        drop(meta);
        self.commit_meta(true)?;
        let mut meta = self.meta.lock();
        meta.header.bitmaps = directory;
        meta.header.autoclear &= !AUTOCLEAR_BITMAPS;
        if directory.is_some() {
            meta.header.autoclear |= AUTOCLEAR_BITMAPS;
        }
        meta.write_header(self.file())?;
        self.file().flush()?;
        meta.frees.extend(frees);
        meta.bitmaps_in_use = false;
        Ok(())
    }

    /// Runs a change of the list of bitmaps.
    fn edit_bitmaps<T>(&self, edit: impl FnOnce(&mut Meta) -> Result<T>) -> Result<T> {
        self.check_writable()?;
        let mut meta = self.meta.lock();
        if meta.header.version < 3 {
            return Err(self.blame.unsupported("bitmaps in version 2"));
        }
        self.mark_bitmaps_in_use(&mut meta)?;
        let result = edit(&mut meta);
        let live = meta.bitmaps.iter().any(LiveBitmap::enabled);
        drop(meta);
        self.live_bitmaps.store(live, Ordering::Release);
        result
    }

    /// A new and empty bitmap.
    pub fn add_bitmap(&self, name: &str, granularity: u64, enabled: bool) -> Result<()> {
        let bits = granularity.trailing_zeros();
        if !granularity.is_power_of_two() || !(9..=31).contains(&bits) {
            return Err(Error::option(
                "granularity",
                "takes a power of two from 512 bytes to 2 GiB",
            ));
        }
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(Error::option("bitmap", "a name has 1 to 1023 bytes"));
        }
        let size = self.size();
        let chunk = self.shape.cluster() as usize;
        self.edit_bitmaps(|meta| {
            if meta.bitmaps.iter().any(|bitmap| bitmap.name == name) {
                return Err(named(name, "exists already"));
            }
            let mut bitmap = LiveBitmap::new(name, bits, enabled, chunk);
            bitmap.fit(size);
            meta.bitmaps.push(bitmap);
            Ok(())
        })
    }

    /// Removes a bitmap, also an inconsistent one.
    pub fn remove_bitmap(&self, name: &str) -> Result<()> {
        let cluster = self.shape.cluster();
        self.edit_bitmaps(|meta| {
            let index = meta.bitmaps.iter().position(|bitmap| bitmap.name == name);
            let gone = meta.bitmaps.remove(index.ok_or_else(|| named(name, "does not exist"))?);
            meta.bitmap_frees.extend(bitmap_frees(&gone, cluster));
            Ok(())
        })
    }

    fn with_bitmap(&self, name: &str, edit: impl FnOnce(&mut LiveBitmap)) -> Result<()> {
        self.edit_bitmaps(|meta| {
            let bitmap = meta.bitmaps.iter_mut().find(|bitmap| bitmap.name == name);
            let bitmap = bitmap.ok_or_else(|| named(name, "does not exist"))?;
            if bitmap.broken {
                return Err(named(name, "is inconsistent; it can only be removed"));
            }
            edit(bitmap);
            Ok(())
        })
    }

    /// Forgets all changes noted.
    pub fn clear_bitmap(&self, name: &str) -> Result<()> {
        self.with_bitmap(name, |bitmap| bitmap.chunks.fill(Chunk::Clear))
    }

    /// Starts or stops recording.
    pub fn enable_bitmap(&self, name: &str, enabled: bool) -> Result<()> {
        self.with_bitmap(name, |bitmap| bitmap.enabled = enabled)
    }

    /// Notes in one bitmap what another (of this or another image) has.
    pub fn merge_bitmap(&self, name: &str, from: &Qcow2, source: &str) -> Result<()> {
        let stretches = from.dirty_stretches(source)?;
        self.with_bitmap(name, |bitmap| {
            let enabled = std::mem::replace(&mut bitmap.enabled, true);
            for (offset, len) in stretches {
                bitmap.mark(offset, len);
            }
            bitmap.enabled = enabled;
        })
    }

    /// What a bitmap says has changed: offsets and lengths.
    pub fn dirty_stretches(&self, name: &str) -> Result<Vec<(u64, u64)>> {
        let meta = self.meta.lock();
        let read;
        let bitmaps = if self.writable {
            &meta.bitmaps
        } else {
            read = read_directory(self.file(), &meta.header, true, &self.blame)?;
            &read
        };
        let bitmap = bitmaps.iter().find(|bitmap| bitmap.name == name);
        let bitmap = bitmap.ok_or_else(|| named(name, "does not exist"))?;
        if bitmap.broken {
            return Err(named(name, "is inconsistent; it can only be removed"));
        }
        let size = self.size();
        let mut stretches: Vec<(u64, u64)> = Vec::new();
        let unit = 1_u64 << bitmap.granularity_bits;
        let span = bitmap.bits_per_chunk() << bitmap.granularity_bits;
        for (index, chunk) in bitmap.chunks.iter().enumerate() {
            let start = index as u64 * span;
            let stop = size.min(start.saturating_add(span));
            let mut note = |offset: u64, len: u64| match stretches.last_mut() {
                Some((at, n)) if *at + *n == offset => *n += len,
                _ => stretches.push((offset, len)),
            };
            match chunk {
                Chunk::Clear => {}
                Chunk::Full if start < stop => note(start, stop - start),
                Chunk::Full => {}
                Chunk::Bits(_) => {
                    let mut at = start;
                    while at < stop {
                        if bitmap.get(at) {
                            note(at, unit.min(stop - at));
                        }
                        at += unit;
                    }
                }
            }
        }
        Ok(stretches)
    }
}

fn bitmap_frees(bitmap: &LiveBitmap, cluster: u64) -> Vec<Free> {
    let mut frees: Vec<Free> =
        bitmap.clusters.iter().map(|&offset| Free { offset, len: cluster }).collect();
    if bitmap.table.offset != 0 {
        frees.push(Free { offset: bitmap.table.offset, len: bitmap.table.len });
    }
    frees
}

fn named(name: &str, problem: &'static str) -> Error {
    Error::Named { what: "bitmap", name: name.to_owned(), problem }
}
