//! Looks things up in layers that are unpacked already, as overlayfs would
//! show them together.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::root::{Rights, Root, as_path, by_descriptor, describe_at, is_whiteout};
use crate::error::LayerError;
use crate::tar::{Device, Entry, Kind, Time, Xattr};

/// Something in a lower layer.
pub struct Found {
    dir: OwnedFd,
    last: Vec<u8>,
    stat: Stat,
}

impl Found {
    pub fn is_directory(&self) -> bool {
        FileType::from_raw_mode(self.stat.st_mode) == FileType::Directory
    }
}

/// Finds a path in the topmost layer that has it, unless one above hides it.
/// Symbolic links on the way are not followed: archives name real directories.
pub fn find(layers: &[Root], parts: &[&[u8]]) -> io::Result<Option<Found>> {
    let Some((last, parents)) = parts.split_last() else {
        let Some(dir) = layers.first().map(|root| root.dir(&[])).transpose()?.flatten() else {
            return Ok(None);
        };
        let last = b".".to_vec();
        return Ok(stat(dir.as_fd(), &last)?.map(|stat| Found { dir, last, stat }));
    };
    'layers: for root in layers {
        let mut hides_below = false;
        let Some(mut dir) = root.dir(&[])? else { continue };
        for part in parents {
            match stat(dir.as_fd(), part)? {
                None if hides_below => return Ok(None),
                None => continue 'layers,
                Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                    hides_below |= is_opaque(root, dir.as_fd(), part);
                    dir = rustix::fs::openat(
                        &dir,
                        as_path(part),
                        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                        Mode::empty(),
                    )?;
                }
                // A whiteout, or a file in the place of the directory.
                Some(_) => return Ok(None),
            }
        }
        match stat(dir.as_fd(), last)? {
            None if hides_below => return Ok(None),
            None => {}
            Some(stat) if is_whiteout(&stat) => return Ok(None),
            Some(stat) => return Ok(Some(Found { dir, last: last.to_vec(), stat })),
        }
    }
    Ok(None)
}

/// Whether a layer shows nothing of those below it in a directory.
pub fn is_cut_off(root: &Root, parts: &[&[u8]]) -> io::Result<bool> {
    let Some(mut dir) = root.dir(&[])? else { return Ok(false) };
    for part in parts {
        if is_opaque(root, dir.as_fd(), part) {
            return Ok(true);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        dir = match rustix::fs::openat(&dir, as_path(part), flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(false),
            // A whiteout, or a file in the place of the directory.
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(true),
            Err(e) => return Err(e.into()),
        };
    }
    Ok(false)
}

fn stat(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(dir, as_path(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn is_opaque(root: &Root, dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    let path = by_descriptor(dir, name);
    let mut value = [0; 1];
    rustix::fs::lgetxattr(as_path(&path), root.rights.xattrs.opaque(), &mut value[..]).is_ok()
}

/// What an archive would say about it.
pub fn describe(found: &Found, path: &[u8]) -> Result<Entry, LayerError> {
    let io = |e: Errno| LayerError::io("reading", path, e);
    let stat = &found.stat;
    let device =
        Device { major: rustix::fs::major(stat.st_rdev), minor: rustix::fs::minor(stat.st_rdev) };
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink(
            rustix::fs::readlinkat(&found.dir, as_path(&found.last), Vec::new())
                .map_err(io)?
                .into_bytes(),
        ),
        FileType::CharacterDevice => Kind::Character(device),
        FileType::BlockDevice => Kind::Block(device),
        FileType::Fifo => Kind::Fifo,
        _ => return Err(LayerError::hostile(path, "is of a kind that no layer has")),
    };
    let mut entry = Entry::new(path, kind, stat.st_mode & 0o7777);
    entry.uid = stat.st_uid;
    entry.gid = stat.st_gid;
    entry.mtime = Time {
        seconds: stat.st_mtime,
        nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    };
    entry.size = u64::try_from(stat.st_size).unwrap_or(0);
    entry.xattrs = xattrs(found).map_err(io)?;
    Ok(entry)
}

/// All attributes but overlayfs' own, which describe the other layer.
fn xattrs(found: &Found) -> Result<Vec<Xattr>, Errno> {
    let path = by_descriptor(found.dir.as_fd(), &found.last);
    let mut list = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(as_path(&path), &mut list[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e),
    };
    let mut all = Vec::new();
    for key in list[..length].split(|&c| c == 0).filter(|key| !key.is_empty()) {
        if key.starts_with(b"trusted.overlay.") || key.starts_with(b"user.overlay.") {
            continue;
        }
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(as_path(&path), as_path(key), &mut value[..])?;
        value.truncate(length);
        all.push((key.to_vec(), value));
    }
    Ok(all)
}

/// Copies it up into another layer.
pub fn copy(
    found: &Found,
    dir: BorrowedFd<'_>,
    last: &[u8],
    path: &[u8],
    rights: Rights,
) -> Result<(), LayerError> {
    let io = |e: Errno| LayerError::io("copying", path, e);
    let entry = describe(found, path)?;
    let private = Mode::from_raw_mode(0o600);
    match &entry.kind {
        Kind::File => {
            let from = rustix::fs::openat(
                &found.dir,
                as_path(&found.last),
                OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(io)?;
            let to = rustix::fs::openat(
                dir,
                as_path(last),
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC,
                private,
            )
            .map_err(io)?;
            let (mut from, mut to) = (File::from(from), File::from(to));
            io::copy(&mut from, &mut to).map_err(|e| LayerError::io("copying", path, e))?;
            super::root::describe(to.as_fd(), &entry, path, rights)
        }
        Kind::Symlink(target) => {
            rustix::fs::symlinkat(as_path(target), dir, as_path(last)).map_err(io)?;
            describe_at(dir, last, &entry, path, true, rights)
        }
        Kind::Character(_) | Kind::Block(_) | Kind::Fifo => {
            let kind = FileType::from_raw_mode(found.stat.st_mode);
            rustix::fs::mknodat(dir, as_path(last), kind, private, found.stat.st_rdev)
                .map_err(io)?;
            describe_at(dir, last, &entry, path, false, rights)
        }
        Kind::Directory | Kind::Hardlink(_) => {
            Err(LayerError::hostile(path, "is a directory, to which nothing can be a hard link"))
        }
    }
}
