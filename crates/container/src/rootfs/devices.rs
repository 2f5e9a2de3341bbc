//! Device nodes and the links that programs expect in `/dev`.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid};

use super::path::{RootDir, clean, open_host};
use crate::error::{Context, Error, Result};
use crate::spec::{Device, Spec};
use crate::sys::mount;

/// The devices every container has: name, major, minor.
pub const DEFAULT: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Fills `/dev`, unless the host's own is mounted there. In a user namespace
/// nodes cannot be made; the host's are mounted then, by descriptor.
pub fn create(root: &RootDir, spec: &Spec, in_user_namespace: bool) -> Result<()> {
    if host_dev_is_mounted(spec) {
        return Ok(());
    }
    let directory = root.make_dir("/dev")?;
    for (name, major, minor) in DEFAULT {
        let path = format!("/dev/{name}");
        if spec.linux.devices.iter().any(|d| clean(&d.path) == path) {
            continue;
        }
        if !in_user_namespace && made_anew(&directory, name, major, minor) {
            continue;
        }
        let device = Device {
            kind: "c".into(),
            path,
            major: major.into(),
            minor: minor.into(),
            file_mode: Some(0o666),
            uid: None,
            gid: None,
        };
        create_one(root, &device, in_user_namespace)?;
    }
    for device in &spec.linux.devices {
        create_one(root, device, in_user_namespace)?;
    }
    for (target, name) in LINKS {
        if name == "ptmx" && !spec.mounts.iter().any(|m| clean(&m.destination) == "/dev/pts") {
            continue;
        }
        match rustix::fs::symlinkat(target, &directory, name) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e).during(|| format!("link /dev/{name} to {target}")),
        }
    }
    Ok(())
}

/// Makes a node that all may read and write, where nothing has its name: usually `/dev` is empty.
fn made_anew(directory: &OwnedFd, name: &str, major: u32, minor: u32) -> bool {
    let everybody = Mode::from_raw_mode(0o666);
    let number = rustix::fs::makedev(major, minor);
    let before = rustix::process::umask(Mode::empty());
    let made = rustix::fs::mknodat(directory, name, FileType::CharacterDevice, everybody, number);
    rustix::process::umask(before);
    made.is_ok()
}

fn host_dev_is_mounted(spec: &Spec) -> bool {
    spec.mounts.iter().any(|m| {
        clean(&m.destination) == "/dev"
            && (m.kind.as_deref() == Some("bind")
                || m.options.iter().any(|o| o == "bind" || o == "rbind"))
    })
}

fn create_one(root: &RootDir, device: &Device, in_user_namespace: bool) -> Result<()> {
    let path = clean(&device.path);
    let kind = match device.kind.as_str() {
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        _ => FileType::CharacterDevice,
    };
    let number = |value: i64| {
        u32::try_from(value)
            .map_err(|_| Error::config("linux.devices", format!("{path}: number {value}")))
    };
    let (major, minor) = match kind {
        FileType::Fifo => (0, 0),
        _ => (number(device.major)?, number(device.minor)?),
    };
    if let Ok(stat) = root.stat(&path) {
        let same = FileType::from_raw_mode(stat.st_mode) == kind
            && (kind == FileType::Fifo || stat.st_rdev == rustix::fs::makedev(major, minor));
        if same {
            return Ok(());
        }
        if !in_user_namespace {
            return Err(Error::config(
                "linux.devices",
                format!("{path} is something else in the root file system"),
            ));
        }
    }
    if in_user_namespace && kind != FileType::Fifo {
        return bind(root, &path, kind, major, minor);
    }
    let (parent, name) = root.make_parent(&path)?;
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    match rustix::fs::mknodat(&parent, name, kind, mode, rustix::fs::makedev(major, minor)) {
        // A runtime inside a container or user namespace of its own.
        Err(rustix::io::Errno::PERM) if kind != FileType::Fifo => {
            return bind(root, &path, kind, major, minor);
        }
        other => other.during(|| format!("make the device {path}"))?,
    }
    // The mode that mknod was given went through the umask.
    let node = root.place_nofollow(&path).during(|| format!("open {path}"))?;
    set_mode(&node, mode).during(|| format!("set the mode of {path}"))?;
    if device.uid.is_some() || device.gid.is_some() {
        let (uid, gid) = (device.uid.map(Uid::from_raw), device.gid.map(Gid::from_raw));
        rustix::fs::chownat(&node, c"", uid, gid, AtFlags::EMPTY_PATH)
            .during(|| format!("set the owner of {path}"))?;
    }
    Ok(())
}

/// Changes the mode of what an `O_PATH` descriptor stands for. Kernels before
/// 6.6 have no call for it but the descriptor's name in procfs.
fn set_mode(node: &OwnedFd, mode: Mode) -> rustix::io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: an empty NUL-terminated path and integers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fchmodat2,
            node.as_raw_fd(),
            c"".as_ptr(),
            mode.as_raw_mode(),
            libc::AT_EMPTY_PATH,
        )
    };
    if result == 0 {
        return Ok(());
    }
    rustix::fs::chmod(format!("/proc/self/fd/{}", node.as_raw_fd()), mode)
}

fn bind(root: &RootDir, path: &str, kind: FileType, major: u32, minor: u32) -> Result<()> {
    let source = open_host(path).during(|| format!("open {path} of the host"))?;
    let stat = rustix::fs::fstat(&source).during(|| format!("look at {path}"))?;
    if FileType::from_raw_mode(stat.st_mode) != kind
        || stat.st_rdev != rustix::fs::makedev(major, minor)
    {
        return Err(Error::unsupported(
            format!("the device {path} ({major}:{minor})"),
            "the host has another one there, and a user namespace cannot make nodes",
        ));
    }
    let place = root.make_file(path)?;
    let tree = mount::clone_tree(source.as_fd(), false).during(|| format!("take {path}"))?;
    mount::attach(tree.as_fd(), place.as_fd()).during(|| format!("mount {path}"))
}
