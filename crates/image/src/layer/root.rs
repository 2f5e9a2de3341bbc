//! A directory tree that is being filled from an archive nobody trusts.
//!
//! Every path is resolved by the kernel with RESOLVE_IN_ROOT: symbolic links,
//! absolute ones too, end inside the tree, and no race can change that. The
//! last component is never followed.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags,
};
use rustix::io::Errno;

use crate::error::LayerError;
use crate::tar::{Entry, Time};

/// Which attributes overlayfs is told about opaque directories with: those
/// that need privilege, or those that do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayXattrs {
    Trusted,
    User,
}

impl OverlayXattrs {
    pub const fn opaque(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }
}

/// What this process may do to files it makes.
#[derive(Debug, Clone, Copy)]
pub struct Rights {
    /// Give files to other users.
    pub chown: bool,
    pub xattrs: OverlayXattrs,
}

/// How many symbolic links one path may lead through, as in the kernel.
const MAX_LINKS: u32 = 40;

/// A tree, open at its root.
pub struct Root {
    fd: OwnedFd,
    pub rights: Rights,
    /// The directory of the last entry: archives come sorted, mostly.
    cached: Option<(Vec<u8>, OwnedFd)>,
}

/// How a new directory came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    New,
    /// In place of a whiteout: what lies below must stay hidden.
    OverWhiteout,
    Existed,
}

pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.join(&b'/')
}

/// Bytes as the system calls take them.
pub fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// The path of a directory entry by way of its directory's descriptor, for
/// the calls that have no variant with a descriptor.
pub fn by_descriptor(dir: BorrowedFd<'_>, last: &[u8]) -> Vec<u8> {
    below(of_descriptor(dir), last)
}

fn of_descriptor(dir: BorrowedFd<'_>) -> Vec<u8> {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", dir.as_raw_fd()).into_bytes()
}

/// The path of something in a directory, which is empty for the root.
fn below(mut dir: Vec<u8>, last: &[u8]) -> Vec<u8> {
    if !dir.is_empty() {
        dir.push(b'/');
    }
    dir.extend_from_slice(last);
    dir
}

impl Root {
    pub fn open(path: &Path) -> Result<Self, LayerError> {
        let fd = rustix::fs::openat(
            CWD,
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| LayerError::io("opening", path.as_os_str().as_bytes(), e))?;
        let mut root = Self {
            fd,
            rights: Rights {
                chown: rustix::process::geteuid().is_root(),
                xattrs: OverlayXattrs::Trusted,
            },
            cached: None,
        };
        // Whether trusted attributes work depends on the user namespace, so try.
        let probe = rustix::fs::setxattr(
            as_path(&by_descriptor(root.fd.as_fd(), b".")),
            "trusted.overlay.probe",
            b"y",
            XattrFlags::empty(),
        );
        match probe {
            Ok(()) => {
                let path = by_descriptor(root.fd.as_fd(), b".");
                rustix::fs::removexattr(as_path(&path), "trusted.overlay.probe")
                    .map_err(|e| LayerError::io("unmarking", b".", e))?;
            }
            Err(_) => root.rights.xattrs = OverlayXattrs::User,
        }
        Ok(root)
    }

