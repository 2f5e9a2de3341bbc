//! What `COPY` reads: the build context, or another stage's files. Paths are
//! resolved within the tree, whatever links in it say.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use guise_container::rootfs::path::{RootDir, clean, components, open_host};
use guise_image::Digest;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::error::{Error, IoContext, Result};
use crate::ignore::Ignore;
use crate::pattern;

/// More files are not copied by one instruction.
const MOST_FILES: usize = 4_000_000;

pub struct Tree {
    root: RootDir,
    ignore: Ignore,
}

/// Something that a source named.
pub struct Selected {
    /// Its last component, for a copy into a directory.
    pub name: String,
    pub file: OwnedFd,
    pub stat: Stat,
    /// For a directory what is in it, parents before children.
    pub items: Vec<Item>,
}

/// Something in a selected directory.
pub struct Item {
    pub path: Vec<u8>,
    pub stat: Stat,
}

impl Selected {
    pub fn is_directory(&self) -> bool {
        FileType::from_raw_mode(self.stat.st_mode) == FileType::Directory
    }

    /// Opens an item, which may have become something else meanwhile.
    pub fn open(&self, item: &Item) -> Result<OwnedFd> {
        open_below(&self.file, &item.path, OFlags::RDONLY | OFlags::NONBLOCK)
    }

    /// Where a link leads.
    pub fn link(&self, item: &Item) -> Result<Vec<u8>> {
        let link = open_below(&self.file, &item.path, OFlags::PATH | OFlags::NOFOLLOW)?;
        Ok(rustix::fs::readlinkat(&link, c"", Vec::new())
            .at("reading", shown(&item.path))?
            .into_bytes())
    }
}

/// A path for messages.
pub fn shown(path: &[u8]) -> std::path::PathBuf {
    String::from_utf8_lossy(path).into_owned().into()
}

/// Opens a path below a directory, through no link but perhaps the last.
fn open_below(dir: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let path = if path.is_empty() { &b"."[..] } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    // A descriptor of the link itself is what O_PATH and O_NOFOLLOW ask for.
    let resolve = if flags.contains(OFlags::PATH) {
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS
    } else {
        resolve
    };
    rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
        .at("opening", shown(path))
}

