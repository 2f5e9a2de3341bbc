//! `--share DIRECTORY,tag=T[,readonly][,cache=auto|always|never]` as text.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use guise_virtio::fs::{Cache, LONGEST_TAG, Share, ShareOptions};

use super::descriptors;
use crate::Failure;

/// Descriptors that are left to everything else.
const RESERVE: u64 = 2048;
/// More than this do not make a share faster.
const MOST_FILES: u64 = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    directory: PathBuf,
    tag: String,
    read_only: bool,
    cache: Cache,
}

impl FromStr for Shared {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A comma in a directory's name is written twice.
        let marked = text.replace(",,", "\0");
        let mut parts = marked.split(',').map(|part| part.replace('\0', ","));
        let directory = parts.next().filter(|directory| !directory.is_empty());
        let directory = directory.ok_or("it begins with a directory")?.into();
        let mut shared =
            Shared { directory, tag: String::new(), read_only: false, cache: Cache::Auto };
        for part in parts {
            match part.split_once('=') {
                None if part == "readonly" => shared.read_only = true,
                Some(("tag", tag)) => shared.tag = tag.to_owned(),
                Some(("cache", "auto")) => shared.cache = Cache::Auto,
                Some(("cache", "always")) => shared.cache = Cache::Always,
                Some(("cache", "never")) => shared.cache = Cache::Never,
                _ => {
                    return Err(format!(
                        "'{part}' is none of tag=, readonly, cache=auto|always|never"
                    ));
                }
            }
        }
        if !(1..=LONGEST_TAG).contains(&shared.tag.len()) {
            return Err(format!("tag= names it in the guest, with 1 to {LONGEST_TAG} bytes"));
        }
        Ok(shared)
    }
}

impl Shared {
    pub fn open(&self, vcpus: u32) -> Result<Arc<Share>, Failure> {
        let options = ShareOptions {
            tag: self.tag.clone(),
            read_only: self.read_only,
            cache: self.cache,
            most_files: most_files(),
            queues: vcpus as u16,
        };
        Share::new(&self.directory, &options).map_err(|error| {
            Failure::failed(format!("--share {}: {error}", self.directory.display()))
        })
    }
}

/// As many descriptors as this process may have, but for a reserve.
fn most_files() -> usize {
    descriptors::most().saturating_sub(RESERVE).min(MOST_FILES) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_directory() {
        let shared: Shared = "/a,,b,tag=t,readonly,cache=never".parse().expect("valid");
        assert_eq!(shared.directory, PathBuf::from("/a,b"));
        assert_eq!((&*shared.tag, shared.read_only, shared.cache), ("t", true, Cache::Never));
        let long = format!("/x,tag={}", "t".repeat(37));
        for wrong in ["", ",tag=t", "/x", "/x,tag=", "/x,tag=t,cache=some", "/x,tag=t,ro", &long] {
            assert!(wrong.parse::<Shared>().is_err(), "{wrong}");
        }
    }
}
