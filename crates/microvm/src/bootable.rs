//! What a disk boots from: the kernel, the initial RAM disk and the command line of the Linux
//! that is installed on it.
//!
//! There is no firmware that would run a boot loader. The newest kernel in the ext4 file
//! systems of the disk (in `/boot`, or at the top where that is a file system of its own) is
//! read out of them, with the words that GRUB would give it where GRUB is configured, and else
//! with the file system that has an `/sbin/init` as its root.
//!
//! All of it is what a guest wrote: sizes have a bound, and what is not understood is passed by.

mod agent;
mod contents;
pub mod image;

use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use guise_disk::bytes::{le16, le32};
use guise_disk::formats::raw::Raw;
use guise_disk::graph::{Image, Node};
use guise_disk::partitions::partitions;
use guise_disk::storage::{MemoryStorage, SharedStorage};

use crate::erofs::Erofs;
use crate::kernel::KernelError;
use crate::volume::{Inode, Stretch, Volume, VolumeError};

/// No kernel and no initial RAM disk is larger.
const LARGEST: u64 = 512 << 20;
/// No configuration of GRUB is.
const LARGEST_CONFIGURATION: u64 = 1 << 20;
/// So many partitions are looked at.
const MOST_PARTITIONS: usize = 128;
/// About so large are disks that are made of pieces.
const LARGEST_PROBE: usize = 8 << 20;
const KERNEL: &str = "vmlinuz-";
const LONGEST_VERSION: usize = 128;
/// What a system begins with.
const FIRST: [&str; 3] = ["/sbin/init", "/usr/sbin/init", "/usr/lib/systemd/systemd"];
/// Where the guest finds its console; the last one is its `/dev/console`.
const CONSOLE: &str = "console=ttyS0";

/// What boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootable {
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    pub command_line: String,
    /// Why Guise's agent does not come along, where it does not.
    pub no_agent: Option<&'static str>,
}

