//! Kernels and programs from Debian, as packaged, fetched once.
//!
//! Each asset is the unpacked content of one package in a directory of its own.
//! It appears there by a rename, so that a directory that exists is complete, and
//! under a lock, so that tests that start together fetch it once. After the first
//! time nothing needs the network.

mod apt;
mod bzimage;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::FlockOperation;

pub(crate) use self::apt::source as apt_source;

use crate::TestkitError;
use crate::baremetal::scratch_file;
use crate::error::run;
use crate::initramfs::store;

/// A Debian kernel that tests boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Linux 6.1 for clouds: few drivers built in, quick to boot.
    Debian12Cloud,
    /// Linux 6.1 for any machine.
    Debian12,
    /// Linux 6.12 for clouds.
    Debian13Cloud,
}

impl Kernel {
    pub const ALL: [Kernel; 3] = [Kernel::Debian12Cloud, Kernel::Debian12, Kernel::Debian13Cloud];

    /// The name of its directory, and what test output calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::Debian12Cloud => "debian-12-cloud",
            Kernel::Debian12 => "debian-12",
            Kernel::Debian13Cloud => "debian-13-cloud",
        }
    }

    fn package(self) -> Package {
        match self {
            Kernel::Debian12Cloud => Package::meta("linux-image-cloud-amd64", "bookworm"),
            Kernel::Debian12 => Package::meta("linux-image-amd64", "bookworm"),
            Kernel::Debian13Cloud => Package::meta("linux-image-cloud-amd64", "trixie"),
        }
    }

    /// The unpacked package, fetched if it is not there yet.
    pub fn root(self) -> Result<PathBuf, TestkitError> {
        ensure(&format!("kernels/{}", self.name()), self.package())
    }

    /// The bzImage.
    pub fn image(self) -> Result<PathBuf, TestkitError> {
        let boot = self.root()?.join("boot");
        only_entry(&boot, |name| name.starts_with("vmlinuz-"))
    }

    /// The ELF file that is packed into [`Kernel::Debian12Cloud`]'s bzImage. It boots
    /// without unpacking itself, which is most of the work up to its first line.
    pub fn unpacked_cloud() -> Result<PathBuf, TestkitError> {
        let image = Kernel::Debian12Cloud.image()?;
        let read = |path: &Path| fs::read(path).map_err(TestkitError::file("reading", path));
        let bytes = read(&image)?;
        let payload = bzimage::lz4_payload(&bytes).ok_or_else(|| {
            let reason = std::io::Error::other("it holds no LZ4-compressed kernel");
            TestkitError::file("unpacking", &image)(reason)
        })?;
        let (packed, unpacked) = (scratch_file()?, scratch_file()?);
        fs::write(packed.path(), payload).map_err(TestkitError::file("writing", packed.path()))?;
        let mut lz4 = Command::new("lz4");
        lz4.args(["--decompress", "--force", "--quiet"]).arg(packed.path()).arg(unpacked.path());
        run(&mut lz4)?;
        store("kernels/debian-12-cloud-unpacked/vmlinux", &read(unpacked.path())?)
    }

    /// The directory of its modules: `lib/modules/VERSION`.
    pub fn modules(self) -> Result<PathBuf, TestkitError> {
        let root = self.root()?;
        let merged = root.join("usr/lib/modules");
        let modules = if merged.is_dir() { merged } else { root.join("lib/modules") };
        only_entry(&modules, |_| true)
    }
}

/// The statically linked busybox that RAM disks are made of.
pub fn busybox() -> Result<PathBuf, TestkitError> {
    let package = Package { name: "busybox-static", suite: "bookworm", depends_on: false };
    Ok(ensure("programs/busybox", package)?.join("bin/busybox"))
}

/// Where assets are kept: `$GUISE_ASSETS`, or `assets` at the root of the sources.
pub fn directory() -> PathBuf {
    std::env::var_os("GUISE_ASSETS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets"), PathBuf::from)
}

/// A package to unpack.
#[derive(Clone, Copy)]
struct Package {
    name: &'static str,
    suite: &'static str,
    /// Take the package that this one depends on: metapackages hold nothing.
    depends_on: bool,
}

impl Package {
    fn meta(name: &'static str, suite: &'static str) -> Self {
        Package { name, suite, depends_on: true }
    }
}

fn ensure(name: &str, package: Package) -> Result<PathBuf, TestkitError> {
    let root = directory();
    let target = root.join(name);
    if target.is_dir() {
        return Ok(target);
    }
    let parent = target.parent().unwrap_or(&root).to_owned();
    fs::create_dir_all(&parent).map_err(TestkitError::file("making", &parent))?;
    let _lock = lock(&root)?;
    if target.is_dir() {
        return Ok(target);
    }
    let archive = apt::download(&root.join("apt"), package)?;
    let unpacked = target.with_extension("partial");
    match fs::remove_dir_all(&unpacked) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(TestkitError::file("removing", &unpacked)(error));
        }
        _ => {}
    }
    apt::unpack(&archive, &unpacked)?;
    fs::rename(&unpacked, &target).map_err(TestkitError::file("renaming", &unpacked))?;
    fs::remove_file(&archive).map_err(TestkitError::file("removing", &archive))?;
    Ok(target)
}

/// Held until it is dropped.
pub(crate) fn lock(root: &Path) -> Result<File, TestkitError> {
    lock_for(root, "")
}

/// The same for what takes long and needs nothing of the others while it is made.
pub(crate) fn lock_for(root: &Path, what: &str) -> Result<File, TestkitError> {
    let path = root.join(format!(".lock{what}"));
    fs::create_dir_all(root).map_err(TestkitError::file("making", root))?;
    let file = File::create(&path).map_err(TestkitError::file("creating", &path))?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)
        .map_err(|error| TestkitError::file("locking", &path)(error.into()))?;
    Ok(file)
}

fn only_entry(directory: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf, TestkitError> {
    let entries = fs::read_dir(directory).map_err(TestkitError::file("reading", directory))?;
    let mut found = entries
        .filter_map(Result::ok)
        .filter(|entry| wanted(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path());
    found.next().ok_or_else(|| {
        TestkitError::file("looking for a file in", directory)(std::io::ErrorKind::NotFound.into())
    })
}
