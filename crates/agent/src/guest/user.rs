//! As whom a process runs: `/etc/passwd` and `/etc/group` of the image.

use std::fs::File;
use std::io::Read;

use rustix::process::{Gid, Uid};

/// Of these files no more is read.
const LARGEST: u64 = 4 << 20;

#[derive(Debug, PartialEq, Eq)]
pub struct User {
    pub uid: Uid,
    pub gid: Gid,
    pub groups: Vec<Gid>,
    pub home: String,
}

impl User {
    /// Finds `name`, `uid`, `name:group` and so on; an empty text is root.
    pub fn find(text: &str, more_groups: &[u32]) -> Result<Self, String> {
        Self::find_in(text, more_groups, &read("/etc/passwd"), &read("/etc/group"))
    }

    fn find_in(text: &str, more_groups: &[u32], users: &str, groups: &str) -> Result<Self, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (text, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let entry = lines(users).find(|fields| fields[0] == user).or_else(|| {
            user.parse::<u32>().ok()?;
            lines(users).find(|fields| fields.get(2) == Some(&user))
        });
        let number = |fields: &[&str], at: usize| fields.get(at).and_then(|text| id(text));
        let uid = match &entry {
            Some(fields) => number(fields, 2),
            None => id(user),
        };
        let uid = uid.ok_or_else(|| format!("there is no user '{user}' in the image"))?;
        let gid = match group {
            None => entry.as_ref().and_then(|fields| number(fields, 3)).unwrap_or(0),
            Some(group) => lines(groups)
                .find(|fields| fields[0] == group)
                .and_then(|fields| number(&fields, 2))
                .or_else(|| id(group))
                .ok_or_else(|| format!("there is no group '{group}' in the image"))?,
        };
        let mut supplementary: Vec<u32> = more_groups.to_vec();
        if let (Some(fields), None) = (&entry, group) {
            let member = |list: &str| list.split(',').any(|name| name == fields[0]);
            let of = lines(groups).filter(|group| group.get(3).is_some_and(|list| member(list)));
            supplementary.extend(of.filter_map(|group| number(&group, 2)));
        }
        supplementary.sort_unstable();
        supplementary.dedup();
        let home = entry.as_ref().and_then(|fields| fields.get(5)).filter(|home| !home.is_empty());
        Ok(User {
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
            groups: supplementary.into_iter().map(Gid::from_raw).collect(),
            home: home.map_or("/", |home| home).to_owned(),
        })
    }
}

/// The highest number means "leave it as it is" to the kernel.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| line.split(':').map(str::trim).collect())
}

/// What the image does not have is empty.
fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        // Half a file is as good as its lines are.
        let _ = file.take(LARGEST).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests;
