//! New images.

use super::header::{
    AUTOCLEAR_RAW_DATA, COMPAT_LAZY, Crypt, Header, INCOMPAT_COMPRESSION, INCOMPAT_DATA_FILE,
    INCOMPAT_EXTENDED_L2, Region,
};
use super::refcounts::Refcounts;
use super::{Open, Qcow2};
use crate::crypt::{Luks, LuksOptions};
use crate::error::{Blame, Error, Result};
use crate::format::{BackingReference, Format, Preallocation};
use crate::storage::{SharedStorage, Storage};

/// How contents are encrypted.
#[derive(Clone, Debug)]
pub struct Encryption {
    pub passphrase: Vec<u8>,
    pub luks: LuksOptions,
}

/// Everything that can be chosen for a new image.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    pub size: u64,
    pub cluster_size: u64,
    /// 2 or 3.
    pub version: u32,
    pub lazy_refcounts: bool,
    pub refcount_bits: u32,
    pub extended_l2: bool,
    pub zstd: bool,
    pub backing: Option<BackingReference>,
    /// The name under which the image refers to its data file.
    pub data_file: Option<String>,
    pub data_file_raw: bool,
    pub preallocation: Preallocation,
    pub encryption: Option<Encryption>,
}

impl CreateOptions {
    /// A disk of this size with the usual choices.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            cluster_size: 64 << 10,
            version: 3,
            lazy_refcounts: false,
            refcount_bits: 16,
            extended_l2: false,
            zstd: false,
            backing: None,
            data_file: None,
            data_file_raw: false,
            preallocation: Preallocation::Off,
            encryption: None,
        }
    }

    fn validate(&self) -> Result<()> {
        let bad = |option: &str, what: &str| Err(Error::option(option, what));
        if !self.cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&self.cluster_size) {
            return bad("cluster_size", "takes a power of two from 512 bytes to 2 MiB");
        }
        if !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64 {
            return bad("refcount_bits", "takes a power of two up to 64");
        }
        if !matches!(self.version, 2 | 3) {
            return bad("compat", "takes v2 (0.10) or v3 (1.1)");
        }
        let needs_v3 = [
            (self.lazy_refcounts, "lazy_refcounts"),
            (self.extended_l2, "extended_l2"),
            (self.zstd, "compression_type"),
            (self.data_file.is_some(), "data_file"),
            (self.refcount_bits != 16, "refcount_bits"),
        ];
        if self.version < 3
            && let Some((_, option)) = needs_v3.iter().find(|(set, _)| *set)
        {
            return bad(option, "needs compat=v3");
        }
        if self.extended_l2 && self.cluster_size < 16 << 10 {
            return bad("extended_l2", "needs clusters of 16 KiB or more");
        }
        if self.data_file_raw && self.data_file.is_none() {
            return bad("data_file_raw", "needs a data_file");
        }
        if self.data_file_raw && self.backing.is_some() {
            return bad("data_file_raw", "does not go with a backing file");
        }
        if self.data_file.is_some() && self.encryption.is_some() {
            return bad("encrypt.format", "does not go with a data_file");
        }
        if self.backing.is_some() && self.preallocation != Preallocation::Off && !self.extended_l2 {
            return bad("preallocation", "does not go with a backing file, unless extended_l2=on");
        }
        if self.size > i64::MAX as u64 - (2 << 20) {
            return bad("size", "is too large");
        }
        Ok(())
    }
}

impl Qcow2 {
    /// Writes an empty image into empty storage.
    pub fn create(
        storage: &SharedStorage,
        data_file: Option<&SharedStorage>,
        options: &CreateOptions,
    ) -> Result<()> {
        options.validate()?;
        let blame = Blame::new("qcow2", storage.name());
        let bits = options.cluster_size.trailing_zeros();
        let mut header = empty_header(options, bits);
        let entries = options.size.div_ceil(header.l2_coverage());
        if entries * 8 > 32 << 20 {
            return Err(Error::option("size", "is too large for this cluster_size"));
        }
        header.l1_entries = entries as u32;
        let file: &dyn Storage = &**storage;
        let mut refs = Refcounts::empty(header.refcount_order, bits, options.cluster_size);
        refs.add(file, 0, 2 * options.cluster_size, &blame)?;
        let l1_len = (entries * 8).next_multiple_of(options.cluster_size).max(options.cluster_size);
        header.l1_offset = refs.take_all(file, l1_len >> bits, &blame)?;
        if let Some(encryption) = &options.encryption {
            let (bytes, payload) = Luks::create(&encryption.luks, &encryption.passphrase)?;
            let len = payload.next_multiple_of(options.cluster_size);
            let offset = refs.take_all(file, len >> bits, &blame)?;
            file.write_zeroes(offset, len, false)?;
            file.write_at(offset, &bytes)?;
            header.luks = Some(Region { offset, len: payload });
        }
        file.write_zeroes(header.l1_offset, l1_len, false)?;
        let end = refs.end() << bits;
        if file.len()? < end {
            file.set_len(end)?;
        }
        refs.write_blocks(file)?;
        refs.write_table(file)?;
        if let Some((old, clusters)) = refs.moved_from() {
            refs.remove(file, old, clusters << bits, &blame)?;
            refs.write_blocks(file)?;
        }
        header.reftable_offset = refs.table_offset;
        header.reftable_clusters = refs.table_clusters() as u32;
        // The header comes last: before it, there is no image.
        file.flush()?;
        file.write_at(0, &header.to_cluster(&blame)?)?;
        if let Some(data) = data_file {
            data.set_len(options.size)?;
        }
        if options.preallocation != Preallocation::Off {
            let open = Open {
                write: true,
                data_file: data_file.cloned(),
                passphrase: options.encryption.as_ref().map(|e| &*e.passphrase),
                ..Open::default()
            };
            let image = Self::open(storage.clone(), open)?;
            image.preallocate(0, options.size, options.preallocation)?;
            image.close()?;
        }
        Ok(())
    }
}

fn empty_header(options: &CreateOptions, cluster_bits: u32) -> Header {
    let mut header = Header {
        version: options.version,
        cluster_bits,
        size: options.size,
        crypt: if options.encryption.is_some() { Crypt::Luks } else { Crypt::None },
        l1_entries: 0,
        l1_offset: 0,
        reftable_offset: 0,
        reftable_clusters: 0,
        snapshots: 0,
        snapshots_offset: 0,
        incompatible: 0,
        compatible: 0,
        autoclear: 0,
        refcount_order: options.refcount_bits.trailing_zeros(),
        zstd: options.zstd,
        backing: options.backing.as_ref().map(|backing| backing.name.clone()),
        backing_format: options.backing.as_ref().and_then(|backing| backing.format.clone()),
        data_file: options.data_file.clone(),
        bitmaps: None,
        luks: None,
        unknown: Vec::new(),
    };
    if options.zstd {
        header.incompatible |= INCOMPAT_COMPRESSION;
    }
    if options.extended_l2 {
        header.incompatible |= INCOMPAT_EXTENDED_L2;
    }
    if options.data_file.is_some() {
        header.incompatible |= INCOMPAT_DATA_FILE;
    }
    if options.data_file_raw {
        header.autoclear |= AUTOCLEAR_RAW_DATA;
    }
    if options.lazy_refcounts {
        header.compatible |= COMPAT_LAZY;
    }
    header
}
