//! LUKS version 1: eight key slots, each of which hides the disk's key behind
//! a passphrase.

use hmac::Hmac;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

use super::sector::{Aes, Cbc, SECTOR, SectorCipher, Variation, Xts};
use crate::bytes::{be16, be32, put};
use crate::error::{Blame, Error, Result};

const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
const HEADER_LEN: usize = 592;
const SLOTS: usize = 8;
const SLOT_AT: usize = 208;
const SLOT_LEN: usize = 48;
const ACTIVE: u32 = 0x00ac_71f3;
const INACTIVE: u32 = 0x0000_dead;
const STRIPES: u32 = 4000;
const DIGEST_LEN: usize = 20;
/// More would let a header keep a reader busy for hours.
const MAX_ITERATIONS: u32 = 100_000_000;

/// The hash that passphrases go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha1,
    Sha256,
    Sha512,
}

impl Hash {
    fn named(name: &str) -> Option<Self> {
        match name {
            "sha1" => Some(Self::Sha1),
            "sha256" => Some(Self::Sha256),
            "sha512" => Some(Self::Sha512),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn derive(self, passphrase: &[u8], salt: &[u8], rounds: u32, key: &mut [u8]) {
        // An HMAC takes keys of any length: the only error cannot occur.
        let _infallible = match self {
            Self::Sha1 => pbkdf2::pbkdf2::<Hmac<Sha1>>(passphrase, salt, rounds, key).is_ok(),
            Self::Sha256 => pbkdf2::pbkdf2::<Hmac<Sha256>>(passphrase, salt, rounds, key).is_ok(),
            Self::Sha512 => pbkdf2::pbkdf2::<Hmac<Sha512>>(passphrase, salt, rounds, key).is_ok(),
        };
    }

    fn digest(self, index: u32, data: &[u8]) -> Vec<u8> {
        let index = index.to_be_bytes();
        match self {
            Self::Sha1 => Sha1::new().chain_update(index).chain_update(data).finalize().to_vec(),
            Self::Sha256 => {
                Sha256::new().chain_update(index).chain_update(data).finalize().to_vec()
            }
            Self::Sha512 => {
                Sha512::new().chain_update(index).chain_update(data).finalize().to_vec()
            }
        }
    }

    const fn len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// Mixes a stripe so that every bit of it depends on every other.
    fn diffuse(self, stripe: &mut [u8]) {
        for (index, chunk) in stripe.chunks_mut(self.len()).enumerate() {
            let digest = self.digest(index as u32, chunk);
            let len = chunk.len();
            chunk.copy_from_slice(&digest[..len]);
        }
    }
}

/// How long deriving a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounds {
    Number(u32),
    /// As many as this machine does in that time.
    Milliseconds(u32),
}

/// What can be chosen for a new header.
#[derive(Clone, Copy, Debug)]
pub struct LuksOptions {
    pub rounds: Rounds,
    /// Of one AES key; XTS has two of them.
    pub key_bits: usize,
    /// One of [`LuksOptions::MODES`].
    pub mode: &'static str,
    /// One of [`LuksOptions::HASHES`].
    pub hash: &'static str,
}

impl LuksOptions {
    pub const MODES: [&'static str; 5] =
        ["xts-plain64", "xts-plain", "cbc-plain64", "cbc-plain", "cbc-essiv:sha256"];
    pub const HASHES: [&'static str; 3] = ["sha1", "sha256", "sha512"];
}

impl Default for LuksOptions {
    fn default() -> Self {
        Self { rounds: Rounds::Number(400_000), key_bits: 256, mode: "xts-plain64", hash: "sha256" }
    }
}

impl Rounds {
    /// Below that, a key is not worth its name.
    const LEAST: u32 = 1000;

    fn count(self, hash: Hash) -> u32 {
        let count = match self {
            Self::Number(count) => count,
            Self::Milliseconds(wanted) => {
                const TRIED: u32 = 20_000;
                let start = std::time::Instant::now();
                hash.derive(b"passphrase", &[0; 32], TRIED, &mut [0; 64]);
                let taken = start.elapsed().as_secs_f64() * 1000.0;
                (f64::from(wanted) * f64::from(TRIED) / taken.max(0.001)) as u32
            }
        };
        count.clamp(Self::LEAST, MAX_ITERATIONS)
    }
}

struct Slot {
    active: bool,
    iterations: u32,
    salt: [u8; 32],
    material: usize,
    stripes: u32,
}

/// A header that was read.
pub struct Luks {
    cipher: String,
    mode: String,
    hash: Hash,
    payload: u64,
    key_len: usize,
    digest: [u8; DIGEST_LEN],
    salt: [u8; 32],
    iterations: u32,
    slots: Vec<Slot>,
}

/// The contents' cipher, after a passphrase opened a slot.
pub type Unlocked = Box<dyn SectorCipher>;

impl Luks {
    /// Reads a header. `bytes` includes the slots' key material.
    pub fn parse(bytes: &[u8], blame: &Blame) -> Result<Self> {
        if bytes.len() < HEADER_LEN || &bytes[..6] != MAGIC {
            return Err(blame.corrupt("there is no LUKS header"));
        }
        if be16(bytes, 6) != 1 {
            return Err(blame.unsupported(format!("LUKS version {}", be16(bytes, 6))));
        }
        let text = |at: usize| {
            let field = &bytes[at..at + 32];
            let end = field.iter().position(|&byte| byte == 0).unwrap_or(32);
            String::from_utf8_lossy(&field[..end]).into_owned()
        };
        let hash_name = text(72);
        let hash = Hash::named(&hash_name)
            .ok_or_else(|| blame.unsupported(format!("LUKS hash {hash_name}")))?;
        let key_len = be32(bytes, 108) as usize;
        if !matches!(key_len, 16 | 32 | 64) {
            return Err(blame.unsupported(format!("a LUKS key of {key_len} bytes")));
        }
        let mut luks = Self {
            cipher: text(8),
            mode: text(40),
            hash,
            payload: u64::from(be32(bytes, 104)) * SECTOR as u64,
            key_len,
            digest: [0; DIGEST_LEN],
            salt: [0; 32],
            iterations: be32(bytes, 164),
            slots: Vec::with_capacity(SLOTS),
        };
        luks.digest.copy_from_slice(&bytes[112..132]);
        luks.salt.copy_from_slice(&bytes[132..164]);
        for index in 0..SLOTS {
            let slot = &bytes[SLOT_AT + index * SLOT_LEN..][..SLOT_LEN];
            let mut salt = [0; 32];
            salt.copy_from_slice(&slot[8..40]);
            luks.slots.push(Slot {
                active: be32(slot, 0) == ACTIVE,
                iterations: be32(slot, 4),
                salt,
                material: be32(slot, 40) as usize * SECTOR,
                stripes: be32(slot, 44),
            });
        }
        let worst = luks.slots.iter().map(|slot| slot.iterations).max().unwrap_or(0);
        if worst.max(luks.iterations) > MAX_ITERATIONS {
            return Err(blame.unsupported("more rounds of key derivation than is reasonable"));
        }
        Ok(luks)
    }

    /// Where the contents begin, in bytes, when LUKS is the whole image.
    pub fn payload(&self) -> u64 {
        self.payload
    }

    /// How contents are encrypted, for people.
    pub fn description(&self) -> (String, &'static str, usize) {
        let keys = self.slots.iter().filter(|slot| slot.active).count();
        (format!("{}-{}-{}", self.cipher, self.key_len * 8, self.mode), self.hash.name(), keys)
    }

    /// Finds the slot that a passphrase opens.
    pub fn unlock(&self, bytes: &[u8], passphrase: &[u8], blame: &Blame) -> Result<Unlocked> {
        for slot in self.slots.iter().filter(|slot| slot.active) {
            if let Some(key) = self.try_slot(slot, bytes, passphrase, blame)? {
                return self.cipher(&key, blame);
            }
        }
        Err(Error::Secret { name: blame.name.clone(), why: "the passphrase opens no key slot" })
    }

    fn cipher(&self, key: &[u8], blame: &Blame) -> Result<Unlocked> {
        let unknown =
            || blame.unsupported(format!("LUKS cipher {} in mode {}", self.cipher, self.mode));
        if self.cipher != "aes" {
            return Err(unknown());
        }
        let cbc = |variation: Option<Variation>| -> Option<Unlocked> {
            Some(Box::new(Cbc { aes: Aes::new(key)?, variation: variation? }))
        };
        let cipher = match self.mode.as_str() {
            "xts-plain64" | "xts-plain" => Xts::new(key).map(|xts| Box::new(xts) as Unlocked),
            "cbc-plain64" => cbc(Some(Variation::Plain { wide: true })),
            "cbc-plain" => cbc(Some(Variation::Plain { wide: false })),
            "cbc-essiv:sha256" => cbc(Variation::essiv(key)),
            _ => None,
        };
        cipher.ok_or_else(unknown)
    }

    fn try_slot(
        &self,
        slot: &Slot,
        bytes: &[u8],
        passphrase: &[u8],
        blame: &Blame,
    ) -> Result<Option<Vec<u8>>> {
        let len = self.key_len * slot.stripes as usize;
        let material = bytes.get(slot.material..slot.material.saturating_add(len));
        let Some(material) = material.filter(|_| slot.stripes > 0) else {
            return Err(blame.corrupt("LUKS key material lies outside the header"));
        };
        let mut slot_key = vec![0; self.key_len];
        self.hash.derive(passphrase, &slot.salt, slot.iterations.max(1), &mut slot_key);
        let mut split = material.to_vec();
        split.resize(len.next_multiple_of(SECTOR), 0);
        let tail = bytes.get(slot.material + len..slot.material + split.len());
        if let Some(tail) = tail {
            split[len..].copy_from_slice(tail);
        }
        self.cipher(&slot_key, blame)?.decrypt(0, &mut split);
        let key = self.merge(&split[..len]);
        let mut digest = [0; DIGEST_LEN];
        self.hash.derive(&key, &self.salt, self.iterations.max(1), &mut digest);
        Ok((digest == self.digest).then_some(key))
    }

    /// Puts a key together again that was spread over stripes.
    fn merge(&self, split: &[u8]) -> Vec<u8> {
        let mut key = vec![0; self.key_len];
        let stripes = split.chunks_exact(self.key_len);
        let last = stripes.len().saturating_sub(1);
        for (index, stripe) in stripes.enumerate() {
            key.iter_mut().zip(stripe).for_each(|(byte, with)| *byte ^= with);
            if index < last {
                self.hash.diffuse(&mut key);
            }
        }
        key
    }

    /// A new header with one passphrase: its bytes with the key material, and
    /// where contents begin.
    pub fn create(options: &LuksOptions, passphrase: &[u8]) -> Result<(Vec<u8>, u64)> {
        let keys = if options.mode.starts_with("xts") { 2 } else { 1 };
        let key_len = options.key_bits / 8 * keys;
        let unknown = || Error::option("hash-alg", format!("'{}' is not known", options.hash));
        let hash = Hash::named(options.hash).ok_or_else(unknown)?;
        let material_len = (key_len * STRIPES as usize).next_multiple_of(4096);
        let payload = (4096 + SLOTS * material_len) as u64;
        let mut bytes = vec![0; 4096 + material_len];
        let (mut key, mut digest_salt, mut slot_salt) = (vec![0; key_len], [0; 32], [0; 32]);
        fill_random(&mut key)?;
        fill_random(&mut digest_salt)?;
        fill_random(&mut slot_salt)?;
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, 6, &1_u16.to_be_bytes());
        put(&mut bytes, 8, b"aes");
        put(&mut bytes, 40, options.mode.as_bytes());
        put(&mut bytes, 72, hash.name().as_bytes());
        put(&mut bytes, 104, &((payload / SECTOR as u64) as u32).to_be_bytes());
        put(&mut bytes, 108, &(key_len as u32).to_be_bytes());
        let rounds = options.rounds.count(hash);
        let mut digest = [0; DIGEST_LEN];
        let digest_rounds = (rounds / 8).max(Rounds::LEAST);
        hash.derive(&key, &digest_salt, digest_rounds, &mut digest);
        put(&mut bytes, 112, &digest);
        put(&mut bytes, 132, &digest_salt);
        put(&mut bytes, 164, &digest_rounds.to_be_bytes());
        put(&mut bytes, 168, uuid::Uuid::new_v4().to_string().as_bytes());
        for index in 0..SLOTS {
            let at = SLOT_AT + index * SLOT_LEN;
            let material = ((4096 + index * material_len) / SECTOR) as u32;
            put(&mut bytes, at, &if index == 0 { ACTIVE } else { INACTIVE }.to_be_bytes());
            put(&mut bytes, at + 40, &material.to_be_bytes());
            put(&mut bytes, at + 44, &STRIPES.to_be_bytes());
        }
        put(&mut bytes, SLOT_AT + 4, &rounds.to_be_bytes());
        put(&mut bytes, SLOT_AT + 8, &slot_salt);
        let mut slot_key = vec![0; key_len];
        hash.derive(passphrase, &slot_salt, rounds, &mut slot_key);
        let mut split = spread(hash, &key)?;
        split.resize(split.len().next_multiple_of(SECTOR), 0);
        // The header says how contents and key material are encrypted.
        let blame = Blame::new("luks", "a new volume");
        Self::parse(&bytes, &blame)?.cipher(&slot_key, &blame)?.encrypt(0, &mut split);
        put(&mut bytes, 4096, &split);
        Ok((bytes, payload))
    }
}

/// Spreads a key over stripes, all of which are needed to get it back.
fn spread(hash: Hash, key: &[u8]) -> Result<Vec<u8>> {
    let mut split = vec![0; key.len() * STRIPES as usize];
    let (random, last) = split.split_at_mut(key.len() * (STRIPES as usize - 1));
    fill_random(random)?;
    let mut mixed = vec![0; key.len()];
    for stripe in random.chunks_exact(key.len()) {
        mixed.iter_mut().zip(stripe).for_each(|(byte, with)| *byte ^= with);
        hash.diffuse(&mut mixed);
    }
    for ((byte, mixed), key) in last.iter_mut().zip(&mixed).zip(key) {
        *byte = mixed ^ key;
    }
    Ok(split)
}

fn fill_random(buf: &mut [u8]) -> Result<()> {
    use std::io::Read;
    let name = "/dev/urandom";
    std::fs::File::open(name)
        .and_then(|mut file| file.read_exact(buf))
        .map_err(|e| Error::io("read", name, e))
}

#[cfg(test)]
mod tests;
