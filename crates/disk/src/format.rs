//! `Format`: what an image format must be able to do, whichever it is.
//!
//! A format maps the guest's disk onto storage and keeps the map sound. It
//! does not know what stands below it (a backing file): where it has nothing
//! itself, the caller hands it a [`Below`] to read from.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::codec::Codec;
use crate::error::{Error, Result};
use crate::formats::qcow2::{Qcow2, Ticket};
use crate::storage::{SharedStorage, Storage};

/// The formats by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FormatKind {
    Raw,
    Qcow2,
    Vmdk,
    Vhd,
    Vhdx,
    Vdi,
    Parallels,
    Luks,
    Ova,
}

impl FormatKind {
    /// All of them, for lists in help texts.
    pub const ALL: [Self; 9] = [
        Self::Raw,
        Self::Qcow2,
        Self::Vmdk,
        Self::Vhd,
        Self::Vhdx,
        Self::Vdi,
        Self::Parallels,
        Self::Luks,
        Self::Ova,
    ];

    /// As Guise writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
            Self::Parallels => "parallels",
            Self::Luks => "luks",
            Self::Ova => "ova",
        }
    }

    /// As QEMU's tools and backing references write it.
    pub const fn qemu_name(self) -> &'static str {
        match self {
            Self::Vhd => "vpc",
            other => other.name(),
        }
    }

    /// From any of its names.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "vpc" => Some(Self::Vhd),
            "file" | "host_device" => Some(Self::Raw),
            _ => Self::ALL.into_iter().find(|kind| kind.name() == name),
        }
    }
}

/// What stands at one place of the disk, as far as this layer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing here: what is below shows through.
    Unallocated,
    /// Reads as zeroes; `at` where space is kept for it.
    Zero { at: Option<Place> },
    /// Bytes as they are, at this place.
    Data { at: Place },
    /// Bytes that have to be unpacked or decrypted.
    Packed { compressed: bool },
}

/// A position in one of the files of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index into what [`Format::storages`] gives.
    pub file: u16,
    pub offset: u64,
}

/// Bytes side by side in a file: where they begin, and how many.
pub type Run = (Place, u64);

/// A stretch of the disk in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub len: u64,
    pub state: State,
}

/// What shows through where a layer has nothing.
pub trait Below: Sync {
    /// Fills the buffer from the layers below; zeroes past their end.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
    /// Whether a stretch is known to read as zeroes.
    fn is_zero(&self, offset: u64, len: u64) -> Result<bool>;
}

/// Nothing is below: zeroes.
pub struct Bottom;

impl Below for Bottom {
    fn read(&self, _offset: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(0);
        Ok(())
    }

    fn is_zero(&self, _offset: u64, _len: u64) -> Result<bool> {
        Ok(true)
    }
}

/// A reference to the image below, as an image records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingReference {
    /// As written in the image: relative to the image's own directory.
    pub name: String,
    /// The format, where it is recorded.
    pub format: Option<String>,
}

/// What a check found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Contradictions that can cost data.
    pub corruptions: u64,
    /// Space that is marked as used and is not.
    pub leaks: u64,
    pub corruptions_fixed: u64,
    pub leaks_fixed: u64,
    /// One line for each thing found.
    pub findings: Vec<String>,
    /// Clusters in the disk, and how they are stored.
    pub total_clusters: u64,
    pub allocated_clusters: u64,
    pub compressed_clusters: u64,
    pub fragmented_clusters: u64,
    /// Where the last cluster in use ends.
    pub image_end: Option<u64>,
}

impl CheckReport {
    /// Findings in full are for people: past this many only counts go on.
    const FINDINGS: usize = 200;

    pub(crate) fn corrupt(&mut self, what: impl Into<String>) {
        self.corruptions += 1;
        self.find(what.into());
    }

    pub(crate) fn leak(&mut self, what: impl Into<String>) {
        self.leaks += 1;
        self.find(what.into());
    }

    fn find(&mut self, what: String) {
        if self.findings.len() < Self::FINDINGS {
            self.findings.push(what);
        }
    }
}

/// What a check may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    Nothing,
    Leaks,
    All,
}

