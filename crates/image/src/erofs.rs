//! One read-only EROFS image per root file system.
//!
//! The layers are merged as they stream by: file data goes to the image file
//! at once, everything else into a tree in memory, and when the topmost layer
//! has been read the tree is written behind the data. Nothing is unpacked and
//! no privilege is needed, whatever owners, devices and attributes the image
//! has. The same layers always give the same bytes.
//!
//! - `tree`: the merged root file system, with whiteouts applied;
//! - `data`: where the contents of files go while they stream by;
//! - `layout`: inodes, directories and the superblock, placed and written.

mod data;
mod format;
mod layout;
mod tree;

use std::fs::{self, OpenOptions};
use std::path::PathBuf;

use crate::error::{IoContext, LayerError};
use crate::layer::source::Source;
use crate::limits::Limits;
use crate::progress::Progress;
use crate::store::{FileLock, Image, Session, scratch_file, sync_dir, unique_name};
use crate::{Digest, Error, Result};

use data::DataArea;
use tree::Tree;

impl Session<'_> {
    /// The image's root file system as an EROFS file: mounted with
    /// `mount -t erofs`, or given to a machine as a read-only disk. Made on
    /// first use, shared by all images with the same layers.
    pub fn erofs(&self, image: &Image, limits: Limits, progress: &dyn Progress) -> Result<PathBuf> {
        let chain = image.chain_id();
        let path = self.path("erofs").join(format!("{}.erofs", chain.hex()));
        if path.is_file() {
            return Ok(path);
        }
        let lock = self.path("locks").join(format!("erofs-{}", chain.hex()));
        let _lock = FileLock::exclusive(&lock)?;
        if path.is_file() {
            return Ok(path);
        }
        let temporary = self.path("tmp").join(unique_name());
        let made = self.make_erofs(image, chain, &temporary, limits, progress);
        if made.is_err() {
            // A collection removes what cannot be removed now.
            let _ = fs::remove_file(&temporary);
        }
        made?;
        fs::rename(&temporary, &path).at("naming", &path)?;
        sync_dir(&self.path("erofs"))?;
        Ok(path)
    }

    fn make_erofs(
        &self,
        image: &Image,
        chain: Digest,
        temporary: &PathBuf,
        limits: Limits,
        progress: &dyn Progress,
    ) -> Result<()> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(temporary)
            .at("making", temporary)?;
        let tails = scratch_file(&self.path("tmp"))?;
        let mut data = DataArea::new(file, tails).at("writing", temporary)?;
        let mut tree = Tree::new(limits.entries);
        let mut left = limits.unpacked_bytes;
        for (layer, diff_id) in image.manifest.layers.iter().zip(&image.config.rootfs.diff_ids) {
            let explain = |e| Error::Layer { layer: layer.digest, source: Box::new(e) };
            let blob = self.blob("layer", layer.digest)?;
            let meter = progress.start("building file system", layer.digest, layer.size);
            let bounds = Limits { unpacked_bytes: left, ..limits };
            let merged = merge(&mut tree, &mut data, meter.reader(blob), *diff_id, bounds);
            meter.finish();
            left -= merged.map_err(explain)?;
        }
        let file = layout::write(&tree, data, chain).at("writing", temporary)?;
        file.sync_all().at("writing", temporary)
    }
}

/// Puts one layer on top of the tree. Returns how many bytes it held.
fn merge(
    tree: &mut Tree,
    data: &mut DataArea,
    blob: impl std::io::Read,
    diff_id: Digest,
    limits: Limits,
) -> std::result::Result<u64, LayerError> {
    let mut source = Source::new(blob, limits)?;
    tree.begin_layer();
    while let Some(entry) = source.next_entry()? {
        tree.apply(&entry, |entry| data.file(&mut source, entry))?;
    }
    let bytes = source.bytes();
    source.finish(diff_id)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