    /// The directory of these components; none if it is not there.
    pub fn dir(&self, parts: &[&[u8]]) -> Result<Option<OwnedFd>, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match self.resolve(parts, flags) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Opens something within the tree, following links inside it.
    pub fn resolve(&self, parts: &[&[u8]], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if parts.is_empty() { b".".to_vec() } else { join(parts) };
        loop {
            let opened = rustix::fs::openat2(
                &self.fd,
                as_path(&path),
                flags,
                Mode::empty(),
                ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            );
            match opened {
                // Something was renamed meanwhile: the kernel could not be sure.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// The directory of these components, made as needed. `made` is told of
    /// each directory that no entry of the archive described.
    pub fn dir_or_make(
        &mut self,
        parts: &[&[u8]],
        mut made: impl FnMut(Vec<u8>, Made),
    ) -> Result<BorrowedFd<'_>, LayerError> {
        let path = join(parts);
        if self.cached.as_ref().is_none_or(|(cached, _)| *cached != path) {
            let io = |e: Errno| LayerError::io("entering", &path, e);
            let fd = match self.dir(parts).map_err(io)? {
                Some(fd) => fd,
                None => {
                    let mut links_left = MAX_LINKS;
                    self.make_path(parts, &path, &mut links_left, &mut made)?;
                    self.dir(parts).map_err(io)?.ok_or_else(|| io(Errno::NOENT))?
                }
            };
            self.cached = Some((path, fd));
        }
        match &self.cached {
            Some((_, fd)) => Ok(fd.as_fd()),
            None => unreachable!("set above"),
        }
    }

    /// Where something in a directory of this tree is. The name by which it was reached may lead through
    /// links that are gone, or mean something else, when the archive ends.
    pub fn place(
        &self,
        dir: BorrowedFd<'_>,
        last: &[u8],
        path: &[u8],
    ) -> Result<Vec<u8>, LayerError> {
        let whole = |fd| rustix::fs::readlink(as_path(&of_descriptor(fd)), Vec::new());
        let found = || {
            let (dir, root) = (whole(dir)?, whole(self.fd.as_fd())?);
            let inside = dir.as_bytes().strip_prefix(root.as_bytes()).ok_or(Errno::NOENT)?;
            Ok(below(inside.strip_prefix(b"/").unwrap_or(inside).to_vec(), last))
        };
        found().map_err(|e: Errno| LayerError::io("entering", path, e))
    }

    /// Makes what is missing of a path. A link to what is not there yet, for
    /// it is in a lower layer, has its target made.
    fn make_path(
        &self,
        parts: &[&[u8]],
        path: &[u8],
        links_left: &mut u32,
        made: &mut impl FnMut(Vec<u8>, Made),
    ) -> Result<(), LayerError> {
        let io = |e: Errno| LayerError::io("entering", path, e);
        for depth in 1..=parts.len() {
            let here = &parts[..depth];
            if self.dir(here).map_err(io)?.is_some() {
                continue;
            }
            let (last, above) = (here[depth - 1], &here[..depth - 1]);
            let parent = self.dir(above).map_err(io)?.ok_or_else(|| io(Errno::NOENT))?;
            match rustix::fs::readlinkat(&parent, as_path(last), Vec::new()) {
                Ok(target) => {
                    *links_left = links_left.checked_sub(1).ok_or_else(|| io(Errno::LOOP))?;
                    let target = target.into_bytes();
                    let from: &[&[u8]] = if target.starts_with(b"/") { &[] } else { above };
                    let inner = target.split(|&c| c == b'/').filter(|p| !matches!(*p, b"" | b"."));
                    let all: Vec<&[u8]> = from.iter().copied().chain(inner).collect();
                    self.make_path(&all, path, links_left, made)?;
                }
                Err(_) => {
                    let how = self.make_dir(parent.as_fd(), last, path, false)?;
                    made(self.place(parent.as_fd(), last, path)?, how);
                }
            }
        }
        Ok(())
    }

    /// Forgets the cached directory: something that a path may lead through
    /// has been replaced.
    pub fn forget(&mut self) {
        self.cached = None;
    }

    /// Makes a directory. What else has its name goes if `replace` says so;
    /// a whiteout always goes.
    pub fn make_dir(
        &self,
        parent: BorrowedFd<'_>,
        last: &[u8],
        path: &[u8],
        replace: bool,
    ) -> Result<Made, LayerError> {
        let io = |e| LayerError::io("making directory", path, e);
        let mode = Mode::from_raw_mode(0o755);
        match rustix::fs::mkdirat(parent, as_path(last), mode) {
            Ok(()) => return Ok(Made::New),
            Err(Errno::EXIST) => {}
            Err(e) => return Err(io(e)),
        }
        let stat =
            rustix::fs::statat(parent, as_path(last), AtFlags::SYMLINK_NOFOLLOW).map_err(io)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Ok(Made::Existed);
        }
        let whiteout = is_whiteout(&stat);
        if !whiteout && !replace {
            return Err(LayerError::hostile(path, "is below something that is no directory"));
        }
        rustix::fs::unlinkat(parent, as_path(last), AtFlags::empty()).map_err(io)?;
        rustix::fs::mkdirat(parent, as_path(last), mode).map_err(io)?;
        // What was there hid the layers below, a file of this layer as much as a whiteout.
        self.set_opaque(parent, last, path)?;
        Ok(if whiteout { Made::OverWhiteout } else { Made::New })
    }

    /// Hides what the layers below have in a directory.
    pub fn set_opaque(
        &self,
        parent: BorrowedFd<'_>,
        last: &[u8],
        path: &[u8],
    ) -> Result<(), LayerError> {
        rustix::fs::lsetxattr(
            as_path(&by_descriptor(parent, last)),
            self.rights.xattrs.opaque(),
            b"y",
            XattrFlags::empty(),
        )
        .map_err(|e| LayerError::io("marking as opaque", path, e))
    }

    /// Hides one name of the layers below. What this layer itself has there
    /// stays: whiteouts are about what is below.
    pub fn white_out(
        &mut self,
        parent: BorrowedFd<'_>,
        last: &[u8],
        path: &[u8],
    ) -> Result<(), LayerError> {
        let io = |e| LayerError::io("hiding", path, e);
        match rustix::fs::statat(parent, as_path(last), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                self.set_opaque(parent, last, path)
            }
            Ok(_) => Ok(()),
            // A character device 0:0 is overlayfs' whiteout; everyone may make it.
            Err(Errno::NOENT) => rustix::fs::mknodat(
                parent,
                as_path(last),
                FileType::CharacterDevice,
                Mode::empty(),
                0,
            )
            .map_err(io),
            Err(e) => Err(io(e)),
        }
    }
}

