//! What a disk boots from: the kernel, the initial RAM disk and the command line of the Linux
//! that is installed on it.
//!
//! There is no firmware that would run a boot loader. The newest kernel in the ext4 file
//! systems of the disk (in `/boot`, or at the top where that is a file system of its own) is
//! read out of them, with the words that GRUB would give it where GRUB is configured, and else
//! with the file system that has an `/sbin/init` as its root.
//!
//! All of it is what a guest wrote: sizes have a bound, and what is not understood is passed by.

use std::cmp::Ordering;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ext4_view::{Ext4, Ext4Error, Ext4Read};
use guise_disk::graph::Node;
use guise_disk::partitions::partitions;

/// No kernel and no initial RAM disk is larger.
const LARGEST: u64 = 512 << 20;
/// No configuration of GRUB is.
const LARGEST_CONFIGURATION: u64 = 1 << 20;
/// Of a boot directory so many entries are looked at.
const MOST_ENTRIES: usize = 4096;
const KERNEL: &str = "vmlinuz-";
/// Where the guest finds its console; the last one is its `/dev/console`.
const CONSOLE: &str = "console=ttyS0";

/// What boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootable {
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    pub command_line: String,
}

#[derive(Debug, thiserror::Error)]
pub enum BootableError {
    #[error(
        "no ext4 file system on it has a Linux kernel (vmlinuz-VERSION) in /boot, and nothing \
         else is booted yet: install one, or run the image with --as microvm"
    )]
    NoKernel,
    #[error("its kernel {0} is there, but no file system with an /sbin/init")]
    NoRoot(String),
    #[error("{file} on it is larger than {} MiB", limit >> 20)]
    TooLarge { file: String, limit: u64 },
    #[error("read {file} on it: {source}")]
    Unreadable { file: String, source: Ext4Error },
    #[error(transparent)]
    Disk(#[from] guise_disk::Error),
    #[error("keep its kernel: {0}")]
    Keep(#[from] io::Error),
}

/// A stretch of a disk, as the reader of a file system wants it.
struct Stretch {
    disk: Arc<dyn Node>,
    start: u64,
    length: u64,
}

impl Ext4Read for Stretch {
    fn read(
        &mut self,
        at: u64,
        bytes: &mut [u8],
    ) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        let ends = at.checked_add(bytes.len() as u64).filter(|end| *end <= self.length);
        ends.ok_or("it leads outside of its partition")?;
        Ok(self.disk.read(self.start + at, bytes)?)
    }
}

/// A file system of the disk.
struct Volume {
    files: Ext4,
    /// As the kernel counts partitions; none is the whole disk.
    number: Option<u32>,
}

/// A kernel in a volume.
struct Kernel<'v> {
    volume: &'v Volume,
    /// `/boot`, or nothing for the top.
    folder: &'static str,
    version: String,
}

/// Finds what boots, and puts it into a folder.
pub fn extract(disk: &Arc<dyn Node>, folder: &Path) -> Result<Bootable, BootableError> {
    let volumes = volumes(disk)?;
    let kernel = kernel(&volumes).ok_or(BootableError::NoKernel)?;
    let file = kernel.volume.read(&kernel.path(), LARGEST)?;
    let place = folder.join("vmlinuz");
    std::fs::write(&place, file)?;
    let initrd = match kernel.initrd() {
        Some(path) => {
            let place = folder.join("initrd");
            std::fs::write(&place, kernel.volume.read(&path, LARGEST)?)?;
            Some(place)
        }
        None => None,
    };
    let words = match kernel.configured() {
        Some(words) => words,
        None => kernel.root(&volumes, initrd.is_some())?,
    };
    Ok(Bootable { kernel: place, initrd, command_line: format!("{words} {CONSOLE}") })
}

fn volumes(disk: &Arc<dyn Node>) -> Result<Vec<Volume>, BootableError> {
    let stretches: Vec<(Option<u32>, u64, u64)> = match partitions(&**disk)? {
        Some(table) => {
            let of = |part: &guise_disk::partitions::Partition| {
                (Some(part.number), part.start, part.length)
            };
            table.partitions.iter().map(of).collect()
        }
        None => vec![(None, 0, disk.size())],
    };
    let open = |(number, start, length)| {
        let stretch = Stretch { disk: disk.clone(), start, length };
        // Whatever else is there is not looked at.
        let files = Ext4::load(Box::new(stretch)).ok()?;
        Some(Volume { files, number })
    };
    Ok(stretches.into_iter().filter_map(open).collect())
}

