//! A LUKS volume as a whole image: a header, then encrypted sectors.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::crypt::{Luks, LuksOptions, SectorCipher};
use crate::error::{Blame, Error, Result};
use crate::format::{Below, Detail, Extent, Format, FormatKind, Preallocation, State};
use crate::storage::{SharedStorage, Storage, read_vec};

/// The header with the key material of all slots is smaller than this.
const MAX_HEADER: u64 = 16 << 20;

/// An encrypted volume.
pub struct LuksVolume {
    storages: [SharedStorage; 1],
    header: Luks,
    cipher: Option<Box<dyn SectorCipher>>,
    size: AtomicU64,
    blame: Blame,
}

impl LuksVolume {
    /// Opens a volume; without a passphrase only for its facts.
    pub fn open(
        storage: SharedStorage,
        passphrase: Option<&[u8]>,
        facts_only: bool,
    ) -> Result<Self> {
        let blame = Blame::new("luks", storage.name());
        let file_len = storage.len()?;
        let bytes = read_vec(&*storage, 0, file_len.min(MAX_HEADER) as usize)?;
        let header = Luks::parse(&bytes, &blame)?;
        let payload = header.payload();
        let size = file_len
            .checked_sub(payload)
            .ok_or_else(|| blame.corrupt("the contents lie outside the file"))?;
        let cipher = match passphrase {
            _ if facts_only => None,
            Some(passphrase) => Some(header.unlock(&bytes, passphrase, &blame)?),
            None => {
                return Err(Error::Secret { name: blame.name, why: "give its passphrase" });
            }
        };
        Ok(Self { storages: [storage], header, cipher, size: AtomicU64::new(size), blame })
    }

    /// Writes a volume of zeroes that are not encrypted yet: its contents are
    /// random until they are written.
    pub fn create(
        storage: &dyn Storage,
        size: u64,
        passphrase: &[u8],
        options: &LuksOptions,
    ) -> Result<()> {
        let (bytes, payload) = Luks::create(options, passphrase)?;
        storage.set_len(payload + size)?;
        storage.write_at(0, &bytes)?;
        storage.flush()
    }

    fn cipher(&self) -> Result<&dyn SectorCipher> {
        self.cipher.as_deref().ok_or_else(|| Error::Secret {
            name: self.blame.name.clone(),
            why: "it was opened without its passphrase",
        })
    }
}

impl Format for LuksVolume {
    fn kind(&self) -> FormatKind {
        FormatKind::Luks
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn cluster_size(&self) -> u64 {
        4096
    }

    fn storages(&self) -> &[SharedStorage] {
        &self.storages
    }

    fn map(&self, _offset: u64, len: u64) -> Result<Extent> {
        Ok(Extent { len, state: State::Packed { compressed: false } })
    }

    fn read_packed(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (start, end) = (offset & !511, (offset + buf.len() as u64).next_multiple_of(512));
        let at = self.header.payload() + start;
        let mut sectors = read_vec(&*self.storages[0], at, (end - start) as usize)?;
        self.cipher()?.decrypt(start / 512, &mut sectors);
        let skip = (offset - start) as usize;
        buf.copy_from_slice(&sectors[skip..skip + buf.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], _below: &dyn Below) -> Result<()> {
        let (start, end) = (offset & !511, (offset + data.len() as u64).next_multiple_of(512));
        let mut sectors = vec![0; (end - start) as usize];
        if end - start != data.len() as u64 {
            self.read_packed(start, &mut sectors)?;
        }
        let skip = (offset - start) as usize;
        sectors[skip..skip + data.len()].copy_from_slice(data);
        self.cipher()?.encrypt(start / 512, &mut sectors);
        self.storages[0].write_at(self.header.payload() + start, &sectors)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool, below: &dyn Below) -> Result<()> {
        let mut at = offset;
        while at < offset + len {
            let step = (offset + len - at).min(1 << 20);
            self.write(at, &vec![0; step as usize], below)?;
            at += step;
        }
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64, _below: &dyn Below) -> Result<()> {
        // A hole would read as noise: the contents stay.
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.storages[0].flush()
    }

    fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        if preallocation != Preallocation::Off {
            return Err(Error::option("preallocation", "LUKS volumes grow without"));
        }
        self.storages[0].set_len(self.header.payload() + size)?;
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }

    fn details(&self) -> Vec<(String, Detail)> {
        let (cipher, hash, keys) = self.header.description();
        vec![
            ("cipher".to_owned(), Detail::Text(cipher)),
            ("hash".to_owned(), Detail::text(hash)),
            ("payload-offset".to_owned(), Detail::Number(self.header.payload())),
            ("active-keyslots".to_owned(), Detail::Number(keys as u64)),
        ]
    }

    fn starts_zeroed(&self) -> bool {
        false
    }
}
