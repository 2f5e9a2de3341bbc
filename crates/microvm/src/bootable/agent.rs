//! Guise's agent in the initial RAM disk of a system that boots by itself: one more archive,
//! which stands before the others. The kernel starts the agent, and the agent goes on as the
//! program that the kernel would have started.

use guise_agent::protocol::{
    BESIDE, BESIDE_AGENT, BESIDE_FIRST, BESIDE_ROOT, BESIDE_SECRET, OwnRoot,
};

use crate::cpio::Archive;
use crate::kernel::AGENT;

/// How much of an initial RAM disk says of what kind it is.
pub const HEAD: usize = 6;
/// How archives begin, and what the kernel unpacks: gzip, bzip2, LZMA, xz, LZO, LZ4, zstd.
const KINDS: [&[u8]; 9] = [
    b"070701",
    b"070702",
    b"\x1f\x8b",
    b"BZh",
    b"\x5d\0\0",
    b"\xfd7zXZ",
    b"\x89LZO",
    b"\x02\x21\x4c\x18",
    b"\x28\xb5\x2f\xfd",
];
const FIRST: &str = "rdinit=";
/// Nothing that follows has to stand at less.
const ALIGNMENT: usize = 512;

/// Whether archives like this one are unpacked one after the other; a file system is not.
pub fn may_stand_before(head: &[u8]) -> bool {
    KINDS.iter().any(|kind| head.starts_with(kind))
}

/// A kernel's words with the agent as its first program, and which one it would have started.
pub fn with_it(words: &str) -> (String, String) {
    // At the front: the kernel forgets what stands before it of what it passes on.
    let mut with = format!("{FIRST}{BESIDE_AGENT}");
    let mut first = "/init";
    for word in words.split_whitespace() {
        match word.strip_prefix(FIRST) {
            Some(other) => first = other,
            None => with = format!("{with} {word}"),
        }
    }
    (with, first.to_owned())
}

/// What the kernel unpacks before a disk's own initial RAM disk.
pub fn archive(first: &str, secret: &[u8]) -> Vec<u8> {
    let mut bytes = contents(first, secret).finish();
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes
}

/// The beginning of an initial RAM disk that leads to an image.
pub fn with_root(first: &str, secret: &[u8], root: &OwnRoot) -> Archive {
    let mut archive = contents(first, secret);
    archive.file(&inside(BESIDE_ROOT), 0o600, &root.bytes());
    archive
}

fn inside(path: &str) -> String {
    path.trim_start_matches('/').to_owned()
}

fn contents(first: &str, secret: &[u8]) -> Archive {
    let mut archive = Archive::default();
    // The agent needs streams, as every program does.
    archive.directory("dev");
    archive.character_device("dev/console", 5, 1);
    archive.directory(&inside(BESIDE));
    archive.file(&inside(BESIDE_AGENT), 0o700, AGENT);
    archive.file(&inside(BESIDE_FIRST), 0o600, first.as_bytes());
    archive.file(&inside(BESIDE_SECRET), 0o600, secret);
    archive
}
