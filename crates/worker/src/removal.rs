//! Taking away what an instance wrote, with nothing of it left.
//!
//! Folders of it may be closed to their own owner, and be nested deeper than a process may have
//! files open. In a plain user's container there may be other users, and what is theirs is not
//! this user's to remove: that takes a process in a namespace like the container's, where the user
//! is root. Links are not followed.

use std::ffi::{CStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RawMode};
use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::birth::{Midwife, Users};

/// The argument that has a worker's helper remove a tree as root of all users of a plain user.
pub const ARGUMENT: &str = "--remove";
/// How it ends when something there is none of these users'.
pub const REFUSED: u8 = 3;

/// Folders in folders; what is deeper is moved up first.
const DEEPEST: usize = 32;

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes what is at a path and below it, if anything is.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let top = match open_folder(CWD, path) {
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return gone(rustix::fs::unlink(path)).map_err(io::Error::from);
        }
        top => top?,
    };
    let mut removal = Removal { top: rustix::io::dup(&top)?, moved: 0 };
    // What was moved up may come behind what has been read.
    while removal.empty(top.try_clone()?, 1)? {}
    Ok(gone(rustix::fs::rmdir(path))?)
}

struct Removal {
    top: OwnedFd,
    /// Numbers what is moved up.
    moved: u64,
}

impl Removal {
    /// Empties a folder; says whether there was anything in it.
    fn empty(&mut self, folder: OwnedFd, depth: usize) -> io::Result<bool> {
        let mut entries = Dir::new(folder)?;
        entries.rewind();
        let mut found = false;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            found = true;
            let is_folder = entry.file_type() == FileType::Directory;
            self.remove(entries.fd()?, name, is_folder, depth).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", name.to_string_lossy()))
            })?;
        }
        Ok(found)
    }

    fn remove(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &CStr,
        is_folder: bool,
        depth: usize,
    ) -> io::Result<()> {
        if !is_folder {
            // File systems need not tell what is one.
            match gone(rustix::fs::unlinkat(folder, name, AtFlags::empty())) {
                Err(Errno::ISDIR) => {}
                removed => return Ok(removed?),
            }
        }
        let below = match open_folder(folder, name) {
            Err(Errno::NOENT) => return Ok(()),
            below => below?,
        };
        if depth == DEEPEST {
            return self.move_up(folder, name);
        }
        self.empty(below, depth + 1)?;
        Ok(gone(rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR))?)
    }

    fn move_up(&mut self, folder: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        loop {
            self.moved += 1;
            let new = format!("removed-{}", self.moved);
            match gone(rustix::fs::renameat(folder, name, &self.top, new)) {
                // The instance had a file of this name.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                renamed => return Ok(renamed?),
            }
        }
    }
}

/// Opens a folder, and the folder to its owner.
fn open_folder(
    parent: impl AsFd + Copy,
    name: impl rustix::path::Arg + Copy,
) -> rustix::io::Result<OwnedFd> {
    let open = |how| rustix::fs::openat(parent, name, FOLDER | how, Mode::empty());
    match open(OFlags::RDONLY) {
        Ok(folder) => {
            let mode = Mode::from_raw_mode(rustix::fs::fstat(&folder)?.st_mode as RawMode);
            if !mode.contains(Mode::RWXU) {
                // Whoever may pass over it need not be its owner.
                let _ = rustix::fs::fchmod(&folder, Mode::RWXU);
            }
            Ok(folder)
        }
        Err(Errno::ACCESS) => {
            let closed = open(OFlags::PATH)?;
            let itself = format!("/proc/self/fd/{}", closed.as_raw_fd());
            rustix::fs::chmod(itself, Mode::RWXU)?;
            open(OFlags::RDONLY)
        }
        failed => failed,
    }
}

/// What is not there any more is removed.
fn gone(removed: rustix::io::Result<()>) -> rustix::io::Result<()> {
    if removed == Err(Errno::NOENT) { Ok(()) } else { removed }
}

/// What a worker's helper does that removes a tree, by its arguments. None where these are
/// others. Its standard input leads to the daemon.
#[must_use]
pub fn helper(arguments: &[OsString]) -> Option<u8> {
    let [argument, path] = arguments else { return None };
    if argument != ARGUMENT {
        return None;
    }
    let removed = become_root_of_all().and_then(|()| remove_tree(path.as_ref()));
    let Err(error) = removed else { return Some(0) };
    eprintln!("{error}");
    Some(if error.kind() == io::ErrorKind::PermissionDenied { REFUSED } else { 1 })
}

fn become_root_of_all() -> io::Result<()> {
    let mut midwife = Midwife::at_standard_input()?;
    // SAFETY: no descriptor table or memory is unshared, only credentials.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }?;
    midwife.have_mapped(Users::All)
}

#[cfg(test)]
mod tests;
