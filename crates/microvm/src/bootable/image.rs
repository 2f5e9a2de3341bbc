//! What an image boots from that holds a whole system: its own kernel, and an initial RAM disk
//! with the agent and with those of its own modules that lead to its root.
//!
//! The image is a file system that is never written (EROFS), and what the guest writes is in
//! another (ext4), which becomes one with it inside. So there are two places in which a kernel
//! can be: one that the guest has installed is the next to boot if it is the newest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use guise_agent::protocol::{MODULES_OF_ALL, OwnRoot};
use guise_disk::graph::Node;

use super::{Bootable, BootableError, CONSOLE, FIRST, KERNEL, agent, compare, is_version};
use crate::cpio::Archive;
use crate::erofs::Erofs;
use crate::files::{Below, Kind, Source};
use crate::kernel::{KernelError, unpack};
use crate::modules::{self, Modules, Tree};
use crate::volume::{Stretch, Volume, VolumeError};

/// Where the agent puts what is written (`agent/guest/root`).
const WRITTEN: &str = "/data";
/// No kernel is larger as it is packed.
const LARGEST_KERNEL: u64 = 128 << 20;
/// Where modules are, and with some distributions the kernel among them.
const MODULES: [&str; 2] = ["/usr/lib/modules", "/lib/modules"];
/// What leads to the root.
const NEEDED: [&str; 5] = ["virtio_pci", "virtio_blk", "erofs", "overlay", "ext4"];
const DRIVER: &str = "vmw_vsock_virtio_transport";
/// What a system finds by itself, if it looks for the drivers of what is there: networks, folders
/// of the host, the power button, the disk that says who it is. One that does not has them too.
const WANTED: [&str; 9] = [
    DRIVER,
    "virtio_net",
    "virtiofs",
    "button",
    "evdev",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "nls_utf8",
];

/// A kernel, and where it is.
struct Kernel<'s> {
    source: &'s dyn Source,
    path: String,
    version: String,
}

/// Finds what boots of an image and of what was written over it, and puts it into a folder.
pub fn extract(
    image: &Arc<dyn Node>,
    written: &Arc<dyn Node>,
    own: &OwnRoot,
    folder: &Path,
    secret: &[u8],
) -> Result<Bootable, BootableError> {
    let unreadable = |source| BootableError::Unreadable { file: "the image".to_owned(), source };
    let lower = Erofs::open(image.clone()).map_err(unreadable)?;
    let lower = lower.ok_or_else(|| unreadable(VolumeError::Damaged("it is no EROFS")))?;
    let lower = Below { files: lower, top: "" };
    // Where it cannot be read the guest will find out why.
    let upper = Volume::open(Stretch::whole(written.clone())).ok().flatten();
    let upper = upper.map(|files| Below { files, top: WRITTEN });
    let sources: Vec<&dyn Source> =
        upper.iter().map(|upper| upper as &dyn Source).chain([&lower as &dyn Source]).collect();
    let System { kernel, drivers, first } = System::find(&sources)?;
    let mut archive = agent::with_root(first, secret, own);
    let reaches = drivers.pack(&mut archive)?;
    let place = folder.join("initrd");
    fs::write(&place, archive.finish())?;
    Ok(Bootable {
        kernel: kernel.put(folder)?,
        initrd: Some(place),
        command_line: agent::with_it(&format!("rw {CONSOLE}")).0,
        no_agent: (!reaches).then_some("its kernel has no driver for virtio sockets"),
    })
}

/// Reads everything that boots of an image, as [`super::probe`] does of a disk.
pub fn probe(image: Erofs) -> Result<(), BootableError> {
    let image = Below { files: image, top: "" };
    let system = System::find(&[&image])?;
    system.kernel.read()?;
    system.drivers.pack(&mut Archive::default()).map(drop)
}

/// What an image boots.
struct System<'s> {
    kernel: Kernel<'s>,
    drivers: Drivers<'s>,
    first: &'static str,
}

