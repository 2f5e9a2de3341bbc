//! VMDK: disks of VMware, as one file or as a descriptor with extents.
//!
//! `descriptor` is the text, `grains` the sparse extents (hosted, vmfsSparse
//! and seSparse), `stream` the packed variant; `create` makes new images, `grow` larger ones.

mod create;
mod descriptor;
mod grains;
mod grow;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

pub use create::{CreateOptions, Subformat};

use self::descriptor::{Descriptor, MAX_LEN, Storing};
use self::grains::{GD_AT_END, Grains, HEADER_LEN, SECTOR, SparseHeader};
use self::stream::Stream;
use super::blocks::Blocks;
use crate::codec::Codec;
use crate::error::{Blame, Error, Result};
use crate::format::{
    BackingReference, Below, CheckReport, Detail, Extent, Format, FormatKind, Place, Preallocation,
    Repair, State,
};
use crate::storage::{SharedStorage, Storage, read_vec};

/// A VMDK disk.
pub struct Vmdk {
    storages: Vec<SharedStorage>,
    parts: Vec<Part>,
    size: AtomicU64,
    descriptor: Descriptor,
    /// Where the descriptor's text is: file, offset, bytes.
    text_at: (u64, u64),
    stream: Option<Mutex<Stream>>,
    touched: AtomicBool,
    writable: bool,
    blame: Blame,
}

/// One extent.
struct Part {
    start: u64,
    /// Only the last one grows.
    len: AtomicU64,
    body: Body,
}

impl Part {
    fn new(start: u64, len: u64, body: Body) -> Self {
        Self { start, len: AtomicU64::new(len), body }
    }

    fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }
}

enum Body {
    Flat { file: u16, offset: u64 },
    Zero,
    Sparse(Box<Blocks<Grains>>),
}

/// Opens a file that the descriptor names.
pub type Sibling<'a> = &'a dyn Fn(&str) -> Result<SharedStorage>;

impl Vmdk {
    /// Opens a disk by its descriptor or its only file.
    pub fn open(storage: SharedStorage, write: bool, sibling: Sibling<'_>) -> Result<Self> {
        let blame = Blame::new("vmdk", storage.name());
        let head = read_vec(&*storage, 0, HEADER_LEN)?;
        if head.starts_with(b"KDMV") {
            return Self::open_hosted(storage, &head, write, blame);
        }
        if head.starts_with(b"COWD") {
            let (grains, sectors) = Grains::cowd(&*storage, &blame)?;
            return Self::lone(storage, grains, sectors, "vmfsSparse", write, blame);
        }
        let len = storage.len()?;
        let (text, _) = read_text(&*storage, 0, len.min(MAX_LEN))?;
        if len > MAX_LEN || !text.contains("# Disk DescriptorFile") {
            return Err(blame.other_format());
        }
        let descriptor = Descriptor::parse(&text, &blame)?;
        let mut storages = vec![storage];
        let mut parts = Vec::new();
        let mut size = 0_u64;
        for line in &descriptor.extents {
            let bytes = line.sectors * SECTOR;
            let body = if line.storing == Storing::Zero {
                Body::Zero
            } else {
                let file = sibling(&line.file)?;
                let number = storages.len() as u16;
                storages.push(Arc::clone(&file));
                open_extent(line.storing, file, number, line, write, &blame)?
            };
            parts.push(Part::new(size, bytes, body));
            size = size
                .checked_add(bytes)
                .filter(|&size| size <= i64::MAX as u64)
                .ok_or_else(|| blame.corrupt("a disk of an impossible size"))?;
        }
        Ok(Self {
            storages,
            parts,
            size: AtomicU64::new(size),
            descriptor,
            text_at: (0, len),
            stream: None,
            touched: AtomicBool::new(false),
            writable: write,
            blame,
        })
    }

