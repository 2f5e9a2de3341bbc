//! The root file system: the image's EROFS below, what is written above, and what every
//! Linux program expects to be mounted.
//!
//! ```text
//! /lower          the image, read-only
//! /upper          what is written: memory, or an ext4 disk
//! /root           both together (overlayfs); becomes /
//! ```
//!
//! The first two stay where they are when the root changes; nobody finds them any more.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;

use guise_agent::protocol::{
    MODULES_OF_ALL, MODULES_OF_DISKS, MODULES_OF_SHARES, Mount, OwnRoot, Root, Source, Writes,
};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount, mount_move, mount_remount};

use super::{files, init, modules};

const ROOT: &str = "/root";

/// The root file system, entered or about to be.
pub struct MountedRoot {
    /// Where writes go, for bringing it to rest.
    upper: OwnedFd,
}

/// Says what was being done when it failed.
fn at<T, E: Into<io::Error>>(doing: impl std::fmt::Display, result: Result<T, E>) -> io::Result<T> {
    result.map_err(|error| {
        let error: io::Error = error.into();
        io::Error::new(error.kind(), format!("{doing}: {error}"))
    })
}

/// The image and what is written above it, at [`ROOT`].
fn mount_layers(root: &Root) -> io::Result<()> {
    for directory in ["/lower", "/upper", ROOT] {
        at(directory, fs::create_dir_all(directory))?;
    }
    let image = disk(&root.image)?;
    at("mounting the image", mount(&image, "/lower", "erofs", MountFlags::RDONLY, None))?;
    match &root.writes {
        Writes::Memory { bytes } => mount_memory("/upper", *bytes, "0755", MountFlags::empty())?,
        Writes::Disk(serial) => mount_ext4(serial, "/upper", MountFlags::NOATIME)?,
    }
    for directory in ["/upper/data", "/upper/work"] {
        at(directory, fs::create_dir_all(directory))?;
    }
    let options = c"lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work";
    at(
        "mounting the root file system",
        mount("overlay", ROOT, "overlay", MountFlags::empty(), Some(options)),
    )
}

/// What the kernel tells of itself goes along.
fn take_kernels_own() -> io::Result<()> {
    for name in ["dev", "proc", "sys"] {
        let target = directory(&format!("/{name}"))?;
        at(&target, mount_move(format!("/{name}"), &target))?;
    }
    Ok(())
}

/// Makes an image the root of its own system, which mounts by itself whatever else it wants.
pub fn become_system(own: &OwnRoot) -> io::Result<()> {
    init::mount_kernels_own()?;
    modules::load(MODULES_OF_ALL)?;
    mount_layers(&own.root)?;
    take_kernels_own()?;
    enter()?;
    files::introduce(&own.host_name)
}

/// Mounts the root file system at [`ROOT`], with what belongs into every one.
pub fn mount_all(root: &Root) -> io::Result<MountedRoot> {
    mount_layers(root)?;
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
    let upper = at("/upper", rustix::fs::open("/upper", flags, Mode::empty()))?;
    take_kernels_own()?;
    let careful = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let devices = MountFlags::NOSUID | MountFlags::NOEXEC;
    let special = [
        ("devpts", "/dev/pts", devices, Some(c"gid=5,mode=620,ptmxmode=666")),
        ("mqueue", "/dev/mqueue", careful, None),
        ("cgroup2", "/sys/fs/cgroup", careful, None),
    ];
    for (kind, target, flags, options) in special {
        let target = directory(target)?;
        at(&target, mount(kind, &target, kind, flags, options))?;
    }
    const SHARED_MEMORY: u64 = 64 << 20;
    let shared = directory("/dev/shm")?;
    mount_memory(&shared, SHARED_MEMORY, "1777", careful)?;
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        let path = format!("{ROOT}/dev/{name}");
        // devtmpfs has a ptmx of its own, which belongs to no instance.
        let _ = fs::remove_file(&path);
        at(&path, symlink(target, &path))?;
    }
    Ok(MountedRoot { upper })
}

