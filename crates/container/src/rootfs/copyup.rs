//! `tmpcopyup`: a new tmpfs that starts with what the directory below held.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Timespec, Timestamps};

use crate::error::{Context, Error, Result};

/// Depth of directories that are followed; deeper ones are a mistake or an
/// attack on the stack.
const MAX_DEPTH: usize = 128;

/// Copies a directory's content into another, by descriptor, not following
/// links and not entering other file systems.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let from = reopen(from)?;
    let device = rustix::fs::fstat(&from).during(|| "look at a directory")?.st_dev;
    copy_dir(&from, to, device, 0)
}

fn reopen(directory: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(directory, c".", flags, Mode::empty()).during(|| "open a directory")
}

fn copy_dir(from: &OwnedFd, to: BorrowedFd<'_>, device: u64, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Error::config("mounts: tmpcopyup", "directories are nested too deeply"));
    }
    for entry in Dir::read_from(from).during(|| "list a directory")? {
        let entry = entry.during(|| "list a directory")?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let what = || format!("copy {}", name.to_string_lossy());
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).during(what)?;
        if stat.st_dev != device {
            continue;
        }
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, mode).during(what)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let source = rustix::fs::openat(from, name, flags, Mode::empty()).during(what)?;
                let target = rustix::fs::openat(to, name, flags, Mode::empty()).during(what)?;
                copy_dir(&source, target.as_fd(), device, depth + 1)?;
                rustix::fs::fchmod(&target, mode).during(what)?;
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(from, name, Vec::new()).during(what)?;
                rustix::fs::symlinkat(link.as_c_str(), to, name).during(what)?;
            }
            FileType::RegularFile => {
                copy_file(from, to, name, mode).during(what)?;
            }
            _ => continue,
        }
        let (uid, gid) =
            (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
        rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .during(what)?;
        let time = |seconds: i64, nanoseconds: u64| Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds as i64,
        };
        let times = Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec),
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
        };
        rustix::fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW).during(what)?;
    }
    Ok(())
}

fn copy_file(
    from: &OwnedFd,
    to: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    mode: Mode,
) -> std::io::Result<()> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut source = std::fs::File::from(rustix::fs::openat(from, name, read, Mode::empty())?);
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let target = rustix::fs::openat(to, name, write, Mode::from_raw_mode(0o600))?;
    let mut target = std::fs::File::from(target);
    std::io::copy(&mut source, &mut target)?;
    rustix::fs::fchmod(&target, mode)?;
    Ok(())
}
