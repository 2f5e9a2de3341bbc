//! PAX extended headers: `LENGTH KEY=VALUE\n` records.

use super::{TarError, Time};
use crate::limits;

/// What the records of one extended header say about the entry after it.
#[derive(Debug, Default, Clone)]
pub struct Records {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<Time>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: bool,
}

const BAD: TarError = TarError::Damaged("a PAX record is malformed");

fn decimal(value: &[u8]) -> Result<u64, TarError> {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(BAD)
}

fn time(value: &[u8]) -> Result<Time, TarError> {
    let text = std::str::from_utf8(value).map_err(|_| BAD)?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds: i64 = whole.parse().map_err(|_| BAD)?;
    let mut nanoseconds = 0;
    let mut unit = 100_000_000;
    for c in fraction.bytes() {
        if !c.is_ascii_digit() {
            return Err(BAD);
        }
        nanoseconds += u32::from(c - b'0') * unit;
        unit /= 10;
    }
    // -1.25 is a quarter before -1: in the second that begins at -2.
    if negative && nanoseconds > 0 {
        return Ok(Time {
            seconds: seconds.checked_sub(1).ok_or(BAD)?,
            nanoseconds: 1_000_000_000 - nanoseconds,
        });
    }
    Ok(Time { seconds, nanoseconds })
}

/// Adds the records of one extended header.
pub fn parse(mut bytes: &[u8], records: &mut Records) -> Result<(), TarError> {
    let mut xattr_bytes: usize = records.xattrs.iter().map(|(k, v)| k.len() + v.len()).sum();
    while !bytes.is_empty() {
        let space = bytes.iter().take(20).position(|&c| c == b' ').ok_or(BAD)?;
        let length = usize::try_from(decimal(&bytes[..space])?).map_err(|_| BAD)?;
        // A record has at least its length, a space, an equals sign, a newline.
        if length < space + 3 || length > bytes.len() || bytes[length - 1] != b'\n' {
            return Err(BAD);
        }
        let record = &bytes[space + 1..length - 1];
        bytes = &bytes[length..];
        let equals = record.iter().position(|&c| c == b'=').ok_or(BAD)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => records.path = Some(value.to_vec()),
            b"linkpath" => records.link = Some(value.to_vec()),
            // No file is larger than a signed 64-bit offset.
            b"size" => {
                records.size =
                    Some(decimal(value).ok().filter(|&n| i64::try_from(n).is_ok()).ok_or(BAD)?)
            }
            b"uid" => records.uid = Some(decimal(value)?),
            b"gid" => records.gid = Some(decimal(value)?),
            b"mtime" => records.mtime = Some(time(value)?),
            _ if key.starts_with(b"GNU.sparse.") => records.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    xattr_bytes += name.len() + value.len();
                    if xattr_bytes > limits::XATTR_BYTES {
                        return Err(TarError::TooLong(
                            "the extended attributes of a file",
                            limits::XATTR_BYTES as u64,
                        ));
                    }
                    if name.is_empty() || name.len() > limits::NAME_BYTES || name.contains(&0) {
                        return Err(BAD);
                    }
                    match records.xattrs.iter_mut().find(|(k, _)| k == name) {
                        Some((_, old)) => *old = value.to_vec(),
                        None => records.xattrs.push((name.to_vec(), value.to_vec())),
                    }
                }
            }
        }
    }
    Ok(())
}

/// Appends one record; its length counts its own digits.
pub fn push(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    loop {
        let with_digits = rest + length.to_string().len();
        if with_digits == length {
            break;
        }
        length = with_digits;
    }
    out.extend(length.to_string().as_bytes());
    out.push(b' ');
    out.extend(key);
    out.push(b'=');
    out.extend(value);
    out.push(b'\n');
}