    /// One file with header, descriptor and grains.
    fn open_hosted(storage: SharedStorage, head: &[u8], write: bool, blame: Blame) -> Result<Self> {
        let mut header = SparseHeader::parse(head, &blame)?;
        let front = header.clone();
        let (offset, len) = (header.descriptor.0, header.descriptor.1);
        let descriptor = if offset > 0 && len > 0 {
            let len = len.saturating_mul(SECTOR).min(MAX_LEN);
            let (text, _) = read_text(&*storage, offset.saturating_mul(SECTOR), len)?;
            Some(Descriptor::parse(&text, &blame)?)
        } else {
            None
        };
        if header.directory == GD_AT_END {
            header = read_footer(&*storage, &blame)?;
        }
        let mut grains = Grains::hosted(&*storage, &header, &blame)?;
        let stream = match write && header.packed() {
            true => {
                let front = SparseHeader { directory: GD_AT_END, ..front };
                Some(Mutex::new(Stream::new(&*storage, front, &mut grains)?))
            }
            false => None,
        };
        let text_at = match &descriptor {
            Some(_) => (offset * SECTOR, len.saturating_mul(SECTOR).min(MAX_LEN)),
            None => (0, 0),
        };
        let descriptor = descriptor.unwrap_or_else(|| lone_descriptor("monolithicSparse"));
        let size = header.capacity * SECTOR;
        let grain = header.grain * SECTOR;
        let blocks = Blocks::new(storage.clone(), 0, grain, grains, write, blame.clone());
        Ok(Self {
            storages: vec![storage],
            parts: vec![Part::new(0, size, Body::Sparse(Box::new(blocks)))],
            size: AtomicU64::new(size),
            descriptor,
            text_at,
            stream,
            touched: AtomicBool::new(false),
            writable: write,
            blame,
        })
    }

    /// An extent without a descriptor.
    fn lone(
        storage: SharedStorage,
        grains: Grains,
        sectors: u64,
        kind: &str,
        write: bool,
        blame: Blame,
    ) -> Result<Self> {
        if write {
            return Err(blame.unsupported(format!("writing {kind} extents")));
        }
        let size = sectors * SECTOR;
        let block = grains.grain();
        let blocks = Blocks::new(storage.clone(), 0, block, grains, false, blame.clone());
        Ok(Self {
            storages: vec![storage],
            parts: vec![Part::new(0, size, Body::Sparse(Box::new(blocks)))],
            size: AtomicU64::new(size),
            descriptor: lone_descriptor(kind),
            text_at: (0, 0),
            stream: None,
            touched: AtomicBool::new(false),
            writable: false,
            blame,
        })
    }

    /// The identity of the contents, which children remember.
    pub fn content_id(&self) -> u32 {
        self.descriptor.cid
    }

    fn part(&self, offset: u64) -> Result<&Part> {
        let after = self.parts.partition_point(|part| part.start <= offset);
        let part = after.checked_sub(1).and_then(|index| self.parts.get(index));
        part.filter(|part| offset - part.start < part.len()).ok_or_else(|| Error::OutOfRange {
            offset,
            len: 1,
            size: self.size(),
        })
    }

    /// Before the first change the disk gets a new identity, by which children
    /// notice that what they stand on has changed.
    fn touch(&self) -> Result<()> {
        if !self.writable {
            return Err(self.blame.read_only());
        }
        if self.text_at.1 == 0 || self.touched.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let (text, _) = read_text(&*self.storages[0], self.text_at.0, self.text_at.1)?;
        let old = format!("CID={:08x}", self.descriptor.cid);
        let found = text
            .match_indices(&old)
            .map(|(at, _)| at)
            .find(|&at| at == 0 || text.as_bytes()[at - 1] == b'\n');
        if let Some(at) = found {
            let new = uuid::Uuid::new_v4().as_u128() as u32 & 0xffff_fffe;
            let line = format!("CID={new:08x}");
            self.storages[0].write_at(self.text_at.0 + at as u64, line.as_bytes())?;
        }
        Ok(())
    }

    /// A write to a stream: whole grains, packed and appended.
    fn write_stream(
        &self,
        stream: &Mutex<Stream>,
        mut offset: u64,
        mut data: &[u8],
        below: &dyn Below,
    ) -> Result<()> {
        let grain = self.cluster_size();
        while !data.is_empty() {
            let (index, within) = (offset / grain, offset % grain);
            let len = data.len().min((grain - within) as usize);
            let (part, rest) = data.split_at(len);
            let mut whole = vec![0; grain as usize];
            let inside = (self.size() - index * grain).min(grain) as usize;
            if len < inside {
                self.read(index * grain, &mut whole[..inside], below)?;
            }
            whole[within as usize..within as usize + len].copy_from_slice(part);
            self.append(stream, index, &Stream::pack(&whole))?;
            offset += len as u64;
            data = rest;
        }
        Ok(())
    }

    fn append(&self, stream: &Mutex<Stream>, index: u64, packed: &[u8]) -> Result<()> {
        let Body::Sparse(blocks) = &self.parts[0].body else { return Ok(()) };
        let mut stream = stream.lock();
        stream.append(blocks.file(), &mut blocks.table(), index, packed, &self.blame)
    }

    /// Runs something on each part that a stretch touches.
    fn each_part(
        &self,
        mut offset: u64,
        len: u64,
        mut visit: impl FnMut(&Part, u64, u64) -> Result<()>,
    ) -> Result<()> {
        let end = offset + len;
        while offset < end {
            let part = self.part(offset)?;
            let stop = end.min(part.start + part.len());
            visit(part, offset - part.start, stop - offset)?;
            offset = stop;
        }
        Ok(())
    }
}

