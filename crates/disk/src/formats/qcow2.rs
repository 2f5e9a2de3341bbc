//! qcow2, versions 2 and 3.
//!
//! | file | subject |
//! |---|---|
//! | `header` | the header and its extensions |
//! | `entry` | entries of L2 tables, plain and extended, in one form |
//! | `refcounts` | reference counts, allocation |
//! | `meta` | metadata in memory and the order of its way to the file |
//! | `io` | read, write, zero, discard, compressed clusters |
//! | `snapshot`, `bitmap` | internal snapshots, persistent dirty bitmaps |
//! | `check` | verification and repair |
//! | `create`, `resize` | new images; size and options of existing ones |

mod bitmap;
mod check;
mod create;
mod entry;
mod header;
mod io;
mod meta;
mod refcounts;
mod resize;
mod snapshot;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

pub use bitmap::BitmapInfo;
pub use create::{CreateOptions, Encryption};
pub use resize::Amendment;
pub use snapshot::SnapshotInfo;

use self::entry::Shape;
use self::header::{
    AUTOCLEAR_KNOWN, COMPAT_LAZY, Crypt, Header, INCOMPAT_CORRUPT, INCOMPAT_DIRTY, read_table,
};
pub(crate) use self::meta::Ticket;
use self::meta::{Epochs, Meta, write_staged};
use self::refcounts::Refcounts;
use crate::codec::Codec;
use crate::crypt::{LegacyAes, Luks, SectorCipher};
use crate::error::{Blame, Error, Result};
use crate::format::{
    BackingReference, Below, CheckReport, Detail, Extent, Format, FormatKind, Guard, Preallocation,
    Repair, Run,
};
use crate::storage::{SharedStorage, Storage};

/// A qcow2 image.
pub struct Qcow2 {
    /// The image, and the data file where there is one.
    storages: Vec<SharedStorage>,
    /// Which of them holds data.
    data: u16,
    meta: Mutex<Meta>,
    /// Guest clusters stopped being busy.
    idle: Condvar,
    /// One commit at a time.
    commit: Mutex<()>,
    epochs: Arc<Epochs>,
    shape: Shape,
    size: AtomicU64,
    writable: bool,
    lazy: AtomicBool,
    live_bitmaps: AtomicBool,
    codec: Codec,
    cipher: Option<Box<dyn SectorCipher>>,
    /// The compressed cluster that was unpacked last.
    unpacked: Mutex<(u64, Vec<u8>)>,
    blame: Blame,
}

/// What an image says about itself before it is opened.
#[derive(Clone, Debug)]
pub struct Peek {
    pub backing: Option<BackingReference>,
    /// The name of the data file; empty if the image wants one but has no name.
    pub data_file: Option<String>,
    pub encrypted: bool,
}

/// How to open an image.
#[derive(Default)]
pub struct Open<'a> {
    pub write: bool,
    /// The data file, where `peek` says there is one.
    pub data_file: Option<SharedStorage>,
    pub passphrase: Option<&'a [u8]>,
    /// Metadata only: contents of an encrypted image stay closed.
    pub without_contents: bool,
    /// Opens what is marked as damaged for writing, in order to repair it.
    pub for_repair: bool,
}

impl Qcow2 {
    /// Reads the header only.
    pub fn peek(storage: &dyn Storage) -> Result<Peek> {
        let blame = Blame::new("qcow2", storage.name());
        let header = Header::read(storage, &blame)?;
        Ok(Peek {
            backing: backing_of(&header),
            data_file: header.external_data().then(|| header.data_file.clone().unwrap_or_default()),
            encrypted: header.crypt != Crypt::None,
        })
    }

    /// Opens an image.
    pub fn open(storage: SharedStorage, open: Open<'_>) -> Result<Self> {
        let blame = Blame::new("qcow2", storage.name());
        let header = Header::read(&*storage, &blame)?;
        if open.write && !open.for_repair && header.incompatible & INCOMPAT_CORRUPT != 0 {
            return Err(blame.corrupt("it is marked as damaged; repair it before writing"));
        }
        let cipher = Self::open_cipher(&*storage, &header, &open, &blame)?;
        let mut storages = vec![Arc::clone(&storage)];
        match (header.external_data(), open.data_file) {
            (true, Some(file)) => storages.push(file),
            (true, None) => return Err(blame.corrupt("its data file is not given")),
            (false, _) => {}
        }
        let shape = Shape { cluster_bits: header.cluster_bits, extended: header.extended_l2() };
        let l1 = read_table(&*storage, header.l1_offset, header.l1_entries as usize)?;
        let refs = Refcounts::load(&*storage, &header)?;
        let snapshots = snapshot::read_table(&*storage, &header, &blame)?;
        let codec = if header.zstd { Codec::Zstd } else { Codec::Deflate };
        let was_dirty = header.incompatible & INCOMPAT_DIRTY != 0;
        let image = Self {
            data: u16::from(storages.len() > 1),
            storages,
            size: AtomicU64::new(header.size),
            lazy: AtomicBool::new(header.lazy()),
            live_bitmaps: AtomicBool::new(false),
            meta: Mutex::new(Meta::new(header, l1, refs, snapshots, blame.clone())),
            idle: Condvar::new(),
            commit: Mutex::new(()),
            epochs: Arc::new(Epochs::default()),
            shape,
            writable: open.write,
            codec,
            cipher,
            unpacked: Mutex::new((0, Vec::new())),
            blame,
        };
        if open.write {
            image.begin_writing(was_dirty && !open.for_repair)?;
        }
        Ok(image)
    }

