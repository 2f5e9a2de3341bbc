//! Users and groups by name, as an image's own files have them.

use std::io::Read;

use guise_container::rootfs::path::RootDir;
use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};

/// More of such a file is not read.
const LONGEST_FILE: u64 = 4 << 20;

/// Whom a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// Resolves `user`, `user:group`, `uid:gid`; empty is root.
pub fn identity(root: &RootDir, text: &str) -> Result<Identity> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let passwd = read(root, "etc/passwd");
    let number = user.parse::<u32>().ok();
    let entry = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.len() >= 6
            && (fields[0] == user || number.is_some_and(|n| fields[2] == n.to_string()))
    });
    let groups_file = read(root, "etc/group");
    let (uid, gid, home, name) = match (&entry, number) {
        (Some(fields), _) => {
            let id = |text: &str| {
                text.parse::<u32>()
                    .map_err(|_| Error::refused(format!("/etc/passwd has no ids for {user}")))
            };
            (id(fields[2])?, id(fields[3])?, fields[5].to_owned(), Some(fields[0]))
        }
        (None, Some(uid)) => (uid, 0, "/".to_owned(), None),
        (None, None) => {
            return Err(Error::refused(format!("user {user} is not in the image's /etc/passwd")));
        }
    };
    let mut identity = Identity { uid, gid, groups: Vec::new(), home };
    match group {
        Some(group) => identity.gid = group_id(&groups_file, group)?,
        None => {
            let Some(name) = name else { return Ok(identity) };
            identity.groups = groups_file
                .lines()
                .map(|l| l.split(':').collect::<Vec<_>>())
                .filter(|f| f.len() >= 4 && f[3].split(',').any(|member| member == name))
                .filter_map(|f| f[2].parse().ok())
                .collect();
        }
    }
    Ok(identity)
}

/// Resolves what `--chown` says: like a user, but a name alone names its group too.
pub fn owner(root: &RootDir, text: &str) -> Result<(u32, u32)> {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let identity = identity(root, user)?;
    let gid = match (group, user.parse::<u32>()) {
        ("", Ok(number)) => number,
        ("", Err(_)) => identity.gid,
        (group, _) => group_id(&read(root, "etc/group"), group)?,
    };
    Ok((identity.uid, gid))
}

fn group_id(file: &str, group: &str) -> Result<u32> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    file.lines()
        .map(|l| l.split(':').collect::<Vec<_>>())
        .find(|f| f.len() >= 3 && f[0] == group)
        .and_then(|f| f[2].parse().ok())
        .ok_or_else(|| Error::refused(format!("group {group} is not in the image's /etc/group")))
}

/// A file of the image; one that is not there has nobody in it.
fn read(root: &RootDir, path: &str) -> String {
    let Ok(fd) = root.open(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()) else {
        return String::new();
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::from(fd);
    if !file.metadata().is_ok_and(|m| m.is_file())
        || file.take(LONGEST_FILE).read_to_end(&mut bytes).is_err()
    {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests;
