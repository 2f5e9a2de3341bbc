//! Files in and out, as tar archives.
//!
//! Paths are resolved by the kernel below the root as the workload sees it, so that no
//! link inside and no name in an archive leads to the host.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use guise_container::rootfs::path::{RootDir, clean};
use guise_image::tar::{Entry, Kind, Reader, Time, Writer};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RawMode};

use crate::body::{BodyError, failed, system};

/// Folders in folders; deeper trees are refused rather than followed.
const MAX_DEPTH: usize = 256;

pub fn copy_out(root: OwnedFd, path: &str, archive: &mut dyn Write) -> Result<(), BodyError> {
    let root = RootDir::new(root);
    let path = clean(path);
    let name = path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(".");
    let place = root
        .place_nofollow(&path)
        .map_err(|error| BodyError::Failed(format!("{path} in the instance: {error}")))?;
    let open = || root.open(&path, READ_NOFOLLOW, Mode::empty());
    let mut writer = Writer::new(archive);
    add(&mut writer, &place, &open, name, 0)
        .map_err(system(format!("read {path} in the instance")))?;
    writer.finish().map(drop).map_err(system("finish the archive"))
}

/// How regular files are opened that may be something else by then.
const READ_NOFOLLOW: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::NOFOLLOW);

/// Adds what is at a place, and everything below it. `open` opens what has its name.
fn add(
    writer: &mut Writer<&mut dyn Write>,
    place: &OwnedFd,
    open: &dyn Fn() -> io::Result<OwnedFd>,
    name: &str,
    depth: usize,
) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("{name}: folders are nested too deep")));
    }
    let stat = rustix::fs::fstat(place)?;
    let mode = (stat.st_mode & 0o7777) as u32;
    let mut entry = Entry::new(name, Kind::Directory, mode);
    entry.uid = stat.st_uid;
    entry.gid = stat.st_gid;
    entry.mtime = Time { seconds: stat.st_mtime as i64, nanoseconds: 0 };
    match FileType::from_raw_mode(stat.st_mode as RawMode) {
        FileType::Directory => {
            writer.append(&entry, io::empty())?;
            let folder = open_folder(place)?;
            for child in Dir::read_from(&folder)? {
                let child = child?;
                let bytes = child.file_name();
                if matches!(bytes.to_bytes(), b"." | b"..") {
                    continue;
                }
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let below = rustix::fs::openat(&folder, bytes, flags, Mode::empty())?;
                let below_name = format!("{name}/{}", bytes.to_string_lossy());
                let open = || {
                    let flags = READ_NOFOLLOW | OFlags::CLOEXEC;
                    Ok(rustix::fs::openat(&folder, bytes, flags, Mode::empty())?)
                };
                add(writer, &below, &open, &below_name, depth + 1)?;
            }
            Ok(())
        }
        FileType::RegularFile => {
            entry.kind = Kind::File;
            entry.size = stat.st_size as u64;
            let file = open()?;
            let opened = rustix::fs::fstat(&file)?;
            if (opened.st_dev, opened.st_ino) != (stat.st_dev, stat.st_ino) {
                return Err(io::Error::other(format!("{name} was replaced meanwhile")));
            }
            writer.append(&entry, File::from(file))
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(place, "", Vec::new())?;
            entry.kind = Kind::Symlink(target.into_bytes());
            writer.append(&entry, io::empty())
        }
        // Devices, pipes and sockets mean nothing elsewhere.
        _ => Ok(()),
    }
}

/// Opens the very folder that a place stands for.
fn open_folder(place: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(place, ".", flags, Mode::empty())?)
}

pub fn copy_in(root: OwnedFd, path: &str, archive: &mut dyn Read) -> Result<(), BodyError> {
    let root = RootDir::new(root);
    let path = clean(path);
    let place = root
        .open(&path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
        .map_err(|error| BodyError::Failed(format!("{path} in the instance: {error}")))?;
    // A root of its own: nothing in the archive leads out of this folder.
    let folder = RootDir::new(place);
    let mut reader = Reader::new(archive);
    while let Some(entry) = reader.next_entry().map_err(failed)? {
        let name = String::from_utf8(entry.path.clone()).map_err(failed)?;
        if name.split('/').any(|part| part == "..") {
            return Err(BodyError::Failed(format!("{name:?} in the archive leads elsewhere")));
        }
        let name = clean(&name);
        unpack(&folder, &name, &entry, &mut reader)
            .map_err(system(format!("write {name} below {path} in the instance")))?;
    }
    Ok(())
}

fn unpack(folder: &RootDir, name: &str, entry: &Entry, data: &mut impl Read) -> io::Result<()> {
    let mode = Mode::from_raw_mode((entry.mode & 0o7777) as RawMode);
    if entry.kind == Kind::Directory {
        let made = folder.make_dir(name).map_err(io::Error::other)?;
        if name != "/" {
            let made = open_folder(&made)?;
            rustix::fs::fchmod(&made, mode)?;
        }
        return Ok(());
    }
    let (parent, last) = folder.make_parent(name).map_err(io::Error::other)?;
    match rustix::fs::unlinkat(&parent, last, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match &entry.kind {
        Kind::File => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let made = rustix::fs::openat(&parent, last, flags, Mode::RUSR | Mode::WUSR)?;
            let mut made = File::from(made);
            let written = io::copy(&mut data.take(entry.size), &mut made)?;
            if written != entry.size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(rustix::fs::fchmod(&made, mode)?)
        }
        Kind::Symlink(target) => {
            let target = std::ffi::CString::new(target.clone()).map_err(io::Error::other)?;
            Ok(rustix::fs::symlinkat(target.as_c_str(), &parent, last)?)
        }
        Kind::Hardlink(target) => {
            let target = String::from_utf8_lossy(target);
            let place = folder.place_nofollow(&clean(&target))?;
            Ok(rustix::fs::linkat(&place, "", &parent, last, AtFlags::EMPTY_PATH)?)
        }
        // What copies out leaves these out as well.
        Kind::Character(_) | Kind::Block(_) | Kind::Fifo | Kind::Directory => Ok(()),
    }
}