/// What is below, as an extent that starts somewhere sees it.
struct Shifted<'a> {
    below: &'a dyn Below,
    start: u64,
}

impl Below for Shifted<'_> {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.below.read(self.start + offset, buf)
    }

    fn is_zero(&self, offset: u64, len: u64) -> Result<bool> {
        self.below.is_zero(self.start + offset, len)
    }
}

fn lone_descriptor(kind: &str) -> Descriptor {
    Descriptor {
        cid: 0,
        has_parent: false,
        parent: None,
        create_type: kind.to_owned(),
        extents: Vec::new(),
    }
}

fn read_text(storage: &dyn Storage, offset: u64, len: u64) -> Result<(String, u64)> {
    let bytes = read_vec(storage, offset, len as usize)?;
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    Ok((String::from_utf8_lossy(&bytes[..end]).into_owned(), len))
}

/// The copy of the header at the end of a stream, with the directory's place.
fn read_footer(storage: &dyn Storage, blame: &Blame) -> Result<SparseHeader> {
    let len = storage.len()?;
    let at = len.checked_sub(1024).ok_or_else(|| blame.corrupt("a stream without its footer"))?;
    let footer = SparseHeader::parse(&read_vec(storage, at, HEADER_LEN)?, blame)?;
    if footer.directory == GD_AT_END {
        return Err(blame.corrupt("the stream's footer does not tell where its directory is"));
    }
    Ok(footer)
}

fn open_extent(
    storing: Storing,
    file: SharedStorage,
    number: u16,
    line: &descriptor::ExtentLine,
    write: bool,
    blame: &Blame,
) -> Result<Body> {
    let blame = Blame::new("vmdk", format!("{}: {}", blame.name, line.file));
    let write = write && line.writable;
    let (grains, grain, sectors) = match storing {
        Storing::Flat | Storing::Zero => {
            return Ok(Body::Flat { file: number, offset: line.offset * SECTOR });
        }
        Storing::Sparse => {
            let head = read_vec(&*file, 0, HEADER_LEN)?;
            let mut header = SparseHeader::parse(&head, &blame)?;
            if header.directory == GD_AT_END {
                header = read_footer(&*file, &blame)?;
            }
            if write && header.packed() {
                return Err(blame.unsupported("writing a packed extent among others"));
            }
            let grains = Grains::hosted(&*file, &header, &blame)?;
            (grains, header.grain * SECTOR, header.capacity)
        }
        Storing::VmfsSparse => {
            let (grains, sectors) = Grains::cowd(&*file, &blame)?;
            let grain = grains.grain();
            (grains, grain, sectors)
        }
        Storing::SeSparse => {
            let (grains, sectors) = Grains::sesparse(&*file, &blame)?;
            let grain = grains.grain();
            (grains, grain, sectors)
        }
    };
    if write && matches!(storing, Storing::VmfsSparse | Storing::SeSparse) {
        return Err(blame.unsupported("writing the sparse formats of ESX"));
    }
    if sectors < line.sectors {
        return Err(blame.corrupt("the extent is shorter than its descriptor says"));
    }
    Ok(Body::Sparse(Box::new(Blocks::new(file, number, grain, grains, write, blame))))
}

