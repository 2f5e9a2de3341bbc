//! `COPY` and `ADD`, once it is known what is copied.

use std::fs::File;
use std::io::Read;

use guise_container::rootfs::path::{clean, components};
use guise_image::tar::{Entry, Kind};
use guise_image::{LayerReader, Limits};
use rustix::fs::FileType;

use crate::error::{Error, IoContext, Result};
use crate::place::{Attributes, Placer};
use crate::tree::{Selected, shown};

/// A file whose contents are in the Containerfile.
pub struct Inline {
    pub name: String,
    pub text: String,
}

/// What to copy, where to.
pub struct Copy<'a> {
    pub selected: &'a [Selected],
    pub inline: &'a [Inline],
    /// In the image, absolute.
    pub destination: &'a str,
    /// The destination is a directory whatever is there: it ends with `/`.
    pub into: bool,
    /// Archives are unpacked rather than copied.
    pub unpacks: bool,
    pub limits: Limits,
}

impl Copy<'_> {
    pub fn run(&self, placer: &Placer<'_>) -> Result<()> {
        let into = self.into
            || self.selected.len() + self.inline.len() > 1
            || placer.is_directory(self.destination);
        if self.into {
            placer.directory(self.destination)?;
        }
        let target = |name: &str| {
            if into {
                clean(&format!("{}/{name}", self.destination))
            } else {
                self.destination.to_owned()
            }
        };
        for one in self.selected {
            if one.is_directory() {
                placer.directory(self.destination)?;
                self.tree(placer, one)?;
            } else if self.unpacks && self.unpack(placer, one)? {
                continue;
            } else {
                let file = reader(one)?;
                placer.file(&target(&one.name), file, Attributes::of(&one.stat))?;
            }
        }
        for inline in self.inline {
            let attributes = Attributes { mode: 0o644, uid: 0, gid: 0, seconds: 0, nanoseconds: 0 };
            placer.file(&target(&inline.name), inline.text.as_bytes(), attributes)?;
        }
        Ok(())
    }

    fn tree(&self, placer: &Placer<'_>, one: &Selected) -> Result<()> {
        for item in &one.items {
            let name = std::str::from_utf8(&item.path).map_err(|_| {
                Error::refused(format!("{}: its name is not UTF-8", shown(&item.path).display()))
            })?;
            let path = clean(&format!("{}/{name}", self.destination));
            let attributes = Attributes::of(&item.stat);
            match FileType::from_raw_mode(item.stat.st_mode) {
                FileType::Directory => placer.dir(&path, attributes)?,
                FileType::Symlink => placer.link(&path, &one.link(item)?, attributes)?,
                _ => placer.file(&path, File::from(one.open(item)?), attributes)?,
            }
        }
        // Writing into directories has changed their times.
        for item in one.items.iter().rev() {
            if FileType::from_raw_mode(item.stat.st_mode) == FileType::Directory
                && let Ok(name) = std::str::from_utf8(&item.path)
            {
                let path = clean(&format!("{}/{name}", self.destination));
                placer.dir(&path, Attributes::of(&item.stat))?;
            }
        }
        Ok(())
    }

    /// Unpacks an archive; says whether it was one.
    fn unpack(&self, placer: &Placer<'_>, one: &Selected) -> Result<bool> {
        let mut start = Vec::new();
        reader(one)?.take(512).read_to_end(&mut start).at("reading", &one.name)?;
        let packed =
            start.starts_with(&[0x1f, 0x8b]) || start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
        let plain = start.get(257..262) == Some(b"ustar");
        if start.starts_with(b"\xfd7zXZ\0") || start.starts_with(b"BZh") {
            return Err(Error::refused(format!(
                "{} is compressed with xz or bzip2, which ADD does not unpack (COPY copies it)",
                one.name
            )));
        }
        if !packed && !plain {
            return Ok(false);
        }
        let bad = |e: &dyn std::fmt::Display| Error::refused(format!("{}: {e}", one.name));
        let mut archive = LayerReader::new(reader(one)?, self.limits).map_err(|e| bad(&e))?;
        let mut first = true;
        loop {
            match archive.next_entry() {
                Ok(Some(entry)) => self.entry(placer, &entry, &mut archive)?,
                Ok(None) if first => return Ok(false),
                Ok(None) => return Ok(true),
                // Compressed, but no archive.
                Err(_) if first => return Ok(false),
                Err(e) => return Err(bad(&e)),
            }
            first = false;
        }
    }

    fn entry(
        &self,
        placer: &Placer<'_>,
        entry: &Entry,
        archive: &mut LayerReader<File>,
    ) -> Result<()> {
        let bad = |path: &[u8], why: &str| {
            Error::refused(format!("{} in the archive: {why}", shown(path).display()))
        };
        let inside = |path: &[u8]| -> Result<String> {
            let text = std::str::from_utf8(path).map_err(|_| bad(path, "its name is not UTF-8"))?;
            if text.split('/').any(|part| part == "..") {
                return Err(bad(path, "its name leads outside"));
            }
            Ok(clean(&format!("{}/{text}", self.destination)))
        };
        let path = inside(&entry.path)?;
        if components(&path).count() == components(self.destination).count() {
            return placer.directory(self.destination).map(drop);
        }
        let attributes = Attributes {
            mode: entry.mode & 0o7777,
            uid: entry.uid,
            gid: entry.gid,
            seconds: entry.mtime.seconds,
            nanoseconds: entry.mtime.nanoseconds.into(),
        };
        match &entry.kind {
            Kind::Directory => placer.dir(&path, attributes),
            Kind::File => placer.file(&path, Data(archive), attributes),
            Kind::Symlink(target) => placer.link(&path, target, attributes),
            Kind::Hardlink(first) => placer.hard_link(&path, &inside(first)?),
            Kind::Character(_) | Kind::Block(_) | Kind::Fifo => {
                Err(bad(&entry.path, "it is a device or a pipe"))
            }
        }
    }
}

fn reader(one: &Selected) -> Result<File> {
    let file = File::from(one.file.try_clone().at("reading", &one.name)?);
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).at("reading", &one.name)?;
    Ok(file)
}

/// The data of an archive's current entry.
struct Data<'a>(&'a mut LayerReader<File>);

impl Read for Data<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer).map_err(|e| std::io::Error::other(e.to_string()))
    }
}