impl<'s> System<'s> {
    /// The first source is above the others.
    fn find(sources: &[&'s dyn Source]) -> Result<Self, BootableError> {
        let kernel = newest(sources);
        let first = FIRST.into_iter().find(|path| sources.iter().any(|files| files.is_file(path)));
        match (kernel, first) {
            (Some(kernel), Some(first)) => {
                Ok(System { drivers: Drivers::of(&kernel, sources)?, kernel, first })
            }
            (kernel, first) => {
                Err(BootableError::NoSystem(lacks(kernel.is_some(), first.is_some())))
            }
        }
    }
}

fn lacks(has_kernel: bool, has_first: bool) -> String {
    let kernel = (!has_kernel).then_some("no kernel (/boot/vmlinuz-VERSION)");
    let first = (!has_first).then_some("no system that begins by itself (/sbin/init)");
    kernel.into_iter().chain(first).collect::<Vec<_>>().join(" and ")
}

/// The newest of all; of the same version, that of the first source.
fn newest<'s>(sources: &[&'s dyn Source]) -> Option<Kernel<'s>> {
    let mut newest: Option<Kernel<'s>> = None;
    for source in sources {
        for (version, path) in kernels(*source) {
            let newer = newest.as_ref().is_none_or(|than| compare(&version, &than.version).is_gt());
            if newer && source.is_file(&path) {
                newest = Some(Kernel { source: *source, path, version });
            }
        }
    }
    newest
}

/// Where kernels may be, by their versions.
fn kernels(source: &dyn Source) -> Vec<(String, String)> {
    // What cannot be read has none.
    let list = |folder: &str| source.list(folder).unwrap_or_default();
    let in_boot = list("/boot").into_iter().filter_map(|(name, _)| {
        let version = name.strip_prefix(KERNEL).filter(|version| is_version(version))?;
        Some((version.to_owned(), format!("/boot/{name}")))
    });
    let among_modules = MODULES.iter().flat_map(|folder| {
        let versions = list(folder).into_iter().map(|(version, _)| version);
        let versions = versions.filter(|version| is_version(version));
        versions.map(move |version| {
            let path = format!("{folder}/{version}/vmlinuz");
            (version, path)
        })
    });
    in_boot.chain(among_modules).collect()
}

impl Kernel<'_> {
    fn read(&self) -> Result<Vec<u8>, BootableError> {
        let unreadable = |source| BootableError::Unreadable { file: self.path.clone(), source };
        let gone = || unreadable(VolumeError::Damaged("it is not where it was"));
        self.source.read(&self.path, LARGEST_KERNEL).map_err(unreadable)?.ok_or_else(gone)
    }

    /// Unpacks it, as a guest would take longer for that.
    fn put(&self, folder: &Path) -> Result<PathBuf, BootableError> {
        let packed = self.read()?;
        let broken = |reason| KernelError::Unpack { path: PathBuf::from(&self.path), reason };
        let place = folder.join("vmlinuz");
        let unpacked = unpack(&packed).map_err(broken)?;
        fs::write(&place, unpacked.as_deref().unwrap_or(&packed))?;
        Ok(place)
    }
}

/// The modules of a kernel.
struct Drivers<'s> {
    source: &'s dyn Source,
    folder: String,
}

impl<'s> Drivers<'s> {
    /// They may be in the image although the kernel is not, or the other way round.
    fn of(kernel: &Kernel<'s>, sources: &[&'s dyn Source]) -> Result<Self, BootableError> {
        let version = &kernel.version;
        std::iter::once(kernel.source)
            .chain(sources.iter().copied())
            .flat_map(|source| MODULES.map(|place| (source, format!("{place}/{version}"))))
            .find(|(source, folder)| source.is_file(&format!("{folder}/modules.builtin")))
            .map(|(source, folder)| Drivers { source, folder })
            .ok_or_else(|| {
                let modules = format!("no modules of its kernel (/lib/modules/{version})");
                BootableError::NoSystem(modules)
            })
    }

    /// Puts those that are loaded before the system begins into an archive. Says whether the
    /// agent will reach the host.
    fn pack(&self, archive: &mut Archive) -> Result<bool, BootableError> {
        let mut modules = Modules::find(self)?.with_signatures();
        for name in NEEDED {
            modules.add(name)?;
        }
        let reaches = modules.know(DRIVER);
        for name in WANTED {
            if modules.know(name) {
                modules.add(name)?;
            }
        }
        archive.directory("modules");
        modules::pack(archive, MODULES_OF_ALL, modules.collected(), &mut Vec::new());
        Ok(reaches)
    }
}

impl Tree for Drivers<'_> {
    fn path(&self) -> PathBuf {
        PathBuf::from(&self.folder)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<(String, Kind)>> {
        let path = format!("{}/{folder}", self.folder);
        self.source.list(&path).map_err(io::Error::other)
    }

    fn read(&self, file: &str, limit: u64) -> io::Result<Vec<u8>> {
        let read = self.source.read(&format!("{}/{file}", self.folder), limit);
        read.map_err(io::Error::other)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

#[cfg(test)]
mod tests;
