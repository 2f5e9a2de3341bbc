//! Numbers of the protocol, and reading and writing them.

use std::io::{self, Read, Write};

pub(super) const MAGIC: u64 = 0x4e42_444d_4147_4943;
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(super) const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const SIMPLE_MAGIC: u32 = 0x6744_6698;
pub(super) const STRUCTURED_MAGIC: u32 = 0x668e_33ef;

/// The largest read or write, and the largest option.
pub(super) const MAX_TRANSFER: u32 = 32 << 20;
pub(super) const MAX_OPTION: u32 = 64 << 10;

pub(super) fn u16_of(input: &mut dyn Read) -> io::Result<u16> {
    let mut bytes = [0; 2];
    input.read_exact(&mut bytes)?;
    Ok(u16::from_be_bytes(bytes))
}

pub(super) fn u32_of(input: &mut dyn Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

pub(super) fn u64_of(input: &mut dyn Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

pub(super) fn protocol_error(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// A structured reply's chunk.
pub(super) fn chunk(
    output: &mut dyn Write,
    cookie: u64,
    done: bool,
    kind: u16,
    parts: &[&[u8]],
) -> io::Result<()> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    output.write_all(&STRUCTURED_MAGIC.to_be_bytes())?;
    output.write_all(&u16::from(done).to_be_bytes())?;
    output.write_all(&kind.to_be_bytes())?;
    output.write_all(&cookie.to_be_bytes())?;
    output.write_all(&(len as u32).to_be_bytes())?;
    parts.iter().try_for_each(|part| output.write_all(part))
}
