//! What is in a stretch of a disk that has no file system which is read, for those who are to
//! do something about it.

use guise_disk::bytes::le32;

use crate::volume::Stretch;

/// Bytes at a place, and what has them there.
const SIGNS: [(u64, &[u8], &str); 19] = [
    (0, b"LUKS\xba\xbe", "LUKS (encrypted)"),
    (24, b"LVM2 001", "LVM"),
    (512 + 24, b"LVM2 001", "LVM"),
    (1024 + 24, b"LVM2 001", "LVM"),
    (1536 + 24, b"LVM2 001", "LVM"),
    (0, b"XFSB", "XFS"),
    (0x1_0040, b"_BHRfS_M", "Btrfs"),
    (0, b"hsqs", "SquashFS"),
    (1024, b"\xe2\xe1\xf5\xe0", "EROFS"),
    (1024, b"\x10\x20\xf5\xf2", "F2FS"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
    (82, b"FAT32   ", "FAT"),
    (54, b"FAT1", "FAT"),
    (0x8001, b"CD001", "a CD (ISO 9660)"),
    (4086, b"SWAPSPACE2", "swap space"),
    (4096, b"\xfc\x4e\x2b\xa9", "Linux RAID"),
    (0, b"\xfc\x4e\x2b\xa9", "Linux RAID"),
    (32, b"NXSB", "APFS"),
];
/// What kernels begin with.
const KERNEL_FILE: (usize, u32) = (0x202, 0x5372_6448);

/// The name of what is there, as well as it can be told.
pub fn name(stretch: &Stretch) -> &'static str {
    let begins = |(at, sign, _): &&(u64, &[u8], &str)| {
        let mut bytes = vec![0; sign.len()];
        stretch.read(*at, &mut bytes).is_ok() && bytes == *sign
    };
    if let Some((_, _, name)) = SIGNS.iter().find(begins) {
        return name;
    }
    let mut first = vec![0; stretch.length().min(4096) as usize];
    if stretch.read(0, &mut first).is_err() {
        return "what cannot be read";
    }
    let (at, sign) = KERNEL_FILE;
    if first.len() >= at + 4 && le32(&first, at) == sign {
        return "a kernel and no disk";
    }
    match first.iter().all(|byte| *byte == 0) {
        true => "nothing",
        false => "something unknown",
    }
}
