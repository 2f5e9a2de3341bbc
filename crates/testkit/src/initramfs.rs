//! Initial RAM disks: an archive in cpio's `newc` format, as Linux unpacks it.
//!
//! Written here and not by `cpio`, so that device nodes need no root and every
//! build of the same content is the same bytes.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::assets::Kernel;
use crate::{TestkitError, assets, modules, programs, torture};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// First program of the guests: mounts what programs expect, runs the command
/// that the kernel passes after `--`, or else a shell, and powers off.
const INIT: &str = include_str!("../guests/init.sh");
/// What guests do with a DHCP lease.
const LEASE: &str = include_str!("../guests/udhcpc.sh");
/// Work for an hour.
const SOAK: &str = include_str!("../guests/soak.sh");

/// An archive being written.
pub struct Initramfs {
    bytes: Vec<u8>,
    entries: u32,
}

impl Default for Initramfs {
    fn default() -> Self {
        Self::new()
    }
}

impl Initramfs {
    pub fn new() -> Self {
        Initramfs { bytes: Vec::new(), entries: 0 }
    }

    /// A busybox system with the guests' `/init`; its applets are installed when it
    /// starts.
    pub fn with_busybox() -> Result<Self, TestkitError> {
        let mut archive = Self::new();
        for directory in ["bin", "dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp"] {
            archive.directory(directory);
        }
        archive.character_device("dev/console", 5, 1);
        archive.file_from(&assets::busybox()?, "bin/busybox")?;
        archive.symlink("bin/sh", "busybox");
        archive.file("init", 0o755, INIT.as_bytes());
        Ok(archive)
    }

    /// Adds a directory, whose parents must have been added.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[]);
    }

    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, REGULAR | mode, (0, 0), content);
    }

    /// Adds a file of the host with its permissions.
    pub fn file_from(&mut self, host: &Path, path: &str) -> Result<(), TestkitError> {
        let content = fs::read(host).map_err(TestkitError::file("reading", host))?;
        let metadata = fs::metadata(host).map_err(TestkitError::file("reading", host))?;
        self.file(path, metadata.permissions().mode() & 0o7777, &content);
        Ok(())
    }

    pub fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes());
    }

    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER | 0o600, (major, minor), &[]);
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    /// Writes the archive to `assets/initramfs/NAME.cpio` unless it stands there.
    pub fn store(self, name: &str) -> Result<PathBuf, TestkitError> {
        store(&format!("initramfs/{name}.cpio"), &self.finish())
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            content.len() as u32,
            0,
            0,
            device.0,
            device.1,
            path.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            write!(self.bytes, "{field:08x}").expect("a vector takes all that is written");
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Headers and contents begin at multiples of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A busybox shell, or a command, as `/init` of it says.
pub fn shell() -> Result<PathBuf, TestkitError> {
    Initramfs::with_busybox()?.store("shell")
}

/// The same with the torture programs as `/bin/torture` and `/bin/torture32`.
pub fn with_torture() -> Result<PathBuf, TestkitError> {
    let mut archive = Initramfs::with_busybox()?;
    archive.file_from(&torture::program()?, "bin/torture")?;
    archive.file_from(&torture::program_32()?, "bin/torture32")?;
    archive.store("torture")
}

/// The same with the long day's work as `/bin/soak.sh`.
pub fn with_soak() -> Result<PathBuf, TestkitError> {
    let mut archive = Initramfs::with_busybox()?;
    archive.file_from(&torture::program()?, "bin/torture")?;
    archive.file_from(&torture::program_32()?, "bin/torture32")?;
    archive.file("bin/soak.sh", 0o755, SOAK.as_bytes());
    archive.store("soak")
}

/// A busybox shell with `/lib/pvpanic.ko` and `/lib/pvpanic-mmio.ko` of a kernel that
/// keeps its modules uncompressed. The latter is the driver for the ISA device.
pub fn with_pvpanic(kernel: Kernel) -> Result<PathBuf, TestkitError> {
    let drivers = kernel.modules()?.join("kernel/drivers/misc/pvpanic");
    let mut archive = Initramfs::with_busybox()?;
    archive.directory("lib");
    for module in ["pvpanic.ko", "pvpanic-mmio.ko"] {
        archive.file_from(&drivers.join(module), &format!("lib/{module}"))?;
    }
    archive.store(&format!("pvpanic-{}", kernel.name()))
}

/// The same for a kernel whose virtio drivers are modules, which `/init` loads.
pub fn with_virtio(kernel: Kernel) -> Result<PathBuf, TestkitError> {
    virtio_system(kernel)?.store(&format!("virtio-{}", kernel.name()))
}

/// The same with the host's iperf3.
pub fn with_iperf3(kernel: Kernel) -> Result<PathBuf, TestkitError> {
    let mut archive = virtio_system(kernel)?;
    let program = Path::new("/usr/bin/iperf3");
    let mut files = programs::libraries(program)?;
    files.push(program.to_owned());
    let mut made = BTreeSet::from([Path::new("/").to_owned()]);
    for file in files {
        let mut parents: Vec<&Path> = file.ancestors().skip(1).collect();
        parents.reverse();
        for parent in parents {
            if made.insert(parent.to_owned()) {
                archive.directory(&parent.to_string_lossy()[1..]);
            }
        }
        archive.file_from(&file, &file.to_string_lossy()[1..])?;
    }
    archive.store(&format!("iperf3-{}", kernel.name()))
}

fn virtio_system(kernel: Kernel) -> Result<Initramfs, TestkitError> {
    let mut archive = Initramfs::with_busybox()?;
    archive.directory("modules");
    for (number, (name, content)) in
        modules::with_needs(kernel, &modules::VIRTIO)?.into_iter().enumerate()
    {
        archive.file(&format!("modules/{number:02}-{name}.ko"), 0o644, &content);
    }
    archive.file("etc/udhcpc.sh", 0o755, LEASE.as_bytes());
    archive.file_from(&programs::vsock()?, "bin/vsock")?;
    archive.file_from(&programs::files()?, "bin/files")?;
    archive.file_from(&programs::io()?, "bin/io")?;
    archive.file_from(&programs::net()?, "bin/net")?;
    Ok(archive)
}

/// Puts bytes into an asset file, atomically, unless it holds them already.
pub(crate) fn store(name: &str, bytes: &[u8]) -> Result<PathBuf, TestkitError> {
    let path = assets::directory().join(name);
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(TestkitError::file("making", parent))?;
    let _lock = assets::lock(&assets::directory())?;
    if fs::read(&path).is_ok_and(|standing| standing == bytes) {
        return Ok(path);
    }
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes).map_err(TestkitError::file("writing", &partial))?;
    fs::rename(&partial, &path).map_err(TestkitError::file("renaming", &partial))?;
    Ok(path)
}

#[cfg(test)]
mod tests;
