//! Entries as bytes: a version, two revisions, a lease (0 for none), the value.

use crate::{Entry, LeaseId};

const VERSION: u8 = 1;
const HEAD: usize = 1 + 3 * 8;

pub fn encode(entry: &Entry) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + entry.value.len());
    bytes.push(VERSION);
    bytes.extend(entry.created.to_le_bytes());
    bytes.extend(entry.modified.to_le_bytes());
    bytes.extend(entry.lease.map_or(0, |lease| lease.0).to_le_bytes());
    bytes.extend(&entry.value);
    bytes
}

/// None when these bytes are not an entry's.
pub fn decode(key: &str, bytes: &[u8]) -> Option<Entry> {
    if bytes.len() < HEAD || bytes[0] != VERSION {
        return None;
    }
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let lease = number(17);
    Some(Entry {
        key: key.to_owned(),
        value: bytes[HEAD..].to_vec(),
        created: number(1),
        modified: number(9),
        lease: (lease != 0).then_some(LeaseId(lease)),
    })
}