/// The newest of all.
fn kernel(volumes: &[Volume]) -> Option<Kernel<'_>> {
    let mut newest: Option<Kernel<'_>> = None;
    for volume in volumes {
        for folder in ["/boot", ""] {
            for version in volume.versions(folder) {
                let newer = newest
                    .as_ref()
                    .is_none_or(|than| compare(&version, &than.version) == Ordering::Greater);
                if newer {
                    newest = Some(Kernel { volume, folder, version });
                }
            }
        }
    }
    newest
}

impl Volume {
    fn versions(&self, folder: &str) -> Vec<String> {
        let top = if folder.is_empty() { "/" } else { folder };
        let Ok(entries) = self.files.read_dir(top) else { return Vec::new() };
        let version = |entry: Result<ext4_view::DirEntry, Ext4Error>| {
            let entry = entry.ok()?;
            Some(entry.file_name().as_str().ok()?.strip_prefix(KERNEL)?.to_owned())
        };
        entries.take(MOST_ENTRIES).filter_map(version).collect()
    }

    fn has(&self, path: &str) -> bool {
        self.files.exists(path).unwrap_or(false)
    }

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, BootableError> {
        let unreadable = |source| BootableError::Unreadable { file: path.to_owned(), source };
        if self.files.metadata(path).map_err(unreadable)?.len() > limit {
            return Err(BootableError::TooLarge { file: path.to_owned(), limit });
        }
        self.files.read(path).map_err(unreadable)
    }
}

impl Kernel<'_> {
    fn path(&self) -> String {
        format!("{}/{KERNEL}{}", self.folder, self.version)
    }

    fn initrd(&self) -> Option<String> {
        let (folder, version) = (self.folder, &self.version);
        let names = [
            format!("{folder}/initrd.img-{version}"),
            format!("{folder}/initramfs-{version}.img"),
            format!("{folder}/initrd-{version}"),
        ];
        names.into_iter().find(|name| self.volume.has(name))
    }

    /// What GRUB would say to it.
    fn configured(&self) -> Option<String> {
        let path = ["grub/grub.cfg", "grub2/grub.cfg"]
            .map(|name| format!("{}/{name}", self.folder))
            .into_iter()
            .find(|path| self.volume.has(path))?;
        let text = self.volume.read(&path, LARGEST_CONFIGURATION).ok()?;
        words_for(&String::from_utf8_lossy(&text), &format!("{KERNEL}{}", self.version))
    }

    /// The file system that has the first program.
    fn root(&self, volumes: &[Volume], has_initrd: bool) -> Result<String, BootableError> {
        const FIRST: [&str; 3] = ["/sbin/init", "/usr/sbin/init", "/usr/lib/systemd/systemd"];
        let root = volumes
            .iter()
            .find(|volume| FIRST.iter().any(|path| volume.has(path)))
            .ok_or_else(|| BootableError::NoRoot(self.version.clone()))?;
        Ok(match (has_initrd, root.number) {
            (true, _) => format!("root=UUID={} rw", root.files.uuid()),
            // A bare kernel knows partitions by their numbers only.
            (false, Some(number)) => format!("root=/dev/vda{number} rw"),
            (false, None) => "root=/dev/vda rw".to_owned(),
        })
    }
}

/// The words that a configuration of GRUB has for a kernel, but for its console and for what
/// only GRUB could fill in.
fn words_for(configuration: &str, kernel: &str) -> Option<String> {
    let words = configuration.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let command = words.next()?;
        let is_it = matches!(command, "linux" | "linux16" | "linuxefi")
            && words.next()?.rsplit('/').next() == Some(kernel);
        is_it.then(|| words.collect::<Vec<_>>())
    })?;
    if !words.iter().any(|word| word.starts_with("root=") && !word.contains('$')) {
        return None;
    }
    let kept =
        words.into_iter().filter(|word| !word.starts_with("console=") && !word.contains('$'));
    Some(kept.collect::<Vec<_>>().join(" "))
}

/// Compares versions: numbers as numbers, the rest as text.
fn compare(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (one, other);
    while !one.is_empty() && !other.is_empty() {
        let (ours, theirs) = (run(&mut one), run(&mut other));
        let order = match (ours.parse::<u64>(), theirs.parse::<u64>()) {
            (Ok(ours), Ok(theirs)) => ours.cmp(&theirs),
            _ => ours.cmp(theirs),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    one.len().cmp(&other.len())
}

/// Takes digits, or what is none, from the front.
fn run<'t>(text: &mut &'t str) -> &'t str {
    let digits = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len());
    let (run, rest) = text.split_at(end);
    *text = rest;
    run
}

#[cfg(test)]
mod tests;
