//! The on-disk format, as the kernel's `fs/erofs/erofs_fs.h` defines it. All
//! numbers are little-endian. Only what we write is here: uncompressed files,
//! extended inodes (which alone have nanoseconds and 32-bit owners), inline
//! attributes.

use crate::error::LayerError;

pub const BLOCK: u64 = 4096;
pub const SUPER_OFFSET: usize = 1024;
const MAGIC: u32 = 0xE0F5_E1E2;
/// Inode numbers count units of this many bytes from the metadata's start.
pub const SLOT: u64 = 32;
pub const INODE: u64 = 64;
pub const DIRENT: usize = 12;

/// The superblock carries a checksum.
const COMPAT_CHECKSUM: u32 = 1;
/// Times are modification times.
const COMPAT_MTIME: u32 = 2;

/// How an inode's data is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// In whole blocks.
    Plain,
    /// In whole blocks, but for the last bytes, which follow the inode.
    Inline,
}

pub struct Superblock {
    pub root_nid: u16,
    pub inodes: u64,
    pub blocks: u32,
    pub meta_block: u32,
    pub uuid: [u8; 16],
}

impl Superblock {
    /// The file system's first block.
    pub fn encode(&self) -> [u8; BLOCK as usize] {
        let mut block = [0; BLOCK as usize];
        let sb = &mut block[SUPER_OFFSET..];
        sb[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        sb[8..12].copy_from_slice(&(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        sb[12] = BLOCK.trailing_zeros() as u8;
        sb[14..16].copy_from_slice(&self.root_nid.to_le_bytes());
        sb[16..24].copy_from_slice(&self.inodes.to_le_bytes());
        sb[36..40].copy_from_slice(&self.blocks.to_le_bytes());
        sb[40..44].copy_from_slice(&self.meta_block.to_le_bytes());
        sb[48..64].copy_from_slice(&self.uuid);
        let checksum = crc32c(sb);
        sb[4..8].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// CRC-32C without the final inversion, as the kernel stores it here.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |mut crc, &byte| {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
        }
        crc
    })
}

pub struct Inode {
    pub placement: Placement,
    /// Bytes of attributes behind the inode, as `xattr_bytes` made them.
    pub xattr_size: usize,
    /// File type and permissions.
    pub mode: u16,
    pub size: u64,
    /// First block of data, or a device number.
    pub data: u32,
    pub number: u32,
    pub uid: u32,
    pub gid: u32,
    pub seconds: i64,
    pub nanoseconds: u32,
    pub links: u32,
}

impl Inode {
    pub fn encode(&self) -> [u8; INODE as usize] {
        let mut bytes = [0; INODE as usize];
        // Bit 0 marks the extended form; the placement follows.
        let placement: u16 = match self.placement {
            Placement::Plain => 0,
            Placement::Inline => 2,
        };
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &(1 | placement << 1).to_le_bytes());
        put(2, &xattr_count(self.xattr_size).to_le_bytes());
        put(4, &self.mode.to_le_bytes());
        put(8, &self.size.to_le_bytes());
        put(16, &self.data.to_le_bytes());
        put(20, &self.number.to_le_bytes());
        put(24, &self.uid.to_le_bytes());
        put(28, &self.gid.to_le_bytes());
        put(32, &self.seconds.to_le_bytes());
        put(40, &self.nanoseconds.to_le_bytes());
        put(44, &self.links.to_le_bytes());
        bytes
    }
}

/// The header in front of the attributes.
const XATTR_HEADER: usize = 12;

/// What the inode's count field says: the header counts as one unit.
fn xattr_count(size: usize) -> u16 {
    match size {
        0 => 0,
        _ => ((size - XATTR_HEADER) / 4 + 1) as u16,
    }
}

/// Namespaces of attributes and their numbers. A whole name in place of a
/// prefix has nothing behind it.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Encodes the attributes of a file; empty if it has none.
pub fn xattr_bytes(xattrs: &[(Vec<u8>, Vec<u8>)], path: &[u8]) -> Result<Box<[u8]>, LayerError> {
    if xattrs.is_empty() {
        return Ok(Box::default());
    }
    let mut coded = Vec::with_capacity(xattrs.len());
    for (key, value) in xattrs {
        let found = PREFIXES.iter().find_map(|(prefix, index)| {
            let rest = key.strip_prefix(*prefix)?;
            // ACLs are whole names, the others are prefixes.
            let whole = matches!(index, 2 | 3);
            (whole == rest.is_empty()).then_some((*index, rest))
        });
        let Some((index, rest)) = found else {
            return Err(LayerError::hostile(path, "has an attribute in no known namespace"));
        };
        let (Ok(name_length), Ok(value_length)) =
            (u8::try_from(rest.len()), u16::try_from(value.len()))
        else {
            return Err(LayerError::hostile(path, "has an attribute longer than 65535 bytes"));
        };
        coded.push((index, name_length, value_length, rest, value));
    }
    coded.sort();
    let mut bytes = vec![0; XATTR_HEADER];
    for (index, name_length, value_length, name, value) in coded {
        bytes.extend([name_length, index]);
        bytes.extend(value_length.to_le_bytes());
        bytes.extend(name);
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    Ok(bytes.into())
}

/// A device number as the kernel encodes it in 32 bits.
pub fn device_number(device: crate::tar::Device) -> u32 {
    let (major, minor) = (device.major, device.minor);
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// Types of directory entries.
pub mod file_type {
    pub const REGULAR: u8 = 1;
    pub const DIRECTORY: u8 = 2;
    pub const CHARACTER: u8 = 3;
    pub const BLOCK: u8 = 4;
    pub const FIFO: u8 = 5;
    pub const SYMLINK: u8 = 7;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_castagnoli() {
        // The check value of the catalogue, before its final inversion.
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn unknown_namespaces_are_refused() {
        let xattr = |key: &[u8]| xattr_bytes(&[(key.to_vec(), b"v".to_vec())], b"f");
        assert!(xattr(b"user.a").is_ok());
        assert!(xattr(b"system.posix_acl_access").is_ok());
        assert!(xattr(b"system.nfs4_acl").is_err());
        assert!(xattr(b"user.").is_err());
        assert!(xattr_bytes(&[(b"user.a".to_vec(), vec![0; 65_536])], b"f").is_err());
    }
}