#[derive(Debug, thiserror::Error)]
pub enum BootableError {
    #[error(
        "there is no Linux to boot (vmlinuz-VERSION in /boot of an ext4 file system) but {0}; \
         install a kernel on it, or give it one with guise boot --kernel FILE --disk FILE"
    )]
    NoKernel(String),
    #[error(
        "its kernel {0} is there, but no ext4 file system with an /sbin/init, which would be \
         its root; GRUB's configuration on it may name another"
    )]
    NoRoot(String),
    #[error("read {file} on it: {source}")]
    Unreadable { file: String, source: VolumeError },
    #[error(
        "it has {0}; guise image pull debian:12 --include linux-image-cloud-amd64,systemd-sysv \
         --as NAME makes an image that boots by itself, --as microvm gives this one a kernel"
    )]
    NoSystem(String),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Disk(#[from] guise_disk::Error),
    #[error("keep its kernel: {0}")]
    Keep(#[from] io::Error),
}

/// What was found to boot; it is still on the disk.
pub struct Found {
    pub kernel: OnDisk,
    pub initrd: Option<OnDisk>,
    pub command_line: String,
}

/// A file of the disk.
pub struct OnDisk {
    volume: Rc<Volume>,
    inode: Inode,
    path: String,
}

impl OnDisk {
    /// Writes what is in it somewhere else.
    pub fn copy(&self, to: &mut dyn Write) -> Result<(), BootableError> {
        let copied = self.volume.copy(&self.inode, &self.path, LARGEST, to);
        copied.map_err(|source| BootableError::Unreadable { file: self.path.clone(), source })
    }

    fn copy_to(&self, place: PathBuf) -> Result<PathBuf, BootableError> {
        self.copy(&mut File::create(&place)?)?;
        Ok(place)
    }
}

/// Finds what boots, and puts it into a folder. Before the initial RAM disk goes the agent, which
/// the host knows again by a secret.
pub fn extract(
    disk: &Arc<dyn Node>,
    folder: &Path,
    secret: &[u8],
) -> Result<Bootable, BootableError> {
    let found = find(disk)?;
    let kernel = found.kernel.copy_to(folder.join("vmlinuz"))?;
    let plain = |initrd, command_line, why| {
        Ok(Bootable { kernel: kernel.clone(), initrd, command_line, no_agent: Some(why) })
    };
    let Some(file) = found.initrd else {
        return plain(None, found.command_line, "its disk has no initial RAM disk");
    };
    let place = folder.join("initrd");
    let (words, first) = agent::with_it(&found.command_line);
    let archive = agent::archive(&first, secret);
    let mut initrd =
        File::options().read(true).write(true).create(true).truncate(true).open(&place)?;
    initrd.write_all(&archive)?;
    file.copy(&mut initrd)?;
    let mut head = [0; agent::HEAD];
    let length = initrd.read_at(&mut head, archive.len() as u64)?;
    if !agent::may_stand_before(&head[..length]) {
        let place = file.copy_to(place)?;
        let why = "its initial RAM disk is of a kind that nothing can be added to";
        return plain(Some(place), found.command_line, why);
    }
    Ok(Bootable { kernel, initrd: Some(place), command_line: words, no_agent: None })
}

/// Reads everything that boots of a disk that was written in pieces, each with a place (of four
/// bytes), a length (of two) and contents, and that ends with the last of them: what the fuzz
/// target and the regression test over its corpus enter by.
pub fn probe(mut pieces: &[u8]) -> Result<Found, BootableError> {
    let mut bytes = Vec::new();
    while let Some((head, rest)) = pieces.split_at_checked(6) {
        let at = le32(head, 0) as usize % LARGEST_PROBE;
        let length = usize::from(le16(head, 4)).min(rest.len());
        let (piece, rest) = rest.split_at(length);
        if bytes.len() < at + length {
            bytes.resize(at + length, 0);
        }
        bytes[at..at + length].copy_from_slice(piece);
        pieces = rest;
    }
    let disk = disk_of(&bytes);
    // Where it is an image, that is read as well.
    if let Ok(Some(files)) = Erofs::open(disk.clone()) {
        image::probe(files)?;
    }
    let found = find(&disk)?;
    for file in std::iter::once(&found.kernel).chain(&found.initrd) {
        file.copy(&mut io::sink())?;
    }
    Ok(found)
}

/// A disk of bytes.
pub(crate) fn disk_of(bytes: &[u8]) -> Arc<dyn Node> {
    let storage: SharedStorage = Arc::new(MemoryStorage::from_bytes("bytes", bytes));
    let raw = Raw::open(storage).expect("bytes are a disk");
    Arc::new(Image::new(Box::new(raw), None, Path::new("bytes"), true))
}

/// Finds what boots.
pub fn find(disk: &Arc<dyn Node>) -> Result<Found, BootableError> {
    let parts = parts(disk)?;
    let Some(kernel) = newest(&parts) else {
        return Err(BootableError::NoKernel(told(&parts)));
    };
    let initrd = kernel.initrd();
    let words = match kernel.configured() {
        Some(words) => words,
        None => kernel.root(&parts, initrd.is_some())?,
    };
    let command_line = format!("{words} {CONSOLE}");
    Ok(Found { kernel: kernel.file, initrd, command_line })
}

/// A part of the disk.
struct Part {
    /// As the kernel counts partitions; none is the whole disk.
    number: Option<u32>,
    /// The file system that is read, or what there is instead.
    volume: Result<Rc<Volume>, String>,
}

fn parts(disk: &Arc<dyn Node>) -> Result<Vec<Part>, BootableError> {
    let whole = Stretch::whole(disk.clone());
    let table = partitions(&**disk)?.filter(|table| !table.partitions.is_empty());
    let stretches: Vec<(Option<u32>, Stretch)> = match table {
        Some(table) => table
            .partitions
            .iter()
            .take(MOST_PARTITIONS)
            .map(|part| (Some(part.number), whole.part(part.start, part.length)))
            .collect(),
        None => vec![(None, whole)],
    };
    let open = |(number, stretch): (Option<u32>, Stretch)| {
        let volume = match Volume::open(stretch.clone()) {
            Ok(Some(volume)) => Ok(Rc::new(volume)),
            Ok(None) => Err(contents::name(&stretch).to_owned()),
            Err(error) => Err(format!("ext4, but {error}")),
        };
        Part { number, volume }
    };
    Ok(stretches.into_iter().map(open).collect())
}

/// What is on a disk that has no kernel.
fn told(parts: &[Part]) -> String {
    let tell = |part: &Part| {
        let what = match &part.volume {
            Ok(_) => "ext4 without a kernel",
            Err(what) => what,
        };
        match part.number {
            Some(number) => format!("{what} in partition {number}"),
            None => what.to_owned(),
        }
    };
    parts.iter().map(tell).collect::<Vec<_>>().join(", ")
}

/// A kernel in a volume.
struct Kernel {
    file: OnDisk,
    /// `/boot`, or nothing for the top.
    folder: &'static str,
    version: String,
}

/// The newest of all.
fn newest(parts: &[Part]) -> Option<Kernel> {
    let mut newest: Option<Kernel> = None;
    for volume in parts.iter().filter_map(|part| part.volume.as_ref().ok()) {
        for folder in ["/boot", ""] {
            for version in versions(volume, folder) {
                let newer = newest
                    .as_ref()
                    .is_none_or(|than| compare(&version, &than.version) == Ordering::Greater);
                if newer && let Some(file) = file(volume, format!("{folder}/{KERNEL}{version}")) {
                    newest = Some(Kernel { file, folder, version });
                }
            }
        }
    }
    newest
}

fn versions(volume: &Volume, folder: &str) -> Vec<String> {
    // What cannot be read has none.
    let names = volume.names(if folder.is_empty() { "/" } else { folder }).unwrap_or_default();
    let version = |name: Vec<u8>| {
        let name = String::from_utf8(name).ok()?;
        let version = name.strip_prefix(KERNEL)?;
        is_version(version).then(|| version.to_owned())
    };
    names.into_iter().filter_map(version).collect()
}

/// Whether it can be shown, and looked up.
fn is_version(text: &str) -> bool {
    (1..=LONGEST_VERSION).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
}

/// A file of a volume, if it is there.
fn file(volume: &Rc<Volume>, path: String) -> Option<OnDisk> {
    let inode = volume.find(&path).ok()??;
    inode.is_file().then(|| OnDisk { volume: volume.clone(), inode, path })
}

impl Kernel {
    fn beside(&self, name: &str) -> Option<OnDisk> {
        file(&self.file.volume, format!("{}/{name}", self.folder))
    }

    fn initrd(&self) -> Option<OnDisk> {
        let version = &self.version;
        let names = [
            format!("initrd.img-{version}"),
            format!("initramfs-{version}.img"),
            format!("initrd-{version}"),
        ];
        names.into_iter().find_map(|name| self.beside(&name))
    }

    /// What GRUB would say to it.
    fn configured(&self) -> Option<String> {
        let file = ["grub/grub.cfg", "grub2/grub.cfg"].iter().find_map(|name| self.beside(name))?;
        let text = file.volume.read(&file.inode, &file.path, LARGEST_CONFIGURATION).ok()?;
        words_for(&String::from_utf8_lossy(&text), &format!("{KERNEL}{}", self.version))
    }

    /// The file system that has the first program.
    fn root(&self, parts: &[Part], has_initrd: bool) -> Result<String, BootableError> {
        let is_root = |volume: &Rc<Volume>| {
            FIRST.iter().any(|path| file(volume, (*path).to_owned()).is_some())
        };
        let root = parts.iter().find_map(|part| {
            let volume = part.volume.as_ref().ok().filter(|volume| is_root(volume))?;
            Some((part.number, volume))
        });
        Ok(match (has_initrd, root) {
            (_, None) => return Err(BootableError::NoRoot(self.version.clone())),
            (true, Some((_, volume))) => format!("root=UUID={} rw", volume.uuid()),
            // A bare kernel knows partitions by their numbers only.
            (false, Some((Some(number), _))) => format!("root=/dev/vda{number} rw"),
            (false, Some((None, _))) => "root=/dev/vda rw".to_owned(),
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
