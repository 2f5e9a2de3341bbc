//! How a differencing VHD names its parent: a name in the header and locators
//! that point to paths in UTF-16.

use crate::bytes::{be16, be32, be64, put};
use crate::error::{Blame, Result};
use crate::format::BackingReference;
use crate::storage::{Storage, read_vec};

const NAME_AT: usize = 64;
const NAME_LEN: usize = 512;
const LOCATORS_AT: usize = 576;
const LOCATOR_LEN: usize = 24;
const LOCATORS: usize = 8;
const RELATIVE: &[u8; 4] = b"W2ru";
const ABSOLUTE: &[u8; 4] = b"W2ku";
const MAX_PATH: usize = 4096;

/// Fills in the header's name and one locator; gives the locator's data, which
/// goes to `at`.
pub(super) fn encode(name: &str, header: &mut [u8], at: u64) -> Vec<u8> {
    let base = name.rsplit('/').next().unwrap_or(name);
    let wide: Vec<u8> = base.encode_utf16().flat_map(u16::to_be_bytes).take(NAME_LEN).collect();
    put(header, NAME_AT, &wide);
    let windows = name.replace('/', "\\");
    let relative = if name.starts_with('/') { windows } else { format!(".\\{windows}") };
    let mut path: Vec<u8> = relative.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let len = path.len();
    path.resize(len.next_multiple_of(512), 0);
    let code = if name.starts_with('/') { ABSOLUTE } else { RELATIVE };
    put(header, LOCATORS_AT, code);
    put(header, LOCATORS_AT + 4, &(path.len() as u32).to_be_bytes());
    put(header, LOCATORS_AT + 8, &(len as u32).to_be_bytes());
    put(header, LOCATORS_AT + 16, &at.to_be_bytes());
    path
}

/// Reads where the parent is.
pub(super) fn decode(
    storage: &dyn Storage,
    header: &[u8],
    blame: &Blame,
) -> Result<BackingReference> {
    for wanted in [RELATIVE, ABSOLUTE] {
        for index in 0..LOCATORS {
            let locator = &header[LOCATORS_AT + index * LOCATOR_LEN..][..LOCATOR_LEN];
            let len = be32(locator, 8) as usize;
            if &locator[..4] != wanted || len > MAX_PATH {
                continue;
            }
            let bytes = read_vec(storage, be64(locator, 16), len)?;
            let wide: Vec<u16> =
                bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
            let path = String::from_utf16_lossy(&wide).replace('\\', "/");
            let path = path.trim_end_matches('\0').trim_start_matches("./");
            if !path.is_empty() {
                return Ok(reference(path));
            }
        }
    }
    let name = &header[NAME_AT..NAME_AT + NAME_LEN];
    let wide: Vec<u16> =
        name.chunks_exact(2).map(|pair| be16(pair, 0)).take_while(|&unit| unit != 0).collect();
    match String::from_utf16_lossy(&wide) {
        name if name.is_empty() => Err(blame.corrupt("it has a parent that it does not name")),
        name => Ok(reference(&name)),
    }
}

fn reference(name: &str) -> BackingReference {
    BackingReference { name: name.to_owned(), format: Some("vhd".to_owned()) }
}
