//! What a cgroup uses, for a process in it that sees no cgroups any more: its files are opened
//! before, and can be read as often as somebody wants to know.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Cgroup, Hierarchy};

/// Larger than any of these files.
const LARGEST: usize = 16 << 10;

/// Open files of a cgroup; what this host does not tell is none.
#[derive(Debug, Default)]
pub struct Gauge {
    memory: Option<Memory>,
    /// Of processors, memory and disks.
    pressure: [Option<File>; 3],
}

#[derive(Debug)]
struct Memory {
    used: File,
    of_which: File,
    /// Before the names of what v1 counts with what is below.
    prefix: &'static str,
}

/// What it uses now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Without what of the host's files is cached for it, which goes when somebody needs room.
    pub memory_bytes: Option<u64>,
    /// Microseconds in which at least one of its threads waited for a processor, for memory, for
    /// disks.
    pub pressure: [Option<u64>; 3],
}

impl Gauge {
    #[must_use]
    pub fn open(cgroup: &Cgroup) -> Gauge {
        let unified = cgroup.unified().filter(|unified| unified.directory().is_some());
        let memory = match (cgroup.controller("memory"), unified) {
            (Some(v1), _) => Memory::open(v1, "memory.usage_in_bytes", "total_"),
            (None, Some(v2)) if v2.has_controller("memory") => {
                v2.directory().and_then(|v2| Memory::open(v2, "memory.current", ""))
            }
            (None, _) => None,
        };
        let place = unified.and_then(Hierarchy::directory);
        let pressure = ["cpu.pressure", "memory.pressure", "io.pressure"]
            .map(|file| place.and_then(|place| File::open(place.join(file)).ok()));
        Gauge { memory, pressure }
    }

    #[must_use]
    pub fn read(&self) -> Usage {
        Usage {
            memory_bytes: self.memory.as_ref().and_then(Memory::read),
            pressure: self.pressure.each_ref().map(|file| waited(&text(file.as_ref()?)?)),
        }
    }
}

impl Memory {
    fn open(directory: &Path, used: &str, prefix: &'static str) -> Option<Memory> {
        Some(Memory {
            used: File::open(directory.join(used)).ok()?,
            of_which: File::open(directory.join("memory.stat")).ok()?,
            prefix,
        })
    }

    fn read(&self) -> Option<u64> {
        let used: u64 = text(&self.used)?.trim().parse().ok()?;
        let of_which = text(&self.of_which)?;
        let cached = ["active_file", "inactive_file"].map(|name| {
            let line = |line: &str| {
                line.strip_prefix(self.prefix)?.strip_prefix(name)?.trim().parse().ok()
            };
            of_which.lines().find_map(line).unwrap_or(0u64)
        });
        Some(cached.into_iter().fold(used, u64::saturating_sub))
    }
}

fn text(file: &File) -> Option<String> {
    let mut bytes = [0; LARGEST];
    let mut length = 0;
    // A file of the kernel's may come in pieces.
    while length < bytes.len() {
        match file.read_at(&mut bytes[length..], length as u64).ok()? {
            0 => break,
            more => length += more,
        }
    }
    Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

/// The total of `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn waited(pressure: &str) -> Option<u64> {
    let some = pressure.lines().find(|line| line.starts_with("some "))?;
    some.rsplit("total=").next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests;
