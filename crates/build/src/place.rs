//! Puts files into an image's root, whatever links that has.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use guise_container::rootfs::path::RootDir;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::error::{Error, IoContext, Result};

/// Who owns what is put, and how it may be used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rights {
    /// The owner, unless the source's own is kept.
    pub owner: Option<(u32, u32)>,
    pub mode: Option<u32>,
}

/// Writes below one root.
pub struct Placer<'a> {
    pub root: &'a RootDir,
    pub rights: Rights,
}

/// What is known of a thing to be put.
#[derive(Debug, Clone, Copy)]
pub struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub seconds: i64,
    pub nanoseconds: i64,
}

impl Attributes {
    pub fn of(stat: &Stat) -> Self {
        Attributes {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            seconds: stat.st_mtime,
            nanoseconds: stat.st_mtime_nsec as i64,
        }
    }
}

impl Placer<'_> {
    /// Whether a path is a directory, by way of links.
    pub fn is_directory(&self, path: &str) -> bool {
        self.root.open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).is_ok()
    }

    /// A directory, made with its parents where missing; the last one, when it
    /// is made here, gets the owner that the instruction names.
    pub fn directory(&self, path: &str) -> Result<OwnedFd> {
        let missing = self.root.place(path).is_err();
        self.root.make_dir(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = self.root.open(path, flags, Mode::empty()).at("opening", path)?;
        if missing && let Some((uid, gid)) = self.rights.owner {
            rustix::fs::fchown(&dir, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .at("giving away", path)?;
        }
        Ok(dir)
    }

    /// The directory that a path is to be put into, and its name there.
    fn parent<'p>(&self, path: &'p str) -> Result<(OwnedFd, &'p str)> {
        Ok(self.root.make_parent(path)?)
    }

    /// A directory with attributes, which may be there already.
    pub fn dir(&self, path: &str, attributes: Attributes) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e).at("making", path),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir =
            self.root.open(path, flags, Mode::empty()).map_err(|e| match e.raw_os_error() {
                Some(n) if n == Errno::NOTDIR.raw_os_error() => Error::refused(format!(
                    "{path} is a file in the image, a directory in the source"
                )),
                _ => Error::Io { what: "opening", path: path.into(), source: e },
            })?;
        self.finish(&dir, path, attributes)
    }

    /// A file with what a reader gives; one of that name is replaced.
    pub fn file(&self, path: &str, mut data: impl Read, attributes: Attributes) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        make_room(&parent, name, path)?;
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o600))
            .at("making", path)?;
        let mut file = File::from(fd);
        io::copy(&mut data, &mut file).at("writing", path)?;
        self.finish(&file, path, attributes)
    }

    /// A symbolic link.
    pub fn link(&self, path: &str, target: &[u8], attributes: Attributes) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        make_room(&parent, name, path)?;
        rustix::fs::symlinkat(target, &parent, name).at("making", path)?;
        let (uid, gid) = self.rights.owner.unwrap_or((attributes.uid, attributes.gid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(
            &parent,
            name,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            flags,
        )
        .at("giving away", path)?;
        rustix::fs::utimensat(&parent, name, &times(attributes), flags).at("dating", path)
    }

    /// Another name of a file that is there.
    pub fn hard_link(&self, path: &str, first: &str) -> Result<()> {
        let (old, old_name) = self.parent(first)?;
        let (parent, name) = self.parent(path)?;
        make_room(&parent, name, path)?;
        rustix::fs::linkat(&old, old_name, &parent, name, AtFlags::empty()).at("linking", path)
    }

    /// Owner, then mode: the other way round the kernel would take away
    /// set-user-id.
    fn finish(&self, fd: impl AsFd, path: &str, attributes: Attributes) -> Result<()> {
        let (uid, gid) = self.rights.owner.unwrap_or((attributes.uid, attributes.gid));
        rustix::fs::fchown(&fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .at("giving away", path)?;
        let mode = self.rights.mode.unwrap_or(attributes.mode);
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode)).at("setting the mode of", path)?;
        rustix::fs::futimens(&fd, &times(attributes)).at("dating", path)
    }
}

fn times(attributes: Attributes) -> Timestamps {
    let time = Timespec { tv_sec: attributes.seconds, tv_nsec: attributes.nanoseconds };
    Timestamps { last_access: time, last_modification: time }
}

/// Takes away a file or link of that name; a directory stays and is an error.
fn make_room(parent: &OwnedFd, name: &str, path: &str) -> Result<()> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e).at("looking at", path),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
            Err(Error::refused(format!("{path} is a directory in the image, a file in the source")))
        }
        Ok(_) => rustix::fs::unlinkat(parent, name, AtFlags::empty()).at("replacing", path),
    }
}
