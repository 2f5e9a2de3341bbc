//! Numbers at fixed places of tables and headers.
//!
//! The callers have made the buffers at least as long as the structure, so a
//! place outside is a mistake in this program, not in an image.
//!
//! Who reads file systems on disks uses them as well.

fn at<const N: usize>(buf: &[u8], place: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&buf[place..place + N]);
    bytes
}

#[must_use]
pub fn be16(buf: &[u8], place: usize) -> u16 {
    u16::from_be_bytes(at(buf, place))
}

#[must_use]
pub fn be32(buf: &[u8], place: usize) -> u32 {
    u32::from_be_bytes(at(buf, place))
}

#[inline]
#[must_use]
pub fn be64(buf: &[u8], place: usize) -> u64 {
    u64::from_be_bytes(at(buf, place))
}

#[must_use]
pub fn le16(buf: &[u8], place: usize) -> u16 {
    u16::from_le_bytes(at(buf, place))
}

#[must_use]
pub fn le32(buf: &[u8], place: usize) -> u32 {
    u32::from_le_bytes(at(buf, place))
}

#[must_use]
pub fn le64(buf: &[u8], place: usize) -> u64 {
    u64::from_le_bytes(at(buf, place))
}

pub(crate) fn put(buf: &mut [u8], at: usize, bytes: &[u8]) {
    buf[at..at + bytes.len()].copy_from_slice(bytes);
}
