//! The 512-byte header block.

use super::TarError;

pub const BLOCK: usize = 512;

/// The fields of one header block.
#[derive(Debug)]
pub struct Header {
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: u8,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub size: u64,
    pub mtime: i64,
    pub major: u32,
    pub minor: u32,
}

/// What a block turned out to be.
pub enum Parsed {
    Header(Header),
    /// All zeros: one half of the end mark.
    Zero,
}

fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&c| c == 0).unwrap_or(field.len())]
}

/// Octal digits, or the GNU form: a set top bit, then a big-endian number.
fn number(field: &[u8]) -> Result<i64, TarError> {
    const BAD: TarError = TarError::Damaged("a number in a header is none");
    if field[0] & 0x80 != 0 {
        // Sign-extended from bit 6 of the first byte.
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 =
            if negative { i128::from(field[0] | 0x80) - 256 } else { i128::from(field[0] & 0x7f) };
        for &byte in &field[1..] {
            value = value << 8 | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| BAD);
    }
    let digits = field.iter().skip_while(|&&c| c == b' ');
    let mut value: i64 = 0;
    for &c in digits.take_while(|&&c| c != 0 && c != b' ') {
        if !(b'0'..=b'7').contains(&c) {
            return Err(BAD);
        }
        value = value.checked_mul(8).and_then(|v| v.checked_add(i64::from(c - b'0'))).ok_or(BAD)?;
    }
    Ok(value)
}

fn unsigned(field: &[u8]) -> Result<u64, TarError> {
    u64::try_from(number(field)?).map_err(|_| TarError::Damaged("a negative number in a header"))
}

pub fn parse(block: &[u8; BLOCK]) -> Result<Parsed, TarError> {
    if block.iter().all(|&c| c == 0) {
        return Ok(Parsed::Zero);
    }
    let stored = unsigned(&block[148..156])?;
    let sum = |add: fn(u8) -> i64| -> i64 {
        let outside = block[..148].iter().chain(&block[156..]).map(|&c| add(c)).sum::<i64>();
        outside + 8 * i64::from(b' ')
    };
    // Some old writers summed signed bytes.
    let stored = stored as i64;
    if stored != sum(i64::from) && stored != sum(|c| i64::from(c as i8)) {
        return Err(TarError::Damaged("a header's checksum is wrong"));
    }
    let mut name = text(&block[..100]).to_vec();
    // POSIX has a prefix there; GNU has other things in its place.
    if &block[257..263] == b"ustar\0" {
        let prefix = text(&block[345..500]);
        if !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
    }
    let kind = block[156];
    let is_device = kind == b'3' || kind == b'4';
    let device = |field: &[u8]| -> Result<u32, TarError> {
        if !is_device {
            return Ok(0);
        }
        u32::try_from(unsigned(field)?).map_err(|_| TarError::Damaged("a device number too large"))
    };
    Ok(Parsed::Header(Header {
        name,
        link: text(&block[157..257]).to_vec(),
        kind,
        mode: (unsigned(&block[100..108])? & 0o7777) as u32,
        uid: unsigned(&block[108..116])?,
        gid: unsigned(&block[116..124])?,
        size: unsigned(&block[124..136])?,
        mtime: number(&block[136..148])?,
        major: device(&block[329..337])?,
        minor: device(&block[337..345])?,
    }))
}

/// Puts a value into a field as octal digits with a closing NUL; false if it
/// does not fit.
fn put(field: &mut [u8], value: u64) -> bool {
    let width = field.len() - 1;
    let text = format!("{value:0width$o}");
    if text.len() > width {
        return false;
    }
    field[..width].copy_from_slice(text.as_bytes());
    true
}

/// What did not fit into a header's fields and needs a PAX record.
#[derive(Default)]
pub struct Overflow {
    pub path: bool,
    pub link: bool,
    pub uid: bool,
    pub gid: bool,
    pub size: bool,
    pub mtime: bool,
}

/// Splits a long path into prefix and name at a slash, as ustar wants it.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 {
        return Some((b"", path));
    }
    let at = (1..path.len().min(156)).rev().find(|&i| path[i] == b'/' && i + 1 < path.len())?;
    let (prefix, name) = (&path[..at], &path[at + 1..]);
    (name.len() <= 100).then_some((prefix, name))
}

/// Makes a header block, and says which fields need a PAX record.
pub fn build(header: &Header) -> ([u8; BLOCK], Overflow) {
    let mut block = [0; BLOCK];
    let mut overflow = Overflow::default();
    let cut = |bytes: &[u8]| bytes.len().min(100);
    match split(&header.name) {
        Some((prefix, name)) => {
            block[..name.len()].copy_from_slice(name);
            block[345..345 + prefix.len()].copy_from_slice(prefix);
        }
        None => {
            overflow.path = true;
            block[..cut(&header.name)].copy_from_slice(&header.name[..cut(&header.name)]);
        }
    }
    overflow.link = header.link.len() > 100;
    block[157..157 + cut(&header.link)].copy_from_slice(&header.link[..cut(&header.link)]);
    block[156] = header.kind;
    put(&mut block[100..108], u64::from(header.mode));
    overflow.uid = !put(&mut block[108..116], header.uid);
    overflow.gid = !put(&mut block[116..124], header.gid);
    overflow.size = !put(&mut block[124..136], header.size);
    overflow.mtime =
        u64::try_from(header.mtime).map_or(true, |mtime| !put(&mut block[136..148], mtime));
    put(&mut block[329..337], u64::from(header.major));
    put(&mut block[337..345], u64::from(header.minor));
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&c| u64::from(c)).sum();
    block[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    block[154] = 0;
    (block, overflow)
}
