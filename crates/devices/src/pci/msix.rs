//! MSI-X: a table of messages in a BAR of the function, and a bit for each message
//! that had to wait because it was masked.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guise_engine::Msi;
use serde::{Deserialize, Serialize};

use crate::bus::{answer, value};
use crate::irq::MsiSink;

/// Bytes of one table entry.
pub const ENTRY_SIZE: u64 = 16;
/// The most messages that a function can have.
pub const MAX_VECTORS: u16 = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    address: u64,
    data: u32,
    masked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    entries: Vec<Entry>,
    pending: Vec<u64>,
    enabled: bool,
    masked: bool,
}

/// A function's messages.
pub struct Msix {
    sink: Arc<dyn MsiSink>,
    vectors: u16,
    state: Mutex<MsixState>,
}

impl Msix {
    /// Between 1 and [`MAX_VECTORS`] messages, all masked.
    pub fn new(vectors: u16, sink: Arc<dyn MsiSink>) -> Arc<Self> {
        let vectors = vectors.clamp(1, MAX_VECTORS);
        Arc::new(Self { sink, vectors, state: Mutex::new(MsixState::new(vectors)) })
    }

    fn lock(&self) -> MutexGuard<'_, MsixState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn vectors(&self) -> u16 {
        self.vectors
    }

    pub fn table_size(&self) -> u64 {
        u64::from(self.vectors) * ENTRY_SIZE
    }

    pub fn pending_size(&self) -> u64 {
        u64::from(self.vectors.div_ceil(64)) * 8
    }

    /// Whether the guest chose MSI-X over INTx.
    pub fn enabled(&self) -> bool {
        self.lock().enabled
    }

    /// Sends a message, or keeps it until it is unmasked. Does nothing while MSI-X is
    /// disabled: the function uses INTx then.
    pub fn notify(&self, vector: u16) {
        let mut state = self.lock();
        let Some(entry) = state.entries.get(usize::from(vector)).copied() else { return };
        if !state.enabled {
            return;
        }
        if state.masked || entry.masked {
            state.pending[usize::from(vector) / 64] |= 1 << (vector % 64);
            return;
        }
        drop(state);
        self.sink.signal(Msi { address: entry.address, data: entry.data });
    }

    /// Applies the message control register.
    pub fn set_control(&self, enabled: bool, masked: bool) {
        let mut state = self.lock();
        if (state.enabled, state.masked) == (enabled, masked) {
            return;
        }
        (state.enabled, state.masked) = (enabled, masked);
        let due = state.take_due();
        drop(state);
        self.send(due);
    }

    fn send(&self, due: Vec<Msi>) {
        for msi in due {
            self.sink.signal(msi);
        }
    }

    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        for (at, byte) in (offset..).zip(data) {
            let entry = state.entries.get((at / ENTRY_SIZE) as usize);
            *byte = entry.map_or(0, |entry| entry.bytes()[(at % ENTRY_SIZE) as usize]);
        }
    }

    pub fn table_write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        for (at, &byte) in (offset..).zip(data) {
            if let Some(entry) = state.entries.get_mut((at / ENTRY_SIZE) as usize) {
                let mut bytes = entry.bytes();
                bytes[(at % ENTRY_SIZE) as usize] = byte;
                *entry = Entry::from_bytes(&bytes);
            }
        }
        let due = state.take_due();
        drop(state);
        self.send(due);
    }

    pub fn pending_read(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        for (at, byte) in (offset..).zip(data) {
            let word = state.pending.get((at / 8) as usize).copied().unwrap_or(0);
            *byte = (word >> (8 * (at % 8))) as u8;
        }
    }

    /// All masked and disabled.
    pub fn reset(&self) {
        *self.lock() = MsixState::new(self.vectors);
    }

    pub fn state(&self) -> MsixState {
        self.lock().clone()
    }

    /// Refuses a state with another number of messages.
    pub fn set_state(&self, saved: &MsixState) -> Result<(), ForeignMsix> {
        let mut state = self.lock();
        if (saved.entries.len(), saved.pending.len()) != (state.entries.len(), state.pending.len())
        {
            return Err(ForeignMsix);
        }
        state.clone_from(saved);
        Ok(())
    }
}

/// A state that is not one of this function.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the saved MSI-X table belongs to another PCI function")]
pub struct ForeignMsix;

impl MsixState {
    fn new(vectors: u16) -> Self {
        let entry = Entry { address: 0, data: 0, masked: true };
        Self {
            entries: vec![entry; usize::from(vectors)],
            pending: vec![0; usize::from(vectors.div_ceil(64))],
            enabled: false,
            masked: false,
        }
    }

    /// Messages that waited and need not any more.
    fn take_due(&mut self) -> Vec<Msi> {
        let mut due = Vec::new();
        if !self.enabled || self.masked {
            return due;
        }
        for (index, word) in self.pending.iter_mut().enumerate() {
            let mut bits = *word;
            while bits != 0 {
                let bit = bits.trailing_zeros();
                bits &= bits - 1;
                let entry = &self.entries[index * 64 + bit as usize];
                if !entry.masked {
                    *word &= !(1 << bit);
                    due.push(Msi { address: entry.address, data: entry.data });
                }
            }
        }
        due
    }
}

impl Entry {
    fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        answer(&mut bytes[..8], self.address);
        answer(&mut bytes[8..12], u64::from(self.data));
        bytes[12] = self.masked as u8;
        bytes
    }

    fn from_bytes(bytes: &[u8; 16]) -> Self {
        Self {
            address: value(&bytes[..8]) & !3,
            data: value(&bytes[8..12]) as u32,
            masked: bytes[12] & 1 != 0,
        }
    }
}

#[cfg(test)]
mod tests;