    fn open_cipher(
        storage: &dyn Storage,
        header: &Header,
        open: &Open<'_>,
        blame: &Blame,
    ) -> Result<Option<Box<dyn SectorCipher>>> {
        if header.crypt == Crypt::None || open.without_contents {
            return Ok(None);
        }
        let Some(passphrase) = open.passphrase else {
            return Err(Error::Secret { name: blame.name.clone(), why: "give its passphrase" });
        };
        Ok(Some(match (header.crypt, header.luks) {
            (Crypt::Luks, Some(region)) => {
                let bytes = crate::storage::read_vec(storage, region.offset, region.len as usize)?;
                Luks::parse(&bytes, blame)?.unlock(&bytes, passphrase, blame)?
            }
            _ => Box::new(LegacyAes::new(passphrase)),
        }))
    }

    /// What has to be so in the file before the first change.
    fn begin_writing(&self, repair_counts: bool) -> Result<()> {
        if repair_counts {
            // Not closed properly with lazy reference counts: they are made
            // anew, which also clears the mark.
            self.check_image(Repair::All)?;
        }
        let mut meta = self.meta.lock();
        if meta.header.autoclear & !AUTOCLEAR_KNOWN != 0 {
            meta.header.autoclear &= AUTOCLEAR_KNOWN;
            meta.write_header(self.file())?;
            self.file().flush()?;
        }
        self.load_bitmaps(&mut meta)?;
        let live = meta.bitmaps.iter().any(bitmap::LiveBitmap::enabled);
        self.live_bitmaps.store(live, Ordering::Release);
        Ok(())
    }

    /// Whether the file says that its reference counts may lag behind.
    pub fn is_dirty(&self) -> bool {
        self.meta.lock().header.incompatible & INCOMPAT_DIRTY != 0
    }

    /// The file with the metadata.
    fn file(&self) -> &dyn Storage {
        &*self.storages[0]
    }

    fn has_bitmaps(&self) -> bool {
        self.live_bitmaps.load(Ordering::Acquire)
    }

    /// Before any change of contents: marks in bitmaps, and the file's flag
    /// where reference counts will lag behind.
    fn before_change(&self, offset: u64, len: u64) -> Result<()> {
        if !self.writable {
            return Err(self.blame.read_only());
        }
        let lazy = self.lazy.load(Ordering::Relaxed);
        if !lazy && !self.has_bitmaps() {
            return Ok(());
        }
        let mut meta = self.meta.lock();
        if self.has_bitmaps() {
            self.mark_bitmaps_in_use(&mut meta)?;
            meta.bitmaps.iter_mut().for_each(|bitmap| bitmap.mark(offset, len));
        }
        if lazy && !meta.marked_dirty {
            meta.header.incompatible |= INCOMPAT_DIRTY;
            meta.write_header(self.file())?;
            self.file().flush()?;
            meta.marked_dirty = true;
        }
        Ok(())
    }

    fn commit_if_full(&self) -> Result<()> {
        if self.meta.lock().is_full() { self.commit_meta(false) } else { Ok(()) }
    }

    /// Brings metadata to the file in a safe order; `meta` tells which.
    fn commit_meta(&self, counts_too: bool) -> Result<()> {
        let _one = self.commit.lock();
        let counts = counts_too || !self.lazy.load(Ordering::Relaxed);
        let staged = self.meta.lock().stage(self.file(), counts)?;
        if staged.is_empty() {
            return self.flush_files();
        }
        let written = self.flush_files().and_then(|()| {
            if counts {
                self.meta.lock().write_counts_table(self.file())?;
            }
            write_staged(self.file(), &staged)?;
            self.file().flush()
        });
        let mut meta = self.meta.lock();
        if let Err(error) = written {
            meta.put_back(staged);
            return Err(error);
        }
        meta.written(&staged);
        meta.release(self.file(), staged.into_frees(), &self.epochs, self.data == 0)
    }

