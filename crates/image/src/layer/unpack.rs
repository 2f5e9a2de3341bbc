//! One layer into one directory, in the form that overlayfs stacks.
//!
//! A layer is unpacked alone, so that layers can be unpacked side by side. Two
//! things need the layers below and are left as `Fixup`s: hard links to files
//! of a lower layer, and directories that the archive goes through without
//! describing, which must look like the ones below.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::lower;
use super::path::{Meaning, check_xattr, components, meaning};
use super::root::{self, Made, Root, as_path, describe, describe_at, join, replacing};
use super::source::Source;
use crate::Digest;
use crate::error::LayerError;
use crate::limits::Limits;
use crate::tar::{Entry, Kind};

/// What must wait for the layers below.
#[derive(Debug, PartialEq, Eq)]
enum Fixup {
    /// A directory that no entry described. It must look like the one below,
    /// if there is one and this layer has not hidden it.
    Implied(Vec<u8>, Made),
    /// A whiteout. One that hides nothing must go: overlayfs would list it.
    Whiteout(Vec<u8>),
    /// A hard link whose target is not in this layer.
    Link { path: Vec<u8>, target: Vec<u8> },
}

/// A layer whose files are there, and what is left to do.
pub struct Unpacked {
    root: Root,
    /// What is known of directories, by their places: set last, or it would not survive
    /// what comes into them.
    directories: BTreeMap<Vec<u8>, Entry>,
    fixups: Vec<Fixup>,
}

/// Unpacks a layer into an empty directory.
pub fn unpack(
    blob: impl Read + 'static,
    diff_id: Digest,
    into: &Path,
    limits: Limits,
) -> Result<Unpacked, LayerError> {
    let mut unpacker = Unpacker {
        root: Root::open(into)?,
        source: Source::new(Box::new(blob) as Box<dyn Read>, limits)?,
        directories: BTreeMap::new(),
        fixups: Vec::new(),
        buffer: vec![0; 256 << 10],
    };
    while let Some(entry) = unpacker.source.next_entry()? {
        unpacker.entry(entry)?;
    }
    let Unpacker { root, source, directories, fixups, .. } = unpacker;
    source.finish(diff_id)?;
    Ok(Unpacked { root, directories, fixups })
}

impl Unpacked {
    /// Does what needs the layers below, topmost first, and gives the layer,
    /// now done.
    pub fn settle(mut self, below: &[Root]) -> Result<Root, LayerError> {
        let mut whiteouts = Vec::new();
        let mut implied = vec![(Vec::new(), Made::Existed)];
        let mut copies = BTreeMap::new();
        for fixup in std::mem::take(&mut self.fixups) {
            match fixup {
                Fixup::Implied(path, made) => implied.push((path, made)),
                Fixup::Whiteout(path) => whiteouts.push(path),
                Fixup::Link { path, target } => {
                    self.link_below(&path, &target, below, &mut copies, &mut implied)?;
                }
            }
        }
        for path in whiteouts {
            self.drop_idle_whiteout(&path, below)?;
        }
        for (path, made) in implied {
            let parts = components(&path)?;
            let io = |e| LayerError::io("describing", &path, e);
            if self.directories.contains_key(&path) {
                // An entry came after all.
                continue;
            }
            let found = match made {
                Made::OverWhiteout => None,
                _ => lower::find(below, &parts).map_err(io)?.filter(lower::Found::is_directory),
            };
            let entry = match found {
                Some(found) => lower::describe(&found, &path)?,
                None => Entry::new(path.clone(), Kind::Directory, 0o755),
            };
            self.directories.insert(path, entry);
        }
        // Inner ones first: a closed mode would keep us out.
        for (path, entry) in self.directories.iter().rev() {
            let parts = components(path)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            match self.root.resolve(&parts, flags) {
                Ok(fd) => describe(fd.as_fd(), entry, path, self.root.rights)?,
                // Replaced by a later entry.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => return Err(LayerError::io("entering", path, e)),
            }
        }
        Ok(self.root)
    }

