//! A snapshot as a stream: a magic, the revision, a count, then the entries, each a key
//! and an encoded entry with their lengths, and a checksum over all of it at the end.
//!
//! A reader trusts nothing: lengths are bounded by what the store allows, memory grows
//! with what was read, and a stream whose checksum is wrong changes nothing.

use std::io::{self, Read, Write};
use std::path::Path;

use super::codec;
use crate::{Entry, Listing, MAX_KEY, MAX_VALUE, StateError, check_key};

const MAGIC: &[u8; 16] = b"guise-state\0\0\0\0\x01";
/// An encoded entry is a little longer than its value.
const MAX_ENTRY: usize = MAX_VALUE + 64;

/// FNV-1a over 64 bits: finds torn and truncated snapshots.
struct Checksum(u64);

impl Checksum {
    fn new() -> Checksum {
        Checksum(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

pub fn write(listing: &Listing, to: &mut dyn Write) -> io::Result<()> {
    let mut sum = Checksum::new();
    let mut put = |bytes: &[u8]| {
        sum.add(bytes);
        to.write_all(bytes)
    };
    put(MAGIC)?;
    put(&listing.revision.to_le_bytes())?;
    put(&(listing.entries.len() as u64).to_le_bytes())?;
    for entry in &listing.entries {
        let value = codec::encode(entry);
        put(&(entry.key.len() as u32).to_le_bytes())?;
        put(&(value.len() as u32).to_le_bytes())?;
        put(entry.key.as_bytes())?;
        put(&value)?;
    }
    let sum = sum.0;
    to.write_all(&sum.to_le_bytes())?;
    to.flush()
}

/// The entries of a snapshot, in the order of their keys. Leases are not part of it:
/// whoever held one is gone.
pub fn read(from: &mut dyn Read, path: &Path) -> Result<Vec<Entry>, StateError> {
    let mut reader = Reader { from, sum: Checksum::new(), path };
    if reader.bytes(MAGIC.len())? != MAGIC {
        return Err(StateError::Snapshot("it does not begin like one"));
    }
    reader.number()?;
    let count = reader.number()?;
    let mut entries: Vec<Entry> = Vec::new();
    for _ in 0..count {
        let key_length = reader.length(MAX_KEY)?;
        let value_length = reader.length(MAX_ENTRY)?;
        let key = String::from_utf8(reader.bytes(key_length)?)
            .map_err(|_| StateError::Snapshot("a key is not text"))?;
        check_key(&key)?;
        if entries.last().is_some_and(|last| last.key >= key) {
            return Err(StateError::Snapshot("its keys are not in order"));
        }
        let mut entry = codec::decode(&key, &reader.bytes(value_length)?)
            .ok_or(StateError::Snapshot("an entry is malformed"))?;
        if entry.lease.take().is_none() {
            entries.push(entry);
        }
    }
    let computed = reader.sum.0;
    if reader.number()? != computed {
        return Err(StateError::Snapshot("its checksum is wrong"));
    }
    Ok(entries)
}

struct Reader<'a> {
    from: &'a mut dyn Read,
    sum: Checksum,
    path: &'a Path,
}

impl Reader<'_> {
    fn bytes(&mut self, count: usize) -> Result<Vec<u8>, StateError> {
        let mut bytes = vec![0; count];
        self.from.read_exact(&mut bytes).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => StateError::Snapshot("it ends too early"),
            _ => {
                StateError::Io { doing: "read a snapshot for", path: self.path.to_owned(), source }
            }
        })?;
        self.sum.add(&bytes);
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u64, StateError> {
        let bytes = self.bytes(8)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("8 bytes")))
    }

    fn length(&mut self, limit: usize) -> Result<usize, StateError> {
        let bytes = self.bytes(4)?;
        let length = u32::from_le_bytes(bytes.try_into().expect("4 bytes")) as usize;
        if length > limit {
            return Err(StateError::Snapshot("an entry is larger than entries can be"));
        }
        Ok(length)
    }
}
