//! Mount options: which are flags of the mount, which are the file system's.

use crate::error::{Error, Result};
use crate::sys::mount::{
    ATTR_ATIME, ATTR_NOATIME, ATTR_NODEV, ATTR_NODIRATIME, ATTR_NOEXEC, ATTR_NOSUID,
    ATTR_NOSYMFOLLOW, ATTR_RDONLY, ATTR_STRICTATIME,
};

/// Options, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// A bind mount, and whether of the whole tree.
    pub bind: Option<Bind>,
    /// Flags to set and to clear on the mount itself.
    pub set: u64,
    pub clear: u64,
    /// Flags to set and to clear on all mounts of the tree.
    pub set_all: u64,
    pub clear_all: u64,
    /// Propagations, in order, and whether for the tree.
    pub propagation: Vec<(u64, bool)>,
    /// Flags of the file system, such as `sync`.
    pub super_flags: Vec<&'static str>,
    /// The rest: for the file system to understand.
    pub data: Vec<String>,
    /// Fill a new tmpfs with what the directory held.
    pub copy_up: bool,
    /// Map ids, and whether on the whole tree.
    pub idmap: Option<Bind>,
    /// Do not follow a link that is the source, or the destination.
    pub source_nofollow: bool,
    pub destination_nofollow: bool,
}

/// One mount or a tree of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bind {
    One,
    Tree,
}

/// Names, flags, and whether the name takes the flag away.
const FLAGS: [(&str, u64, bool); 17] = [
    ("ro", ATTR_RDONLY, false),
    ("rw", ATTR_RDONLY, true),
    ("nosuid", ATTR_NOSUID, false),
    ("suid", ATTR_NOSUID, true),
    ("nodev", ATTR_NODEV, false),
    ("dev", ATTR_NODEV, true),
    ("noexec", ATTR_NOEXEC, false),
    ("exec", ATTR_NOEXEC, true),
    ("noatime", ATTR_NOATIME, false),
    ("atime", ATTR_NOATIME, true),
    ("strictatime", ATTR_STRICTATIME, false),
    ("nostrictatime", ATTR_STRICTATIME, true),
    ("nodiratime", ATTR_NODIRATIME, false),
    ("diratime", ATTR_NODIRATIME, true),
    ("nosymfollow", ATTR_NOSYMFOLLOW, false),
    ("symfollow", ATTR_NOSYMFOLLOW, true),
    ("relatime", ATTR_ATIME, true),
];

const SUPER_FLAGS: [&str; 5] = ["sync", "dirsync", "lazytime", "mand", "silent"];

impl Options {
    /// Sorts a list of options.
    pub fn parse(list: &[String], destination: &str) -> Result<Self> {
        let mut options = Options::default();
        for name in list {
            options.take(name, destination)?;
        }
        Ok(options)
    }

    fn take(&mut self, name: &str, destination: &str) -> Result<()> {
        match name {
            "bind" => self.bind = self.bind.or(Some(Bind::One)),
            "rbind" => self.bind = Some(Bind::Tree),
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.idmap = Some(Bind::One),
            "ridmap" => self.idmap = Some(Bind::Tree),
            "src-nofollow" => self.source_nofollow = true,
            "dest-nofollow" => self.destination_nofollow = true,
            "defaults" | "norelatime" | "" => {}
            "async" | "nolazytime" | "nomand" | "loud" | "iversion" | "noiversion" => {}
            "remount" => {
                return Err(Error::config(
                    format!("mounts: {destination}"),
                    "remount is not an option of a new mount",
                ));
            }
            "shared" | "slave" | "private" | "unbindable" | "rshared" | "rslave" | "rprivate"
            | "runbindable" => {
                // "rslave" and "rshared" begin with the r of the tree, and so does no other.
                let flag = super::propagation(name)?;
                self.propagation.push((flag, name.starts_with('r')));
            }
            _ if SUPER_FLAGS.contains(&name) => {
                self.super_flags.extend(SUPER_FLAGS.iter().find(|f| **f == name));
            }
            _ => {
                if let Some((_, flag, clears)) = FLAGS.iter().find(|(n, ..)| *n == name) {
                    apply(*flag, *clears, &mut self.set, &mut self.clear);
                } else if let Some((_, flag, clears)) = name
                    .strip_prefix('r')
                    .and_then(|plain| FLAGS.iter().find(|(n, ..)| *n == plain))
                {
                    apply(*flag, *clears, &mut self.set_all, &mut self.clear_all);
                } else {
                    self.data.push(name.to_owned());
                }
            }
        }
        Ok(())
    }
}

/// A later option undoes an earlier one of the same flag.
fn apply(flag: u64, clears: bool, set: &mut u64, clear: &mut u64) {
    if clears {
        *clear |= flag;
        *set &= !flag;
    } else {
        *set |= flag;
        *clear &= !flag;
        if flag & ATTR_ATIME != 0 {
            *set = *set & !ATTR_ATIME | flag;
        }
    }
    // The kernel takes access-time modes as one field, cleared as a whole.
    if *clear & ATTR_ATIME != 0 {
        *clear |= ATTR_ATIME;
    }
}

/// The options of every mount that the runtime knows, for `features`.
pub fn known() -> Vec<String> {
    let mut names: Vec<String> = FLAGS.iter().map(|(n, ..)| (*n).to_owned()).collect();
    names.extend(FLAGS.iter().map(|(n, ..)| format!("r{n}")));
    names.extend(SUPER_FLAGS.iter().map(|n| (*n).to_owned()));
    for name in [
        "async",
        "bind",
        "rbind",
        "defaults",
        "idmap",
        "ridmap",
        "loud",
        "nolazytime",
        "nomand",
        "norelatime",
        "private",
        "rprivate",
        "rshared",
        "rslave",
        "runbindable",
        "shared",
        "slave",
        "tmpcopyup",
        "unbindable",
        "src-nofollow",
        "dest-nofollow",
    ] {
        names.push(name.to_owned());
    }
    names.sort();
    names
}

#[cfg(test)]
mod tests;