impl MountedRoot {
    /// What the user wants to have mounted.
    pub fn mount_into(&self, mounts: &[Mount]) -> io::Result<()> {
        for wanted in mounts {
            let target = directory(&wanted.target)?;
            let mut flags = MountFlags::empty();
            if wanted.read_only {
                flags |= MountFlags::RDONLY;
            }
            match &wanted.source {
                Source::Share(tag) => {
                    modules::load(MODULES_OF_SHARES)?;
                    at(&wanted.target, mount(tag, &target, "virtiofs", flags, None))?;
                }
                Source::Memory { bytes } => mount_memory(&target, *bytes, "1777", flags)?,
                Source::Disk(serial) => mount_ext4(serial, &target, flags)?,
            }
        }
        Ok(())
    }

    /// From now on the root is as it is, where that is wanted.
    pub fn seal(&self, read_only: bool) -> io::Result<()> {
        if read_only {
            let flags = MountFlags::BIND | MountFlags::RDONLY;
            at("making the root read-only", mount_remount("/", flags, c""))?;
        }
        Ok(())
    }

    /// Brings what has been written to the disk, whole. Nobody else runs any more.
    pub fn rest(&self) -> io::Result<()> {
        rustix::fs::sync();
        // Both are for a clean file system. Without them its journal does the work at the
        // next start; nothing is lost either way.
        let upper = format!("/proc/self/fd/{}", self.upper.as_raw_fd());
        for path in ["/", &upper] {
            if let Err(error) = mount_remount(path, MountFlags::RDONLY, c"") {
                eprintln!("guise-agent: {path} stays writable: {error}");
            }
        }
        Ok(())
    }
}

/// Makes [`ROOT`] the root of this process and of all to come, and gives up the memory of
/// the initial RAM disk.
pub fn enter() -> io::Result<()> {
    for path in ["/init", "/modules"] {
        let path = Path::new(path);
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            eprintln!("guise-agent: {}: {error}", path.display());
        }
    }
    at(ROOT, std::env::set_current_dir(ROOT))?;
    at("moving the root", mount_move(".", "/"))?;
    at("entering the root", rustix::process::chroot("."))?;
    at("entering the root", std::env::set_current_dir("/"))
}

/// A directory of the root file system to mount something on, made if it is not there.
/// Links in the path lead where they lead inside of the root.
fn directory(path: &str) -> io::Result<String> {
    const MOST_LINKS: usize = 40;
    let mut parts: Vec<String> = Vec::new();
    let mut rest: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
    let mut links = 0;
    while let Some(part) = rest.pop() {
        match part.as_str() {
            "" | "." => continue,
            ".." => {
                parts.pop();
                continue;
            }
            _ => parts.push(part),
        }
        let whole = format!("{ROOT}/{}", parts.join("/"));
        match fs::read_link(&whole) {
            Ok(target) if links < MOST_LINKS => {
                links += 1;
                parts.pop();
                if target.is_absolute() {
                    parts.clear();
                }
                let target = target.to_string_lossy();
                rest.extend(target.split('/').rev().map(str::to_owned));
            }
            Ok(_) => return Err(io::Error::other(format!("{path}: too many links"))),
            Err(_) if fs::symlink_metadata(&whole).is_ok() => {}
            Err(_) => at(&whole, fs::create_dir(&whole))?,
        }
    }
    Ok(format!("{ROOT}/{}", parts.join("/")))
}

fn mount_memory(target: &str, bytes: u64, mode: &str, flags: MountFlags) -> io::Result<()> {
    // No limit is half of the memory.
    let size = if bytes == 0 { String::new() } else { format!("size={bytes},") };
    let options = std::ffi::CString::new(format!("{size}mode={mode}"))?;
    at(target, mount("tmpfs", target, "tmpfs", flags, Some(options.as_c_str())))
}

fn mount_ext4(serial: &str, target: &str, flags: MountFlags) -> io::Result<()> {
    modules::load(MODULES_OF_DISKS)?;
    let device = disk(serial)?;
    // Space of deleted files goes back to the host.
    let options = if flags.contains(MountFlags::RDONLY) { c"" } else { c"discard" };
    at(target, mount(device, target, "ext4", flags, Some(options)))
}

/// The device of the disk with a serial number.
fn disk(serial: &str) -> io::Result<String> {
    for entry in at("/sys/class/block", fs::read_dir("/sys/class/block"))? {
        let entry = entry?;
        let found = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if found.trim_end() == serial {
            return Ok(format!("/dev/{}", entry.file_name().to_string_lossy()));
        }
    }
    Err(io::Error::other(format!("the machine has no disk '{serial}'")))
}
