//! Encryption of disks, sector by sector: LUKS 1, and the AES method of old
//! qcow2 images.

mod luks;
mod sector;

pub use luks::{Luks, LuksOptions, Rounds};
pub use sector::{LegacyAes, SectorCipher};