    /// Makes a hard link to a file of a lower layer, which comes up into this one. Entries
    /// that came after the link's count as they would if it had been made at once: what they
    /// put in its place stays, and what they put in the target's place is another file.
    fn link_below(
        &mut self,
        path: &[u8],
        target: &[u8],
        below: &[Root],
        copies: &mut BTreeMap<Vec<u8>, Vec<u8>>,
        implied: &mut Vec<(Vec<u8>, Made)>,
    ) -> Result<(), LayerError> {
        let io = |e| LayerError::io("linking", path, e);
        let from = lower::find(below, &components(target)?)
            .map_err(io)?
            .ok_or_else(|| LayerError::hostile(path, "is a hard link to a file that is nowhere"))?;
        if from.is_directory() {
            return Err(LayerError::hostile(path, "is a hard link to a directory: refused"));
        }
        let parts = components(path)?;
        let Some((last, parents)) = parts.split_last() else { return Ok(()) };
        let dir = self.enter(parents, path, implied)?;
        match rustix::fs::statat(&dir, as_path(last), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if root::is_whiteout(&stat) => {}
            Ok(stat)
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                    && !self.directories.contains_key(path) =>
            {
                return Err(LayerError::hostile(path, "has files below it but is a hard link"));
            }
            Ok(_) => return Ok(()),
            Err(Errno::NOENT) => {}
            Err(e) => return Err(io(e.into())),
        }
        // The first link to a file may be its only copy, if the target has been replaced.
        let copy = match copies.get(target) {
            Some(copy) => copy.clone(),
            None => {
                let parts = components(target)?;
                let Some((last, parents)) = parts.split_last() else { return Ok(()) };
                // A target that this layer hides, or replaces, has no place in it.
                let gone = lower::is_cut_off(&self.root, parents).map_err(io)?
                    || exists(self.enter(parents, path, implied)?.as_fd(), last);
                let place = if gone { path } else { target };
                copies.insert(target.to_vec(), place.to_vec());
                place.to_vec()
            }
        };
        let parts = components(&copy)?;
        let Some((copy_last, parents)) = parts.split_last() else { return Ok(()) };
        let copy_dir = self.enter(parents, path, implied)?;
        if copy == path {
            let rights = self.root.rights;
            // A whiteout may be there.
            let _ = rustix::fs::unlinkat(&dir, as_path(last), AtFlags::empty());
            return lower::copy(&from, dir.as_fd(), last, path, rights);
        }
        if !exists(copy_dir.as_fd(), copy_last) {
            lower::copy(&from, copy_dir.as_fd(), copy_last, target, self.root.rights)?;
        }
        replacing(dir.as_fd(), last, path, || {
            let (from, to) = (as_path(copy_last), as_path(last));
            rustix::fs::linkat(&copy_dir, from, &dir, to, AtFlags::empty())
        })
        .map(drop)
    }

    /// Opens a directory of this layer, made if only layers below have it.
    fn enter(
        &mut self,
        parents: &[&[u8]],
        path: &[u8],
        implied: &mut Vec<(Vec<u8>, Made)>,
    ) -> Result<OwnedFd, LayerError> {
        let dir = self.root.dir_or_make(parents, |made, how| implied.push((made, how)))?;
        dir.try_clone_to_owned().map_err(|e| LayerError::io("entering", path, e))
    }

    /// Removes a whiteout that hides nothing.
    fn drop_idle_whiteout(&self, path: &[u8], below: &[Root]) -> Result<(), LayerError> {
        let parts = components(path)?;
        let Some((last, parents)) = parts.split_last() else { return Ok(()) };
        let io = |e| LayerError::io("hiding", path, e);
        let hides = !lower::is_cut_off(&self.root, parents).map_err(io)?
            && lower::find(below, &parts).map_err(io)?.is_some();
        let Some(dir) = self.root.dir(parents).map_err(|e| io(e.into()))? else { return Ok(()) };
        match rustix::fs::statat(&dir, as_path(last), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if !hides && root::is_whiteout(&stat) => {
                rustix::fs::unlinkat(&dir, as_path(last), AtFlags::empty())
                    .map_err(|e| io(e.into()))
            }
            _ => Ok(()),
        }
    }
}

