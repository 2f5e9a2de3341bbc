//! What overlayfs wrote into an upper directory becomes a layer: the way back
//! from `unpack`.
//!
//! Whiteouts (character devices 0/0) and opaque directories become the marker
//! files of the image specification. Names are sorted, so equal directories
//! give equal layers.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::codec::{Compression, Encoder};
use crate::digest::{Digest, Hasher, Hashing};
use crate::error::{IoContext, Result};
use crate::limits;
use crate::spec::{Descriptor, media};
use crate::store::Session;
use crate::tar::{Device, Entry, Kind, Time, Writer, Xattr};

impl Session<'_> {
    /// Packs an upper directory that nobody writes to any more. Gives the blob
    /// and the digest of what is in it; none if the directory is empty.
    pub fn pack_layer(&self, upper: &Path) -> Result<Option<(Descriptor, Digest)>> {
        self.pack(upper, Compression::Gzip, None)
    }

    /// The same with any folder, and without what is mounted in it. It stays on this host, so
    /// it is not made small.
    pub(crate) fn pack_folder(&self, folder: &Path) -> Result<Option<(Descriptor, Digest)>> {
        let device = fs::metadata(folder).at("reading", folder)?.dev();
        self.pack(folder, Compression::None, Some(device))
    }

    fn pack(
        &self,
        upper: &Path,
        compression: Compression,
        device: Option<u64>,
    ) -> Result<Option<(Descriptor, Digest)>> {
        if fs::read_dir(upper).at("reading", upper)?.next().is_none() {
            return Ok(None);
        }
        let blob = self.blob_writer()?;
        let path = blob.path().to_owned();
        let encoder = Encoder::new(blob, compression).at("writing", &path)?;
        let mut packer = Packer {
            tar: Writer::new(Hashing::new(encoder, Hasher::sha256())),
            seen: HashMap::new(),
            device,
        };
        packer.directory(upper, &mut Vec::new())?;
        let (encoder, diff_id, _) = packer.tar.finish().at("writing", &path)?.finish();
        let (digest, size) = encoder.finish().at("writing", &path)?.finish()?;
        let media_type = match compression {
            Compression::None => media::OCI_LAYER,
            _ => media::OCI_LAYER_GZIP,
        };
        Ok(Some((Descriptor::new(media_type, digest, size), diff_id)))
    }
}

struct Packer<W: Write> {
    tar: Writer<W>,
    /// Files with several names, by device and inode.
    seen: HashMap<(u64, u64), Vec<u8>>,
    /// What is on others is left out, but for the folders on which it is mounted.
    device: Option<u64>,
}

impl<W: Write> Packer<W> {
    fn directory(&mut self, dir: &Path, name: &mut Vec<u8>) -> Result<()> {
        let mut names: Vec<OsString> = fs::read_dir(dir)
            .and_then(|entries| entries.map(|e| Ok(e?.file_name())).collect::<io::Result<_>>())
            .at("reading", dir)?;
        names.sort_unstable();
        for last in names {
            let path = dir.join(&last);
            let length = name.len();
            if !name.is_empty() {
                name.push(b'/');
            }
            let parent = name.len();
            name.extend_from_slice(last.as_bytes());
            self.one(&path, name, parent)?;
            name.truncate(length);
        }
        Ok(())
    }

    fn one(&mut self, path: &Path, name: &mut Vec<u8>, parent: usize) -> Result<()> {
        let metadata = fs::symlink_metadata(path).at("reading", path)?;
        let kind = metadata.file_type();
        let device = device_of(metadata.rdev());
        let entry = |kind| entry_of(name.clone(), kind, &metadata);
        if kind.is_char_device() && metadata.rdev() == 0 {
            let hidden = [&name[..parent], b".wh.", &name[parent..]].concat();
            return self.append(path, &Entry::new(hidden, Kind::File, 0o644), io::empty());
        }
        if self.device.is_some_and(|device| device != metadata.dev()) {
            if kind.is_dir() {
                return self.append(
                    path,
                    &Entry::new(name.clone(), Kind::Directory, 0o755),
                    io::empty(),
                );
            }
            return Ok(());
        }
        if kind.is_dir() {
            let mut entry = entry(Kind::Directory);
            let (xattrs, opaque) = xattrs_of(path)?;
            entry.xattrs = xattrs;
            self.append(path, &entry, io::empty())?;
            if opaque {
                let marker = [&name[..], b"/.wh..wh..opq"].concat();
                self.append(path, &Entry::new(marker, Kind::File, 0o644), io::empty())?;
            }
            return self.directory(path, name);
        }
        if metadata.nlink() > 1 {
            let id = (metadata.dev(), metadata.ino());
            if let Some(first) = self.seen.get(&id) {
                let entry = entry(Kind::Hardlink(first.clone()));
                return self.append(path, &entry, io::empty());
            }
            self.seen.insert(id, name.clone());
        }
        if kind.is_file() {
            let mut entry = entry(Kind::File);
            entry.size = metadata.size();
            entry.xattrs = xattrs_of(path)?.0;
            let file = File::open(path).at("reading", path)?;
            return self.append(path, &entry, file);
        }
        let kind = if kind.is_symlink() {
            Kind::Symlink(fs::read_link(path).at("reading", path)?.into_os_string().into_vec())
        } else if kind.is_char_device() {
            Kind::Character(device)
        } else if kind.is_block_device() {
            Kind::Block(device)
        } else if kind.is_fifo() {
            Kind::Fifo
        } else {
            // A socket is nothing without the process that listens on it.
            return Ok(());
        };
        let entry = entry(kind);
        self.append(path, &entry, io::empty())
    }

    fn append(&mut self, path: &Path, entry: &Entry, data: impl io::Read) -> Result<()> {
        self.tar.append(entry, data).at("packing", path)
    }
}

fn entry_of(name: Vec<u8>, kind: Kind, metadata: &Metadata) -> Entry {
    let mut entry = Entry::new(name, kind, metadata.mode() & 0o7777);
    (entry.uid, entry.gid) = (metadata.uid(), metadata.gid());
    entry.mtime = Time { seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() as u32 };
    entry
}

fn device_of(number: u64) -> Device {
    Device { major: rustix::fs::major(number), minor: rustix::fs::minor(number) }
}

/// The attributes that belong into a layer, and whether overlayfs hides what is
/// below the directory.
fn xattrs_of(path: &Path) -> Result<(Vec<Xattr>, bool)> {
    let mut list = vec![0; limits::XATTR_BYTES];
    let length = match rustix::fs::llistxattr(path, &mut list) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(e) => return Err(e).at("reading attributes of", path),
    };
    let mut kept = Vec::new();
    let mut opaque = false;
    for name in list[..length].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let overlay = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
        let wanted = name == b"security.capability" || name.starts_with(b"user.");
        if !overlay && !wanted {
            continue;
        }
        let mut value = vec![0; limits::XATTR_BYTES];
        let length =
            rustix::fs::lgetxattr(path, name, &mut value).at("reading attributes of", path)?;
        value.truncate(length);
        if !overlay {
            kept.push((name.to_vec(), value));
        } else if name.ends_with(b".opaque") {
            opaque |= value == b"y";
        }
    }
    kept.sort_unstable();
    Ok((kept, opaque))
}

#[cfg(test)]
mod tests;