/// Whether a file is overlayfs' mark for one that is gone.
pub fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Runs `make`, and once more after removing what was in its way.
pub fn replacing<T>(
    parent: BorrowedFd<'_>,
    last: &[u8],
    path: &[u8],
    mut make: impl FnMut() -> Result<T, Errno>,
) -> Result<(T, bool), LayerError> {
    match make() {
        Ok(made) => return Ok((made, false)),
        Err(Errno::EXIST) => {}
        Err(e) => return Err(LayerError::io("making", path, e)),
    }
    remove(parent, last).map_err(|e| LayerError::io("replacing", path, e))?;
    make().map(|made| (made, true)).map_err(|e| LayerError::io("making", path, e))
}

/// Removes a file or a whole directory.
pub fn remove(parent: BorrowedFd<'_>, last: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, as_path(last), AtFlags::empty()) {
        Ok(()) => Ok(()),
        Err(Errno::ISDIR) => std::fs::remove_dir_all(as_path(&by_descriptor(parent, last))),
        Err(e) => Err(e.into()),
    }
}

fn timestamps(time: Time) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}

/// Gives an open file or directory the owner, mode, attributes and time of
/// its entry, in the order in which none undoes another.
pub fn describe(
    fd: BorrowedFd<'_>,
    entry: &Entry,
    path: &[u8],
    rights: Rights,
) -> Result<(), LayerError> {
    let io = |what| move |e: Errno| LayerError::io(what, path, e);
    if rights.chown && (entry.uid != 0 || entry.gid != 0) {
        rustix::fs::fchown(fd, uid(entry), gid(entry)).map_err(io("giving away"))?;
    }
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(io("setting the mode of"))?;
    for (key, value) in &entry.xattrs {
        let set = rustix::fs::fsetxattr(fd, as_path(key), value, XattrFlags::empty());
        tolerate(set, key, rights).map_err(io("setting an attribute of"))?;
    }
    rustix::fs::futimens(fd, &timestamps(entry.mtime)).map_err(io("setting the time of"))
}

/// The same for what cannot be opened: links, devices, pipes.
pub fn describe_at(
    parent: BorrowedFd<'_>,
    last: &[u8],
    entry: &Entry,
    path: &[u8],
    is_link: bool,
    rights: Rights,
) -> Result<(), LayerError> {
    let io = |what| move |e: Errno| LayerError::io(what, path, e);
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    if rights.chown && (entry.uid != 0 || entry.gid != 0) {
        rustix::fs::chownat(parent, as_path(last), uid(entry), gid(entry), flags)
            .map_err(io("giving away"))?;
    }
    if !is_link {
        // The name was made by us a moment ago in a tree nobody else can enter.
        rustix::fs::chmodat(
            parent,
            as_path(last),
            Mode::from_raw_mode(entry.mode),
            AtFlags::empty(),
        )
        .map_err(io("setting the mode of"))?;
    }
    let full = by_descriptor(parent, last);
    for (key, value) in &entry.xattrs {
        let set = rustix::fs::lsetxattr(as_path(&full), as_path(key), value, XattrFlags::empty());
        tolerate(set, key, rights).map_err(io("setting an attribute of"))?;
    }
    rustix::fs::utimensat(parent, as_path(last), &timestamps(entry.mtime), flags)
        .map_err(io("setting the time of"))
}

/// Attributes that only the host's root may set are left out without it:
/// file capabilities mean nothing to a user who has none to give.
fn tolerate(set: Result<(), Errno>, key: &[u8], rights: Rights) -> Result<(), Errno> {
    let privileged = key.starts_with(b"security.") || key.starts_with(b"trusted.");
    match set {
        Err(Errno::PERM | Errno::INVAL) if privileged && rights.xattrs == OverlayXattrs::User => {
            Ok(())
        }
        // No such attributes on this file system: SELinux labels, say.
        Err(Errno::OPNOTSUPP) if key.starts_with(b"security.") => Ok(()),
        other => other,
    }
}

fn uid(entry: &Entry) -> Option<rustix::fs::Uid> {
    Some(rustix::fs::Uid::from_raw(entry.uid))
}

fn gid(entry: &Entry) -> Option<rustix::fs::Gid> {
    Some(rustix::fs::Gid::from_raw(entry.gid))
}