/// A tree of facts about an image, for `info`.
#[derive(Clone, Debug, PartialEq)]
pub enum Detail {
    Bool(bool),
    Number(u64),
    Text(String),
    List(Vec<Detail>),
    Map(Vec<(String, Detail)>),
}

impl Detail {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }
}

impl Serialize for Detail {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(value) => serializer.serialize_u64(*value),
            Self::Text(value) => serializer.serialize_str(value),
            Self::List(items) => items.serialize(serializer),
            Self::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

/// How a disk grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Space is taken when it is written.
    #[default]
    Off,
    /// The map is complete, the data sparse.
    Metadata,
    /// Space is reserved.
    Falloc,
    /// Space is written with zeroes.
    Full,
}

impl Preallocation {
    /// From its name in options.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "off" => Self::Off,
            "metadata" => Self::Metadata,
            "falloc" => Self::Falloc,
            "full" => Self::Full,
            _ => return None,
        })
    }
}

/// Held while somebody else does I/O at places that the format named: they are
/// not used for something else meanwhile.
#[derive(Default)]
pub struct Guard {
    _ticket: Option<Ticket>,
}

impl Guard {
    pub(crate) fn holding(ticket: Ticket) -> Self {
        Self { _ticket: Some(ticket) }
    }
}

/// One image of one format, open.
///
/// All methods take `&self`: an image serves several queue threads. Requests
/// have been checked against the size before they come here.
pub trait Format: Send + Sync {
    fn kind(&self) -> FormatKind;

    /// The disk's size in bytes.
    fn size(&self) -> u64;

    /// The unit in which space is taken.
    fn cluster_size(&self) -> u64;

    /// The files that the image is made of; [`Place::file`] counts in these.
    fn storages(&self) -> &[SharedStorage];

    /// The state at `offset`, for as far as it goes and at most `len`.
    fn map(&self, offset: u64, len: u64) -> Result<Extent>;

    /// Unpacks a stretch for which `map` said [`State::Packed`].
    fn read_packed(&self, _offset: u64, _buf: &mut [u8]) -> Result<()> {
        Err(Error::NoSuchOperation { format: self.kind().name(), what: "packed clusters" })
    }

    /// Reads, taking from below what is not here.
    fn read(&self, offset: u64, buf: &mut [u8], below: &dyn Below) -> Result<()> {
        read_by_map(self, offset, buf, below)
    }

    /// Writes; what the touched clusters hold besides comes from below.
    fn write(&self, offset: u64, data: &[u8], below: &dyn Below) -> Result<()>;

    /// Makes a stretch read as zeroes, with as little space as can be if
    /// `unmap`.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()>;

    /// Gives up contents: afterwards the stretch reads as zeroes or as before.
    fn discard(&self, offset: u64, len: u64, below: &dyn Below) -> Result<()>;

    /// Everything acknowledged so far is stable afterwards.
    fn flush(&self) -> Result<()>;

    /// Changes the size.
    fn resize(&self, _size: u64, _preallocation: Preallocation) -> Result<()> {
        Err(Error::NoSuchOperation { format: self.kind().name(), what: "resizing" })
    }

    /// How compressed clusters are packed here, if at all.
    fn codec(&self) -> Option<Codec> {
        None
    }

    /// Whether the format takes packed clusters only.
    fn always_packed(&self) -> bool {
        false
    }

    /// Stores a cluster that was packed with the format's codec.
    fn write_packed(&self, _offset: u64, _packed: &[u8]) -> Result<()> {
        Err(Error::NoSuchOperation { format: self.kind().name(), what: "compressed clusters" })
    }

    /// Verifies the metadata, and repairs it as far as allowed.
    fn check(&self, _repair: Repair) -> Result<CheckReport> {
        Err(Error::NoSuchOperation { format: self.kind().name(), what: "checks" })
    }

    /// The image below, as recorded.
    fn backing(&self) -> Option<BackingReference> {
        None
    }

    /// What `info` tells besides the common facts.
    fn details(&self) -> Vec<(String, Detail)> {
        Vec::new()
    }

    /// Whether new space reads as zeroes without writing any.
    fn starts_zeroed(&self) -> bool {
        true
    }

    /// Adds the places where a write that needs no change of metadata goes, if
    /// all of the stretch is like that: what a ring can submit by itself.
    fn write_in_place(&self, _offset: u64, _len: u64, _to: &mut Vec<Run>) -> Result<bool> {
        Ok(false)
    }

