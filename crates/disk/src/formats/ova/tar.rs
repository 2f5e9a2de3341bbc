//! As much of tar as appliances need: plain files in the ustar format.

use crate::bytes::put;
use crate::error::{Blame, Result};
use crate::storage::{Storage, read_vec};

pub(super) const BLOCK: u64 = 512;
const MAX_ENTRIES: usize = 1024;

/// A file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub name: String,
    pub offset: u64,
    pub len: u64,
}

/// The files in an archive.
pub(super) fn list(archive: &dyn Storage, blame: &Blame) -> Result<Vec<Entry>> {
    let end = archive.len()?;
    let mut entries = Vec::new();
    let mut at = 0;
    while at + BLOCK <= end && entries.len() < MAX_ENTRIES {
        let block = read_vec(archive, at, BLOCK as usize)?;
        if block.iter().all(|&byte| byte == 0) {
            break;
        }
        if &block[257..262] != b"ustar" || octal(&block[148..156]) != Some(checksum(&block)) {
            return Err(blame.corrupt(format!("no tar header at {at:#x}")));
        }
        let len = number(&block[124..136])
            .ok_or_else(|| blame.corrupt(format!("a file of no readable size at {at:#x}")))?;
        let offset = at + BLOCK;
        let past = offset.checked_add(len).filter(|&past| past <= end);
        let past = past.ok_or_else(|| blame.corrupt("a file in the archive has no end"))?;
        if matches!(block[156], b'0' | 0) {
            let name = text(&block[..100]);
            let prefix = text(&block[345..500]);
            let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            entries.push(Entry { name: name.trim_start_matches("./").to_owned(), offset, len });
        }
        at = past.next_multiple_of(BLOCK);
    }
    Ok(entries)
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits = text(field);
    u64::from_str_radix(digits.trim_matches([' ', '\0']), 8).ok()
}

/// Octal digits, or binary where the file is larger than they can say.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 == 0 {
        return octal(field);
    }
    let value = field[1..].iter().try_fold(0_u64, |value, &byte| {
        value.checked_mul(256).and_then(|value| value.checked_add(u64::from(byte)))
    })?;
    Some(value)
}

fn checksum(block: &[u8]) -> u64 {
    let counted = |at: usize| if (148..156).contains(&at) { b' ' } else { block[at] };
    (0..block.len()).map(|at| u64::from(counted(at))).sum()
}

/// The header of a plain file.
pub(super) fn header(name: &str, len: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK as usize];
    put(&mut block, 0, name.as_bytes());
    put(&mut block, 100, b"0000644\0");
    put(&mut block, 108, b"0000000\0");
    put(&mut block, 116, b"0000000\0");
    if len < 1 << 33 {
        put(&mut block, 124, format!("{len:011o}\0").as_bytes());
    } else {
        block[124] = 0x80;
        put(&mut block, 128, &len.to_be_bytes());
    }
    put(&mut block, 136, b"00000000000\0");
    block[156] = b'0';
    put(&mut block, 257, b"ustar\x0000");
    let sum = checksum(&block);
    put(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
    block
}