    fn flush_files(&self) -> Result<()> {
        crate::format::flush_all(&self.storages)
    }

    /// Everything in the file, nothing waiting; for operations on the whole
    /// image, while no request is under way.
    fn settle(&self) -> Result<()> {
        self.commit_meta(true)?;
        self.meta.lock().release_all(self.file(), self.data == 0)?;
        self.commit_meta(true)
    }

    fn check_writable(&self) -> Result<()> {
        if self.writable { Ok(()) } else { Err(self.blame.read_only()) }
    }
}

fn backing_of(header: &Header) -> Option<BackingReference> {
    let name = header.backing.clone()?;
    Some(BackingReference { name, format: header.backing_format.clone() })
}

impl Format for Qcow2 {
    fn kind(&self) -> FormatKind {
        FormatKind::Qcow2
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn cluster_size(&self) -> u64 {
        self.shape.cluster()
    }

    fn storages(&self) -> &[SharedStorage] {
        &self.storages
    }

    fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        self.map_range(offset, len)
    }

    fn read_packed(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_coded(offset, buf)
    }

    fn read(&self, offset: u64, buf: &mut [u8], below: &dyn Below) -> Result<()> {
        let _ticket = self.epochs.enter();
        self.read_range(offset, buf, below)
    }

    fn write(&self, offset: u64, data: &[u8], below: &dyn Below) -> Result<()> {
        self.write_range(offset, data, below)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        self.zero_range(offset, len, unmap, below)
    }

    fn discard(&self, offset: u64, len: u64, below: &dyn Below) -> Result<()> {
        self.discard_range(offset, len, below)
    }

    fn flush(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        self.commit_meta(false)
    }

    fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.change_size(size, preallocation)
    }

    fn codec(&self) -> Option<Codec> {
        (self.data == 0 && self.cipher.is_none()).then_some(self.codec)
    }

    fn write_packed(&self, offset: u64, packed: &[u8]) -> Result<()> {
        self.write_compressed(offset, packed)
    }

    fn check(&self, repair: Repair) -> Result<CheckReport> {
        self.check_image(repair)
    }

    fn backing(&self) -> Option<BackingReference> {
        backing_of(&self.meta.lock().header)
    }

    fn details(&self) -> Vec<(String, Detail)> {
        let meta = self.meta.lock();
        let header = &meta.header;
        let mut details = Vec::new();
        let mut tell = |key: &str, value| details.push((key.to_owned(), value));
        tell("compat", Detail::text(if header.version < 3 { "0.10" } else { "1.1" }));
        tell("compression-type", Detail::text(if header.zstd { "zstd" } else { "zlib" }));
        if header.version >= 3 {
            tell("lazy-refcounts", Detail::Bool(header.compatible & COMPAT_LAZY != 0));
        }
        tell("refcount-bits", Detail::Number(1 << header.refcount_order));
        if header.version >= 3 {
            tell("corrupt", Detail::Bool(header.incompatible & INCOMPAT_CORRUPT != 0));
            tell("extended-l2", Detail::Bool(header.extended_l2()));
        }
        if let Some(name) = &header.data_file {
            tell("data-file", Detail::text(name));
            tell("data-file-raw", Detail::Bool(header.raw_external()));
        }
        match header.crypt {
            Crypt::None => {}
            Crypt::Aes => tell("encrypt", format_named("aes")),
            Crypt::Luks => tell("encrypt", format_named("luks")),
        }
        drop(meta);
        // Broken bitmaps are for `check` to tell: `info` shows what it can.
        if let Ok(bitmaps) = self.bitmaps()
            && !bitmaps.is_empty()
        {
            let list = bitmaps.iter().map(BitmapInfo::detail).collect();
            details.push(("bitmaps".to_owned(), Detail::List(list)));
        }
        details
    }

    fn write_in_place(&self, offset: u64, len: u64, to: &mut Vec<Run>) -> Result<bool> {
        self.in_place(offset, len, to)
    }

    fn guard(&self) -> Guard {
        Guard::holding(self.epochs.enter())
    }

    fn close(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        self.store_bitmaps()?;
        self.settle()?;
        let mut meta = self.meta.lock();
        if meta.marked_dirty {
            meta.header.incompatible &= !INCOMPAT_DIRTY;
            meta.write_header(self.file())?;
            self.file().flush()?;
            meta.marked_dirty = false;
        }
        Ok(())
    }

    fn as_qcow2(&self) -> Option<&Qcow2> {
        Some(self)
    }
}

fn format_named(name: &str) -> Detail {
    Detail::Map(vec![("format".to_owned(), Detail::text(name))])
}

#[cfg(test)]
mod tests;