impl Format for Vmdk {
    fn kind(&self) -> FormatKind {
        FormatKind::Vmdk
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn cluster_size(&self) -> u64 {
        let sparse = self.parts.iter().find_map(|part| match &part.body {
            Body::Sparse(blocks) => Some(blocks.block()),
            _ => None,
        });
        sparse.unwrap_or(64 << 10)
    }

    fn storages(&self) -> &[SharedStorage] {
        &self.storages
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        let part = self.part(offset)?;
        let within = offset - part.start;
        let len = len.min(part.len() - within);
        match &part.body {
            Body::Zero => Ok(Extent { len, state: State::Zero { at: None } }),
            Body::Sparse(blocks) => blocks.map(within, len),
            Body::Flat { file, offset } => {
                let at = Place { file: *file, offset: offset + within };
                let run = self.storages[usize::from(*file)].run_at(at.offset)?;
                let state = if run.data || run.len == 0 {
                    State::Data { at }
                } else {
                    State::Zero { at: Some(at) }
                };
                let run_len = if run.len == 0 { len } else { run.len };
                Ok(Extent { len: run_len.min(len), state })
            }
        }
    }

    fn read_packed(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let part = self.part(offset)?;
        match &part.body {
            Body::Sparse(blocks) => blocks.read_packed(offset - part.start, buf),
            _ => Err(self.blame.corrupt("a packed grain in a flat extent")),
        }
    }

    fn write(&self, offset: u64, data: &[u8], below: &dyn Below) -> Result<()> {
        self.touch()?;
        if let Some(stream) = &self.stream {
            return self.write_stream(stream, offset, data, below);
        }
        let mut left = data;
        self.each_part(offset, data.len() as u64, |part, within, len| {
            let (here, rest) = left.split_at(len as usize);
            left = rest;
            match &part.body {
                Body::Sparse(blocks) => {
                    blocks.write(within, here, &Shifted { below, start: part.start })
                }
                Body::Flat { file, offset } => {
                    self.storages[usize::from(*file)].write_at(offset + within, here)
                }
                Body::Zero => Err(self.blame.unsupported("writing to an extent of zeroes")),
            }
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        self.touch()?;
        if let Some(stream) = &self.stream {
            if self.map(offset, len)?.state == State::Unallocated
                && self.map(offset, len)?.len == len
                && below.is_zero(offset, len)?
            {
                return Ok(());
            }
            let mut at = offset;
            while at < offset + len {
                let step = (offset + len - at).min(self.cluster_size() - at % self.cluster_size());
                self.write_stream(stream, at, &vec![0; step as usize], below)?;
                at += step;
            }
            return Ok(());
        }
        self.each_part(offset, len, |part, within, len| match &part.body {
            Body::Sparse(blocks) => {
                blocks.zero(within, len, unmap, &Shifted { below, start: part.start })
            }
            Body::Flat { file, offset } => {
                self.storages[usize::from(*file)].write_zeroes(offset + within, len, unmap)
            }
            Body::Zero => Ok(()),
        })
    }

    fn discard(&self, offset: u64, len: u64, below: &dyn Below) -> Result<()> {
        self.write_zeroes(offset, len, true, below)
    }

    fn flush(&self) -> Result<()> {
        if let Some(stream) = &self.stream {
            stream.lock().finish(&*self.storages[0])?;
            return self.storages[0].flush();
        }
        for part in &self.parts {
            if let Body::Sparse(blocks) = &part.body {
                blocks.flush()?;
            }
        }
        crate::format::flush_all(&self.storages)
    }

    fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.grow(size, preallocation)
    }

    fn codec(&self) -> Option<Codec> {
        self.stream.as_ref().map(|_| Codec::Zlib)
    }

    fn always_packed(&self) -> bool {
        self.stream.is_some()
    }

    fn write_packed(&self, offset: u64, packed: &[u8]) -> Result<()> {
        self.touch()?;
        match &self.stream {
            Some(stream) => self.append(stream, offset / self.cluster_size(), packed),
            None => Err(Error::NoSuchOperation { format: "vmdk", what: "packed grains here" }),
        }
    }

    fn check(&self, repair: Repair) -> Result<CheckReport> {
        if repair != Repair::Nothing {
            return Err(Error::NoSuchOperation { format: "vmdk", what: "repair" });
        }
        let mut report = CheckReport::default();
        for part in &self.parts {
            let Body::Sparse(blocks) = &part.body else { continue };
            let file_len = blocks.file().len()?;
            let mut used = std::collections::HashSet::new();
            let total = part.len().div_ceil(blocks.block());
            report.total_clusters += total;
            let mut grains = blocks.table();
            for grain in 0..total {
                use super::blocks::{Slot, Table};
                match grains.get(blocks.file(), grain)? {
                    Slot::At(at) | Slot::Packed(at) => {
                        report.allocated_clusters += 1;
                        if at >= file_len {
                            report.corrupt(format!("grain {grain} lies outside the file"));
                        }
                        if !used.insert(at) {
                            report.corrupt(format!("grain {grain} shares its place with another"));
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(report)
    }

    fn backing(&self) -> Option<BackingReference> {
        let name = self.descriptor.parent.clone().filter(|_| self.descriptor.has_parent)?;
        Some(BackingReference { name, format: Some("vmdk".to_owned()) })
    }

    fn details(&self) -> Vec<(String, Detail)> {
        let extents = self
            .parts
            .iter()
            .map(|part| {
                let kind = match &part.body {
                    Body::Flat { .. } => "FLAT",
                    Body::Zero => "ZERO",
                    Body::Sparse(_) => "SPARSE",
                };
                Detail::Map(vec![
                    ("virtual-size".to_owned(), Detail::Number(part.len())),
                    ("format".to_owned(), Detail::text(kind)),
                ])
            })
            .collect();
        vec![
            ("cid".to_owned(), Detail::Number(u64::from(self.descriptor.cid))),
            ("create-type".to_owned(), Detail::text(&self.descriptor.create_type)),
            ("extents".to_owned(), Detail::List(extents)),
        ]
    }
}