fn exists(dir: BorrowedFd<'_>, last: &[u8]) -> bool {
    rustix::fs::statat(dir, as_path(last), AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

struct Unpacker {
    root: Root,
    source: Source<Box<dyn Read>>,
    /// Directories whose metadata is set at the end.
    directories: BTreeMap<Vec<u8>, Entry>,
    fixups: Vec<Fixup>,
    buffer: Vec<u8>,
}

impl Unpacker {
    fn entry(&mut self, entry: Entry) -> Result<(), LayerError> {
        let path = entry.path.clone();
        let parts = components(&path)?;
        for (key, _) in &entry.xattrs {
            check_xattr(key, &path)?;
        }
        let Some((last, parents)) = parts.split_last() else {
            return match entry.kind {
                Kind::Directory => {
                    self.directories.insert(Vec::new(), entry);
                    Ok(())
                }
                _ => Err(LayerError::hostile(&path, "would replace the root: refused")),
            };
        };
        match meaning(last, &path)? {
            Meaning::Ignored => Ok(()),
            Meaning::Opaque => {
                let dir = self.parent(parents)?;
                self.root.set_opaque(dir.as_fd(), b".", &path)
            }
            Meaning::Whiteout(gone) => {
                let dir = self.parent(parents)?;
                let place = self.root.place(dir.as_fd(), gone, &path)?;
                self.fixups.push(Fixup::Whiteout(place));
                self.root.white_out(dir.as_fd(), gone, &path)
            }
            Meaning::Plain(last) => self.plain(entry, &parts, parents, last),
        }
    }

    /// The directory that an entry is in. Made if no entry described it.
    fn parent(&mut self, parents: &[&[u8]]) -> Result<OwnedFd, LayerError> {
        let fixups = &mut self.fixups;
        let fd = self
            .root
            .dir_or_make(parents, |place, made| fixups.push(Fixup::Implied(place, made)))?;
        fd.try_clone_to_owned().map_err(|e| LayerError::io("entering", &join(parents), e))
    }

    fn plain(
        &mut self,
        entry: Entry,
        parts: &[&[u8]],
        parents: &[&[u8]],
        last: &[u8],
    ) -> Result<(), LayerError> {
        let path = join(parts);
        let rights = self.root.rights;
        let dir = self.parent(parents)?;
        let dir = dir.as_fd();
        let name = as_path(last);
        let is_directory = entry.kind == Kind::Directory;
        let replaced = match &entry.kind {
            Kind::Directory => {
                let made = self.root.make_dir(dir, last, &path, true)?;
                self.directories.insert(self.root.place(dir, last, &path)?, entry);
                // A link to a directory may have become a directory.
                made == Made::New
            }
            Kind::File => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let (file, replaced) = replacing(dir, last, &path, || {
                    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))
                })?;
                let mut file = File::from(file);
                loop {
                    let n = self.source.read(&mut self.buffer)?;
                    if n == 0 {
                        break;
                    }
                    std::io::Write::write_all(&mut file, &self.buffer[..n])
                        .map_err(|e| LayerError::io("writing", &path, e))?;
                }
                describe(file.as_fd(), &entry, &path, rights)?;
                replaced
            }
            Kind::Symlink(target) => {
                if target.is_empty() || target.contains(&0) {
                    return Err(LayerError::hostile(&path, "is a link to nowhere: refused"));
                }
                let target = as_path(target);
                let ((), replaced) =
                    replacing(dir, last, &path, || rustix::fs::symlinkat(target, dir, name))?;
                describe_at(dir, last, &entry, &path, true, rights)?;
                replaced
            }
            Kind::Hardlink(target) => self.hard_link(dir, last, &path, target)?,
            Kind::Character(device) | Kind::Block(device) => {
                let kind = match entry.kind {
                    Kind::Block(_) => FileType::BlockDevice,
                    _ => FileType::CharacterDevice,
                };
                let number = rustix::fs::makedev(device.major, device.minor);
                if kind == FileType::CharacterDevice && number == 0 {
                    return Err(LayerError::hostile(
                        &path,
                        "is device 0:0, which overlayfs takes for a whiteout: refused",
                    ));
                }
                let make =
                    || rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(0o600), number);
                let ((), replaced) = replacing(dir, last, &path, make).map_err(|e| match e {
                    LayerError::Io { source, .. }
                        if source.kind() == std::io::ErrorKind::PermissionDenied =>
                    {
                        LayerError::Device { path: String::from_utf8_lossy(&path).into() }
                    }
                    other => other,
                })?;
                describe_at(dir, last, &entry, &path, false, rights)?;
                replaced
            }
            Kind::Fifo => {
                let ((), replaced) = replacing(dir, last, &path, || {
                    rustix::fs::mknodat(dir, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                })?;
                describe_at(dir, last, &entry, &path, false, rights)?;
                replaced
            }
        };
        if replaced {
            self.root.forget();
            if !is_directory {
                self.forget_directories(&self.root.place(dir, last, &path)?);
            }
        }
        Ok(())
    }

    /// Forgets what is known of a directory and of those in it: something else is there now.
    fn forget_directories(&mut self, place: &[u8]) {
        self.directories.remove(place);
        let inside = [place, b"/"].concat();
        let gone = self.directories.range(inside.clone()..);
        let gone: Vec<_> =
            gone.map(|(place, _)| place.clone()).take_while(|p| p.starts_with(&inside)).collect();
        for place in gone {
            self.directories.remove(&place);
        }
    }

    /// Makes a hard link, or leaves it for later if its target is below.
    fn hard_link(
        &mut self,
        dir: BorrowedFd<'_>,
        last: &[u8],
        path: &[u8],
        target: &[u8],
    ) -> Result<bool, LayerError> {
        let io = |e| LayerError::io("linking", path, e);
        let parts = components(target)?;
        let Some((target_last, target_parents)) = parts.split_last() else {
            return Err(LayerError::hostile(path, "is a hard link to the root: refused"));
        };
        let Some(target_dir) = self.root.dir(target_parents).map_err(io)? else {
            return self.link_later(dir, last, path, join(&parts));
        };
        let (from, to) = (as_path(target_last), as_path(last));
        match rustix::fs::statat(&target_dir, from, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if root::is_whiteout(&stat) => {
                return Err(LayerError::hostile(path, "is a hard link to a file that is gone"));
            }
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                return Err(LayerError::hostile(path, "is a hard link to a directory: refused"));
            }
            Ok(stat) => {
                // A link to itself would be removed before it is made.
                if let Ok(there) = rustix::fs::statat(dir, to, AtFlags::SYMLINK_NOFOLLOW)
                    && (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)
                {
                    return Ok(false);
                }
            }
            Err(Errno::NOENT) => return self.link_later(dir, last, path, join(&parts)),
            Err(e) => return Err(io(e)),
        }
        let ((), replaced) = replacing(dir, last, path, || {
            rustix::fs::linkat(&target_dir, from, dir, to, AtFlags::empty())
        })?;
        Ok(replaced)
    }

    /// Leaves a link for later. What this layer has in its place goes now, so that what is
    /// there later came later.
    fn link_later(
        &mut self,
        dir: BorrowedFd<'_>,
        last: &[u8],
        path: &[u8],
        target: Vec<u8>,
    ) -> Result<bool, LayerError> {
        let parts = components(&target)?;
        let parents = parts.split_last().map_or(&[][..], |(_, parents)| parents);
        if lower::is_cut_off(&self.root, parents).map_err(|e| LayerError::io("linking", path, e))? {
            return Err(LayerError::hostile(path, "is a hard link to a file that is gone"));
        }
        let place = self.root.place(dir, last, path)?;
        self.forget_directories(&place);
        self.fixups.push(Fixup::Link { path: place, target });
        match rustix::fs::statat(dir, as_path(last), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if root::is_whiteout(&stat) => Ok(false),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(LayerError::io("linking", path, e)),
            Ok(_) => {
                root::remove(dir, last).map_err(|e| LayerError::io("replacing", path, e))?;
                Ok(true)
            }
        }
    }
}
