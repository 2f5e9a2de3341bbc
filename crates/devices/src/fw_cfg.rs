//! The firmware configuration device: named and numbered items that firmware and
//! test programs read through a pair of ports.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bus::{Device, value};

/// Ports, which are the register offsets, too: selector, then data.
pub const PORTS: u64 = 0x510;
pub const PORT_COUNT: u64 = 2;

/// Numbers of items.
pub const SIGNATURE: u16 = 0x00;
pub const ID: u16 = 0x01;
pub const RAM_SIZE: u16 = 0x03;
pub const CPU_COUNT: u16 = 0x05;
pub const MAX_CPUS: u16 = 0x0f;
const DIRECTORY: u16 = 0x19;
const FIRST_FILE: u16 = 0x20;
/// A name's length in the directory, with at least one zero at its end.
const NAME_LENGTH: usize = 56;

/// What is selected, and how much of it has been read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FwCfgState {
    selected: u16,
    position: usize,
}

/// The items. They do not change once the device is made.
pub struct FwCfg {
    items: Vec<(u16, Vec<u8>)>,
    state: Mutex<FwCfgState>,
}

/// Collects items.
#[derive(Default)]
pub struct FwCfgBuilder {
    items: Vec<(u16, Vec<u8>)>,
    files: Vec<(String, u32)>,
}

impl FwCfgBuilder {
    pub fn item(mut self, number: u16, data: Vec<u8>) -> Self {
        self.items.retain(|(other, _)| *other != number);
        self.items.push((number, data));
        self
    }

    /// An item that has a name; names are cut at 55 bytes.
    pub fn file(mut self, name: &str, data: Vec<u8>) -> Self {
        let number = FIRST_FILE + self.files.len() as u16;
        self.files.push((name.to_owned(), data.len() as u32));
        self.item(number, data)
    }

    pub fn build(self) -> Arc<FwCfg> {
        let mut directory = (self.files.len() as u32).to_be_bytes().to_vec();
        for (index, (name, size)) in self.files.iter().enumerate() {
            directory.extend(size.to_be_bytes());
            directory.extend((FIRST_FILE + index as u16).to_be_bytes());
            directory.extend([0; 2]);
            let mut field = [0; NAME_LENGTH];
            let length = name.len().min(NAME_LENGTH - 1);
            field[..length].copy_from_slice(&name.as_bytes()[..length]);
            directory.extend(field);
        }
        let built = self
            .item(SIGNATURE, b"QEMU".to_vec())
            // The traditional interface, without DMA.
            .item(ID, 1_u32.to_le_bytes().to_vec())
            .item(DIRECTORY, directory);
        Arc::new(FwCfg { items: built.items, state: Mutex::default() })
    }
}

impl FwCfg {
    pub fn builder() -> FwCfgBuilder {
        FwCfgBuilder::default()
    }

    pub fn reset(&self) {
        self.set_state(&FwCfgState::default());
    }

    pub fn state(&self) -> FwCfgState {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_state(&self, state: &FwCfgState) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone_from(state);
    }
}

impl Device for FwCfg {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset != PORTS + 1 {
            return data.fill(0xff);
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let item = self.items.iter().find(|(number, _)| *number == state.selected);
        for byte in data {
            // Past an item's end are zeros.
            let at = state.position;
            *byte = item.and_then(|(_, item)| item.get(at).copied()).unwrap_or(0);
            state.position = at.saturating_add(1);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == PORTS && data.len() == 2 {
            self.set_state(&FwCfgState { selected: value(data) as u16, position: 0 });
        }
    }
}

#[cfg(test)]
mod tests;
