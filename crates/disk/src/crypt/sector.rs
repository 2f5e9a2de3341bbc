//! Ciphers over 512-byte sectors, each with its number as tweak.

use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes256, Block};
use sha2::{Digest, Sha256};
use xts_mode::{Xts128, get_tweak_default};

pub(super) const SECTOR: usize = 512;

/// Encrypts and decrypts whole sectors in place.
pub trait SectorCipher: Send + Sync {
    /// `first` is the number of the first sector in `data`.
    fn encrypt(&self, first: u64, data: &mut [u8]);
    fn decrypt(&self, first: u64, data: &mut [u8]);
}

/// AES of either key length.
pub(super) enum Aes {
    Short(Box<Aes128>),
    Long(Box<Aes256>),
}

impl Aes {
    pub(super) fn new(key: &[u8]) -> Option<Self> {
        match key.len() {
            16 => Some(Self::Short(Box::new(Aes128::new_from_slice(key).ok()?))),
            32 => Some(Self::Long(Box::new(Aes256::new_from_slice(key).ok()?))),
            _ => None,
        }
    }

    fn encrypt(&self, block: &mut Block) {
        match self {
            Self::Short(aes) => aes.encrypt_block(block),
            Self::Long(aes) => aes.encrypt_block(block),
        }
    }

    fn decrypt(&self, block: &mut Block) {
        match self {
            Self::Short(aes) => aes.decrypt_block(block),
            Self::Long(aes) => aes.decrypt_block(block),
        }
    }
}

/// AES-XTS with the sector's number as tweak (`xts-plain64`).
pub(super) enum Xts {
    Short(Box<Xts128<Aes128>>),
    Long(Box<Xts128<Aes256>>),
}

impl Xts {
    /// The key is two AES keys, one after the other.
    pub(super) fn new(key: &[u8]) -> Option<Self> {
        let (data, tweak) = key.split_at(key.len() / 2);
        match (data.len(), tweak.len()) {
            (16, 16) => Some(Self::Short(Box::new(Xts128::new(
                Aes128::new_from_slice(data).ok()?,
                Aes128::new_from_slice(tweak).ok()?,
            )))),
            (32, 32) => Some(Self::Long(Box::new(Xts128::new(
                Aes256::new_from_slice(data).ok()?,
                Aes256::new_from_slice(tweak).ok()?,
            )))),
            _ => None,
        }
    }
}

impl SectorCipher for Xts {
    fn encrypt(&self, first: u64, data: &mut [u8]) {
        match self {
            Self::Short(xts) => {
                xts.encrypt_area(data, SECTOR, u128::from(first), get_tweak_default);
            }
            Self::Long(xts) => {
                xts.encrypt_area(data, SECTOR, u128::from(first), get_tweak_default);
            }
        }
    }

    fn decrypt(&self, first: u64, data: &mut [u8]) {
        match self {
            Self::Short(xts) => {
                xts.decrypt_area(data, SECTOR, u128::from(first), get_tweak_default);
            }
            Self::Long(xts) => {
                xts.decrypt_area(data, SECTOR, u128::from(first), get_tweak_default);
            }
        }
    }
}

/// How the first block of a CBC sector is varied.
pub(super) enum Variation {
    /// The sector's number.
    Plain { wide: bool },
    /// The sector's number, encrypted with a hash of the key.
    Essiv(Aes),
}

impl Variation {
    pub(super) fn essiv(key: &[u8]) -> Option<Self> {
        Some(Self::Essiv(Aes::new(&Sha256::digest(key))?))
    }

    fn vector(&self, sector: u64) -> Block {
        let mut vector = Block::default();
        match self {
            Self::Plain { wide: true } => vector[..8].copy_from_slice(&sector.to_le_bytes()),
            Self::Plain { wide: false } => {
                vector[..4].copy_from_slice(&(sector as u32).to_le_bytes());
            }
            Self::Essiv(aes) => {
                vector[..8].copy_from_slice(&sector.to_le_bytes());
                aes.encrypt(&mut vector);
            }
        }
        vector
    }
}

/// AES-CBC over each sector.
pub(super) struct Cbc {
    pub aes: Aes,
    pub variation: Variation,
}

impl SectorCipher for Cbc {
    fn encrypt(&self, first: u64, data: &mut [u8]) {
        for (index, sector) in data.chunks_exact_mut(SECTOR).enumerate() {
            let mut chain = self.variation.vector(first + index as u64);
            for bytes in sector.chunks_exact_mut(16) {
                bytes.iter_mut().zip(&chain).for_each(|(byte, with)| *byte ^= with);
                chain.copy_from_slice(bytes);
                self.aes.encrypt(&mut chain);
                bytes.copy_from_slice(&chain);
            }
        }
    }

    fn decrypt(&self, first: u64, data: &mut [u8]) {
        for (index, sector) in data.chunks_exact_mut(SECTOR).enumerate() {
            let mut chain = self.variation.vector(first + index as u64);
            for bytes in sector.chunks_exact_mut(16) {
                let mut block = Block::default();
                block.copy_from_slice(bytes);
                let next = block;
                self.aes.decrypt(&mut block);
                bytes.copy_from_slice(&block);
                bytes.iter_mut().zip(&chain).for_each(|(byte, with)| *byte ^= with);
                chain = next;
            }
        }
    }
}

/// The AES method of old qcow2 images: the passphrase itself is the key.
pub struct LegacyAes(Cbc);

impl LegacyAes {
    /// The first 16 bytes of the passphrase count.
    pub fn new(passphrase: &[u8]) -> Self {
        let mut key = [0; 16];
        let len = passphrase.len().min(16);
        key[..len].copy_from_slice(&passphrase[..len]);
        let aes = Aes::Short(Box::new(Aes128::new(&key.into())));
        Self(Cbc { aes, variation: Variation::Plain { wide: true } })
    }
}

impl SectorCipher for LegacyAes {
    fn encrypt(&self, first: u64, data: &mut [u8]) {
        self.0.encrypt(first, data);
    }

    fn decrypt(&self, first: u64, data: &mut [u8]) {
        self.0.decrypt(first, data);
    }
}