impl Tree {
    /// The build context, without what its `.dockerignore` leaves out.
    pub fn context(path: &Path, containerfile: &Path) -> Result<Self> {
        let own = containerfile.with_file_name(format!(
            "{}.dockerignore",
            containerfile.file_name().unwrap_or_default().to_string_lossy()
        ));
        let mut rules = String::new();
        for candidate in [own, path.join(".containerignore"), path.join(".dockerignore")] {
            match std::fs::read_to_string(&candidate) {
                Ok(text) => {
                    rules = text;
                    break;
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(e).at("reading", candidate),
            }
        }
        Ok(Tree { root: open_tree(path)?, ignore: Ignore::parse(&rules) })
    }

    /// Another image's files.
    pub fn image(path: &Path) -> Result<Self> {
        Ok(Tree { root: open_tree(path)?, ignore: Ignore::default() })
    }

    /// What a source names: one thing, or with a pattern any number, sorted.
    pub fn select(&self, source: &str) -> Result<Vec<Selected>> {
        let mut found = Vec::new();
        let mut ignored = false;
        for path in self.matching(source)? {
            if !path.is_empty()
                && self.ignore.excludes(path.as_bytes())
                && !self.reaches_into(&path)
            {
                ignored = true;
                continue;
            }
            found.push(self.take(&path)?);
        }
        if found.is_empty() {
            Err(Error::NoSource { name: source.to_owned(), ignored })
        } else {
            Ok(found)
        }
    }

    /// Whether a directory that is left out may have things taken back.
    fn reaches_into(&self, path: &str) -> bool {
        self.ignore.has_exceptions()
            && self.root.open(path, OFlags::DIRECTORY, Mode::empty()).is_ok()
    }

    /// The paths that a pattern matches.
    fn matching(&self, source: &str) -> Result<Vec<String>> {
        let mut paths = vec![String::new()];
        for part in components(source) {
            let mut next = Vec::new();
            for path in paths {
                let join = |name: &str| {
                    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
                };
                if !pattern::is_pattern(part) {
                    next.push(join(part));
                    continue;
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                let Ok(dir) = self.root.open(&path, flags, Mode::empty()) else { continue };
                for name in names(&dir)? {
                    if pattern::component(part.as_bytes(), &name)
                        && let Ok(name) = std::str::from_utf8(&name)
                    {
                        next.push(join(name));
                    }
                }
            }
            paths = next;
        }
        paths.retain(|path| self.root.place(path).is_ok());
        paths.sort();
        Ok(paths)
    }

    fn take(&self, path: &str) -> Result<Selected> {
        let file = self
            .root
            .open(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())
            .at("opening", path)?;
        let stat = rustix::fs::fstat(&file).at("reading", path)?;
        let name = components(path).last().unwrap_or_default().to_owned();
        let mut selected = Selected { name, file, stat, items: Vec::new() };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => {
                let mut at = Vec::new();
                let prefix = clean(path).trim_start_matches('/').as_bytes().to_vec();
                walk(&selected.file, &mut at, &prefix, &self.ignore, &mut selected.items)?;
            }
            _ => return Err(Error::refused(format!("{path} is neither a file nor a directory"))),
        }
        Ok(selected)
    }
}

fn open_tree(path: &Path) -> Result<RootDir> {
    let fd = open_host(path).at("opening", path)?;
    let stat = rustix::fs::fstat(&fd).at("reading", path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(Error::refused(format!("{} is not a directory", path.display())));
    }
    Ok(RootDir::new(fd))
}

/// The names in a directory, sorted.
fn names(dir: &OwnedFd) -> Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).at("reading", "a directory")? {
        let name = entry.at("reading", "a directory")?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Lists what is below a directory. What is left out is not listed, unless
/// something below it is taken back.
fn walk(
    dir: &OwnedFd,
    at: &mut Vec<u8>,
    prefix: &[u8],
    ignore: &Ignore,
    items: &mut Vec<Item>,
) -> Result<()> {
    for name in names(dir)? {
        let length = at.len();
        if !at.is_empty() {
            at.push(b'/');
        }
        at.extend_from_slice(&name);
        let stat =
            rustix::fs::statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW).at("reading", shown(at))?;
        let whole = if prefix.is_empty() { at.clone() } else { [prefix, b"/", at].concat() };
        let excluded = ignore.excludes(&whole);
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory && (!excluded || ignore.has_exceptions()) {
            let place = items.len();
            items.push(Item { path: at.clone(), stat });
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let below =
                rustix::fs::openat(dir, &*name, flags, Mode::empty()).at("opening", shown(at))?;
            walk(&below, at, prefix, ignore, items)?;
            if excluded && items.len() == place + 1 {
                items.pop();
            }
        } else if !excluded && matches!(kind, FileType::RegularFile | FileType::Symlink) {
            items.push(Item { path: at.clone(), stat });
        }
        if items.len() > MOST_FILES {
            return Err(Error::refused("more than four million files are to be copied"));
        }
        at.truncate(length);
    }
    Ok(())
}

/// A digest of what a copy of this would give: names, kinds, modes, contents; not
/// times.
pub fn digest(selected: &[Selected]) -> Result<Digest> {
    let mut lines = Vec::new();
    for one in selected {
        line(&mut lines, one.name.as_bytes(), &one.stat, || match one.is_directory() {
            true => Ok(String::new()),
            false => contents(&one.file),
        })?;
        for item in &one.items {
            let kind = FileType::from_raw_mode(item.stat.st_mode);
            line(&mut lines, &item.path, &item.stat, || match kind {
                FileType::RegularFile => contents(&one.open(item)?),
                FileType::Symlink => Ok(Digest::of(&one.link(item)?).to_string()),
                _ => Ok(String::new()),
            })?;
        }
    }
    Ok(Digest::of(&lines))
}

fn line(
    out: &mut Vec<u8>,
    path: &[u8],
    stat: &Stat,
    contents: impl FnOnce() -> Result<String>,
) -> Result<()> {
    out.extend_from_slice(Digest::of(path).to_string().as_bytes());
    out.extend_from_slice(format!(" {:o} {}\n", stat.st_mode, contents()?).as_bytes());
    Ok(())
}

fn contents(file: &OwnedFd) -> Result<String> {
    let mut file = File::from(file.try_clone().at("reading", "a file")?);
    let mut hasher = guise_image::Hasher::sha256();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if Errno::from_io_error(&e) == Some(Errno::INTR) => {}
            Err(e) => return Err(e).at("reading", "a file"),
        }
    }
    // Whoever copies begins at the beginning again.
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).at("reading", "a file")?;
    Ok(hasher.finish().to_string())
}

#[cfg(test)]
mod tests;
