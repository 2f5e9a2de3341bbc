//! The ids that a plain user has besides its own: the ranges of `/etc/subuid` and `/etc/subgid`,
//! which `newuidmap` and `newgidmap` map.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::write_mapping;
use crate::error::Result;
use crate::spec::IdMap;
use crate::sys::files::read_text;

/// No such file is read beyond this.
const MAX_FILE: u64 = 4 << 20;
/// The kernel takes 340 lines of a mapping, and who has ranges has one or two.
const MAX_RANGES: usize = 64;

/// A kind of id, with what there is of it on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    User,
    Group,
}

impl Kind {
    const ALL: [Kind; 2] = [Kind::User, Kind::Group];

    /// Where a host says who has which range.
    fn file(self) -> &'static str {
        match self {
            Kind::User => "/etc/subuid",
            Kind::Group => "/etc/subgid",
        }
    }

    /// Who maps them.
    pub(super) fn helper(self) -> &'static str {
        match self {
            Kind::User => "newuidmap",
            Kind::Group => "newgidmap",
        }
    }

    /// The file of a process with its mapping.
    pub(super) fn mapping(self) -> &'static str {
        match self {
            Kind::User => "uid_map",
            Kind::Group => "gid_map",
        }
    }

    /// The mapping of this process's own namespace.
    pub fn here(self) -> Vec<IdMap> {
        let file = PathBuf::from(format!("/proc/self/{}", self.mapping()));
        parse(&read_text(&file).unwrap_or_default())
    }
}

/// A mapping as the kernel writes it: first inside, first outside, how many.
fn parse(text: &str) -> Vec<IdMap> {
    let map = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(IdMap { container: next()?, host: next()?, size: next()? })
    };
    text.lines().filter_map(map).collect()
}

/// Why a plain user has no ids but its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// A file that names no range of this user's.
    Range(&'static str),
    /// A program that is not installed.
    Helper(&'static str),
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lack::Range(file) => write!(f, "{file} has no range of ids for this user"),
            Lack::Helper(program) => write!(f, "{program} is not installed (Debian: uidmap)"),
        }
    }
}

/// What a user has to map: itself as root, and its ranges behind that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    pub uids: Vec<IdMap>,
    pub gids: Vec<IdMap>,
}

/// The ids that this user and group can have mapped, by what this host's files say now.
pub fn of(uid: u32, gid: u32) -> std::result::Result<Ids, Lack> {
    let names = names_of(uid, &read("/etc/passwd"));
    let map = |kind: Kind, own: u32| {
        let ranges = ranges(&read(kind.file()), uid, &names);
        mapping(own, &ranges).ok_or(Lack::Range(kind.file()))
    };
    let ids = Ids { uids: map(Kind::User, uid)?, gids: map(Kind::Group, gid)? };
    for kind in Kind::ALL {
        find_program(kind.helper()).ok_or(Lack::Helper(kind.helper()))?;
    }
    Ok(ids)
}

/// Why the user of this process's own namespace, who is root in it, has no other ids. None where
/// the host's files give some: whatever was in the way then.
pub fn lack_here() -> Option<Lack> {
    let outside = |kind: Kind| kind.here().first().map(|map| map.host);
    of(outside(Kind::User)?, outside(Kind::Group)?).err()
}

/// Maps the user alone to root, as far as nothing is mapped yet: a helper that refuses leaves
/// what another has mapped.
pub fn map_own(pid: i32, uid: u32, gid: u32) -> Result<()> {
    for (kind, own) in [(Kind::Group, gid), (Kind::User, uid)] {
        let path = PathBuf::from(format!("/proc/{pid}/{}", kind.mapping()));
        let is_mapped = read_text(&path).is_ok_and(|text| !text.is_empty());
        if !is_mapped {
            write_mapping(pid, kind, &[IdMap { container: 0, host: own, size: 1 }])?;
        }
    }
    Ok(())
}

/// Where a program is that every user may run.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Who started this may have had a path without them.
    let usual = ["/usr/bin", "/usr/local/bin"].map(PathBuf::from);
    let mut all = std::env::split_paths(&path).filter(|folder| folder.is_absolute()).chain(usual);
    all.find_map(|folder| Some(folder.join(name)).filter(|file| is_program(file)))
}

fn is_program(file: &Path) -> bool {
    let access = rustix::fs::Access::EXEC_OK;
    file.is_file() && rustix::fs::access(file, access).is_ok()
}

/// What there is of a file; a host may be without.
fn read(file: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(file) {
        // Part of it is as good as none.
        let _ = file.take(MAX_FILE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn names_of(uid: u32, passwd: &str) -> Vec<String> {
    let account = |line: &str| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid) && !name.is_empty()).then(|| name.to_owned())
    };
    passwd.lines().filter_map(account).collect()
}

/// The ranges, first and how many, that lines such as `NAME:100000:65536` give to a user, who
/// may be named by number. What a mapping could not have is left out.
fn ranges(text: &str, uid: u32, names: &[String]) -> Vec<(u32, u32)> {
    let number = uid.to_string();
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let is_ours = owner == number || names.iter().any(|name| name == owner);
        let last = u32::checked_add(first, u32::checked_sub(count, 1)?)?;
        // The last number of all means nobody.
        (is_ours && last < u32::MAX).then_some((first, count))
    };
    text.lines().filter_map(range).take(MAX_RANGES).collect()
}

/// The user as root, and the ranges one behind the other from 1 on. None without any.
fn mapping(own: u32, ranges: &[(u32, u32)]) -> Option<Vec<IdMap>> {
    let mut all = vec![IdMap { container: 0, host: own, size: 1 }];
    let mut next = 1u32;
    for &(host, size) in ranges {
        // Whoever is twice on the host's side, the kernel would refuse.
        let end = |first: u32, size: u32| first.saturating_add(size);
        let meets = |map: &IdMap| host < end(map.host, map.size) && map.host < end(host, size);
        let Some(after) = next.checked_add(size).filter(|_| !all.iter().any(meets)) else {
            continue;
        };
        all.push(IdMap { container: next, host, size });
        next = after;
    }
    (all.len() > 1).then_some(all)
}

#[cfg(test)]
mod tests;
