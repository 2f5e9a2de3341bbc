//! Numbers at fixed places of tables and headers.
//!
//! The callers have made the buffers at least as long as the structure, so a
//! place outside is a mistake in this program, not in an image.

pub(crate) fn be16(buf: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([buf[at], buf[at + 1]])
}

pub(crate) fn be32(buf: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([buf[at], buf[at + 1], buf[at + 2], buf[at + 3]])
}

pub(crate) fn be64(buf: &[u8], at: usize) -> u64 {
    u64::from(be32(buf, at)) << 32 | u64::from(be32(buf, at + 4))
}

pub(crate) fn le16(buf: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([buf[at], buf[at + 1]])
}

pub(crate) fn le32(buf: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([buf[at], buf[at + 1], buf[at + 2], buf[at + 3]])
}

pub(crate) fn le64(buf: &[u8], at: usize) -> u64 {
    u64::from(le32(buf, at)) | u64::from(le32(buf, at + 4)) << 32
}

pub(crate) fn put(buf: &mut [u8], at: usize, bytes: &[u8]) {
    buf[at..at + bytes.len()].copy_from_slice(bytes);
}