    /// To be taken before places are asked for, and held while they are used.
    fn guard(&self) -> Guard {
        Guard::default()
    }

    /// Flushes and marks the image as cleanly closed. No I/O comes after.
    fn close(&self) -> Result<()> {
        self.flush()
    }

    /// The operations that only qcow2 has.
    fn as_qcow2(&self) -> Option<&Qcow2> {
        None
    }
}

/// Reading, for every format that keeps plain data in its map.
pub(crate) fn read_by_map<F: Format + ?Sized>(
    format: &F,
    mut offset: u64,
    mut buf: &mut [u8],
    below: &dyn Below,
) -> Result<()> {
    while !buf.is_empty() {
        let extent = format.map(offset, buf.len() as u64)?;
        let len = (extent.len as usize).min(buf.len());
        debug_assert!(len > 0, "an extent is never empty");
        let (part, rest) = buf.split_at_mut(len);
        match extent.state {
            State::Unallocated => below.read(offset, part)?,
            State::Zero { .. } => part.fill(0),
            State::Data { at } => {
                format.storages()[usize::from(at.file)].read_at(at.offset, part)?;
            }
            State::Packed { .. } => format.read_packed(offset, part)?,
        }
        offset += len as u64;
        buf = rest;
    }
    Ok(())
}

/// Flushes all files of an image.
pub(crate) fn flush_all(storages: &[SharedStorage]) -> Result<()> {
    storages.iter().try_for_each(|storage| storage.flush())
}

/// Whether a stretch of bytes is all zeroes.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Most data differs in the first bytes; a full scan only of what may be.
    let (head, rest) = bytes.split_at(bytes.len().min(64));
    if head.iter().any(|&byte| byte != 0) {
        return false;
    }
    let mut chunks = rest.chunks_exact(256);
    for chunk in &mut chunks {
        if chunk.iter().fold(0, |all, &byte| all | byte) != 0 {
            return false;
        }
    }
    chunks.remainder().iter().all(|&byte| byte == 0)
}

/// Finds out the format from the first bytes, for reading only: a guest can
/// write any header into a raw disk.
pub fn probe(storage: &dyn Storage) -> Result<FormatKind> {
    let len = storage.len()?;
    let mut head = [0; 1024];
    storage.read_at(0, &mut head)?;
    let text = |at: usize, what: &[u8]| head[at..].starts_with(what);
    if text(0, b"QFI\xfb") {
        return Ok(FormatKind::Qcow2);
    }
    if text(0, b"KDMV") || text(0, b"COWD") || text(0, &0xcafe_babe_u64.to_le_bytes()) {
        return Ok(FormatKind::Vmdk);
    }
    if text(0, b"vhdxfile") {
        return Ok(FormatKind::Vhdx);
    }
    if text(0, b"conectix") {
        return Ok(FormatKind::Vhd);
    }
    if text(0, b"WithoutFreeSpace") || text(0, b"WithouFreSpacExt") {
        return Ok(FormatKind::Parallels);
    }
    if text(64, &0xbeda_107f_u32.to_le_bytes()) {
        return Ok(FormatKind::Vdi);
    }
    if text(0, b"LUKS\xba\xbe") {
        return Ok(FormatKind::Luks);
    }
    if text(257, b"ustar") && head[..100].windows(4).any(|w| w.eq_ignore_ascii_case(b".ovf")) {
        return Ok(FormatKind::Ova);
    }
    let first = String::from_utf8_lossy(&head);
    if first.contains("<Parallels_disk_image") {
        return Ok(FormatKind::Parallels);
    }
    let descriptor = first
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'))
        .is_some_and(|line| line.to_ascii_lowercase().replace(' ', "").starts_with("version="));
    if descriptor && first.contains("# Disk DescriptorFile") {
        return Ok(FormatKind::Vmdk);
    }
    if len >= 512 {
        let mut foot = [0; 8];
        storage.read_at(len - 512, &mut foot)?;
        if &foot == b"conectix" {
            return Ok(FormatKind::Vhd);
        }
    }
    Ok(FormatKind::Raw)
}

#[cfg(test)]
mod tests;
