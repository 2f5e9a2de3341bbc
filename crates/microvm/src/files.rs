//! Files of file systems that are read here and mounted nowhere, found by their paths.
//!
//! Who wrote such a file system may mean harm: what leads in a circle ends.

use std::io::Write;

use crate::volume::VolumeError;

/// Names and links on the way to a file.
const MOST_STEPS: usize = 64;

type Result<T> = std::result::Result<T, VolumeError>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Folder,
    Link,
    Other,
}

/// A file system.
pub trait Files {
    type Inode: Clone;

    fn root(&self) -> Result<Self::Inode>;
    fn kind(&self, inode: &Self::Inode) -> Kind;
    fn look_up(&self, folder: &Self::Inode, name: &[u8]) -> Result<Option<Self::Inode>>;
    fn target(&self, link: &Self::Inode) -> Result<Vec<u8>>;
    /// What is in a folder, without its own names for itself and for where it is.
    fn list(&self, folder: &Self::Inode) -> Result<Vec<(Vec<u8>, Kind)>>;
    /// Writes what is in a file somewhere else, unless that is more than a limit.
    fn copy(&self, file: &Self::Inode, what: &str, limit: u64, to: &mut dyn Write) -> Result<()>;
}

/// What is at an absolute path, through links. None where there is nothing.
pub fn find<F: Files + ?Sized>(files: &F, path: &str) -> Result<Option<F::Inode>> {
    let names = |path: &[u8]| -> Vec<Vec<u8>> {
        path.split(|&byte| byte == b'/').rev().map(<[u8]>::to_vec).collect()
    };
    // From the top down to where it is.
    let mut trail = vec![files.root()?];
    let mut left = names(path.as_bytes());
    let mut steps = 0;
    while let Some(name) = left.pop() {
        match &name[..] {
            b"" | b"." => continue,
            b".." => {
                trail.truncate((trail.len() - 1).max(1));
                continue;
            }
            _ => {}
        }
        steps += 1;
        let Some(here) = trail.last().filter(|here| files.kind(here) == Kind::Folder) else {
            return Ok(None);
        };
        if steps > MOST_STEPS {
            return Err(VolumeError::Damaged("a path on it does not come to an end"));
        }
        let Some(inode) = files.look_up(here, &name)? else { return Ok(None) };
        if files.kind(&inode) != Kind::Link {
            trail.push(inode);
            continue;
        }
        let target = files.target(&inode)?;
        if target.starts_with(b"/") {
            trail.truncate(1);
        }
        left.extend(names(&target));
    }
    Ok(trail.pop())
}

/// A part of a file system, whichever it is: what is below a folder of it.
pub struct Below<F> {
    pub files: F,
    /// Nothing, or an absolute path.
    pub top: &'static str,
}

/// Where files are.
pub trait Source {
    fn is_file(&self, path: &str) -> bool;
    /// What is in a folder; nothing of what is none. Names that are no text are left out.
    fn list(&self, path: &str) -> Result<Vec<(String, Kind)>>;
    /// What is in a file; nothing where there is none.
    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>>;
}

impl<F: Files> Below<F> {
    fn find(&self, path: &str, kind: Kind) -> Result<Option<F::Inode>> {
        let found = find(&self.files, &format!("{}{path}", self.top))?;
        Ok(found.filter(|inode| self.files.kind(inode) == kind))
    }
}

impl<F: Files> Source for Below<F> {
    fn is_file(&self, path: &str) -> bool {
        // What cannot be read is none.
        self.find(path, Kind::File).is_ok_and(|found| found.is_some())
    }

    fn list(&self, path: &str) -> Result<Vec<(String, Kind)>> {
        let Some(folder) = self.find(path, Kind::Folder)? else { return Ok(Vec::new()) };
        let text = |(name, kind)| Some((String::from_utf8(name).ok()?, kind));
        Ok(self.files.list(&folder)?.into_iter().filter_map(text).collect())
    }

    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.find(path, Kind::File)? else { return Ok(None) };
        let mut bytes = Vec::new();
        self.files.copy(&file, path, limit, &mut bytes)?;
        Ok(Some(bytes))
    }
}
