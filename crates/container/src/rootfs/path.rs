//! Paths inside a root that may be hostile.
//!
//! The kernel resolves them (`openat2` with `RESOLVE_IN_ROOT`): absolute links
//! and `..` stay below the root, magic links of procfs are not followed. What
//! is missing is made one component at a time, each below a descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};

use crate::error::{Context, Error, Result};

/// A directory that is the root for every path given to it.
pub struct RootDir(OwnedFd);

/// Opens a path of the runtime's own namespace, as a place only.
pub fn open_host(path: impl AsRef<Path>) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path.as_ref(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

impl RootDir {
    pub fn new(fd: OwnedFd) -> Self {
        RootDir(fd)
    }

    /// Opens a path below the root.
    pub fn open(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        self.open_with(path, flags, mode, ResolveFlags::empty())
    }

    /// The place a path leads to, without opening what is there.
    pub fn place(&self, path: &str) -> io::Result<OwnedFd> {
        self.open(path, OFlags::PATH, Mode::empty())
    }

    /// The place a path names: if it is a link, the link itself.
    pub fn place_nofollow(&self, path: &str) -> io::Result<OwnedFd> {
        self.open(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())
    }

    fn open_with(
        &self,
        path: &str,
        flags: OFlags,
        mode: Mode,
        resolve: ResolveFlags,
    ) -> io::Result<OwnedFd> {
        const ATTEMPTS: usize = 64;
        let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if path.is_empty() { "." } else { path };
        let mut attempt = 0;
        loop {
            match rustix::fs::openat2(&self.0, path, flags | OFlags::CLOEXEC, mode, resolve) {
                // Somebody renamed a directory meanwhile; the kernel asks to
                // try again rather than to trust what it saw.
                Err(rustix::io::Errno::AGAIN) if attempt < ATTEMPTS => attempt += 1,
                Err(e) => return Err(e.into()),
                Ok(fd) => return Ok(fd),
            }
        }
    }

    /// A directory below the root, made with its parents where missing.
    pub fn make_dir(&self, path: &str) -> Result<OwnedFd> {
        match self.place(path) {
            Ok(fd) => return Ok(fd),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).during(|| format!("open {path} in the root file system")),
        }
        let (parent, name) = self.make_parent(path)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e).during(|| format!("make {path} in the root file system")),
        }
        // Opened by the whole path again: a link that leads nowhere stays one.
        self.place(&clean(path)).during(|| format!("open {path} in the root file system"))
    }

    /// The directory of a path, made where missing, and the last component.
    pub fn make_parent<'p>(&self, path: &'p str) -> Result<(OwnedFd, &'p str)> {
        let name = components(path).last().ok_or_else(|| {
            Error::config("destination", format!("{path:?} names the root itself"))
        })?;
        let parent: String = {
            let all: Vec<&str> = components(path).collect();
            all[..all.len() - 1].join("/")
        };
        Ok((self.make_dir(&parent)?, name))
    }

    /// A regular file to mount onto, made empty where missing.
    pub fn make_file(&self, path: &str) -> Result<OwnedFd> {
        match self.place(path) {
            Ok(fd) => return Ok(fd),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).during(|| format!("open {path} in the root file system")),
        }
        let (parent, name) = self.make_parent(path)?;
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644))
            .during(|| format!("make {path} in the root file system"))?;
        self.place(path).during(|| format!("open {path} in the root file system"))
    }

    /// What a path is, not following a last link.
    pub fn stat(&self, path: &str) -> io::Result<rustix::fs::Stat> {
        let place = self.place_nofollow(path)?;
        Ok(rustix::fs::statat(&place, c"", AtFlags::EMPTY_PATH)?)
    }
}

impl AsFd for RootDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The components of a path that name something, `..` taken away with what
/// precedes it.
pub fn components(path: &str) -> impl Iterator<Item = &str> {
    let mut kept: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            name => kept.push(name),
        }
    }
    kept.into_iter()
}

/// The path with `.`, `..` and double slashes taken out.
pub fn clean(path: &str) -> String {
    let mut clean = String::new();
    for part in components(path) {
        clean.push('/');
        clean.push_str(part);
    }
    if clean.is_empty() { String::from("/") } else { clean }
}

#[cfg(test)]
mod tests;
