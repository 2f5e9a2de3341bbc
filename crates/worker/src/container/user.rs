//! Who a program runs as: names are those of the image's own files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use guise_container::rootfs::path::{RootDir, open_host};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::system;
use crate::body::BodyError;

/// No account file is read beyond this.
const MAX_FILE: u64 = 4 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// The image's files; none where one is missing or unreadable, as in images without.
pub struct Accounts {
    pub users: Option<File>,
    pub groups: Option<File>,
}

impl Accounts {
    /// Opens them, and reads nothing.
    pub fn open(root: &Path) -> Result<Accounts, BodyError> {
        let place = RootDir::new(open_host(root).map_err(system("open the root file system"))?);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let open = |path| place.open(path, flags, Mode::empty()).ok().map(File::from);
        Ok(Accounts { users: open("/etc/passwd"), groups: open("/etc/group") })
    }

    /// Finds out who `said` is (`name`, `uid`, `name:group`, `uid:gid`; nothing is root).
    pub fn find(self, said: &str) -> Result<User, BodyError> {
        resolve(said, &read(self.users), &read(self.groups))
    }
}

fn read(file: Option<File>) -> String {
    let mut bytes = Vec::new();
    if let Some(file) = file {
        // Part of a file is as good as none of it.
        let _ = file.take(MAX_FILE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn resolve(said: &str, passwd: &str, group: &str) -> Result<User, BodyError> {
    let (name, group_name) = match said.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (said, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let unknown = |what: &str, name: &str| {
        BodyError::Failed(format!("there is no {what} {name:?} in the image; give its number"))
    };
    let number: Option<u32> = name.parse().ok();
    let account = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.len() >= 6
            && (fields[0] == name || (number.is_some() && fields[2].parse().ok() == number))
    });
    let mut user = User { home: "/".to_owned(), ..User::default() };
    match (&account, number) {
        (Some(fields), _) => {
            user.uid = fields[2].parse().map_err(|_| unknown("user", name))?;
            user.gid = fields[3].parse().map_err(|_| unknown("user", name))?;
            user.home = fields[5].to_owned();
            if group_name.is_none() {
                user.groups = groups_of(fields[0], group);
            }
        }
        (None, Some(number)) => user.uid = number,
        (None, None) => return Err(unknown("user", name)),
    }
    if user.uid == 0 && account.is_none() {
        user.home = "/root".to_owned();
    }
    if let Some(wanted) = group_name {
        user.gid = match wanted.parse() {
            Ok(number) => number,
            Err(_) => group
                .lines()
                .map(|line| line.split(':').collect::<Vec<_>>())
                .find(|fields| fields.len() >= 3 && fields[0] == wanted)
                .and_then(|fields| fields[2].parse().ok())
                .ok_or_else(|| unknown("group", wanted))?,
        };
    }
    Ok(user)
}

fn groups_of(name: &str, group: &str) -> Vec<u32> {
    group
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .filter(|fields| fields.len() >= 4 && fields[3].split(',').any(|member| member == name))
        .filter_map(|fields| fields[2].parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{User, resolve};

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:\nlog:x:4:syslog,web\n";

    #[test]
    fn users_by_name_and_number() {
        let find = |said| resolve(said, PASSWD, GROUP).unwrap();
        let web = User { uid: 33, gid: 33, groups: vec![4], home: "/var/www".into() };
        assert_eq!(find("web"), web);
        assert_eq!(find("33"), web);
        assert_eq!(find("web:log"), User { gid: 4, groups: vec![], ..web.clone() });
        assert_eq!(find("7:9"), User { uid: 7, gid: 9, groups: vec![], home: "/".into() });
        assert_eq!(find("").home, "/root");
        assert_eq!(resolve("0", "", "").unwrap().home, "/root");
        for bad in ["nobody", "web:nogroup", "-1"] {
            assert!(resolve(bad, PASSWD, GROUP).is_err(), "{bad}");
        }
    }
}
