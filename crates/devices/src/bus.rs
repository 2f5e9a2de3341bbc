//! The port bus and the memory bus: which device answers at which address.
//!
//! A bus is a sorted list of ranges that is copied when it changes, so that vCPU
//! threads look ranges up without locks, and a device may add or remove ranges (a PCI
//! BAR that moves) in the middle of an access. An access that was under way when
//! its range went away still reaches the device.
//!
//! An access that begins in one range and ends outside of it is split, as the
//! chipset would; bytes that nobody claims read as ones, and writes to them are lost.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

/// Something with registers.
///
/// `offset` counts in the device's own register space: a range is added to the bus
/// together with the offset at which it begins, so that one device can sit in
/// several ranges and tell them apart. `data` is as wide as the access: 1, 2, 4 or 8
/// bytes from instructions, anything from parts of split ones.
pub trait Device: Send + Sync {
    fn read(&self, offset: u64, data: &mut [u8]);
    fn write(&self, offset: u64, data: &[u8]);
}

/// Where a range cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    #[error("bus range {base:#x}+{length:#x} overlaps the range at {other:#x}")]
    Overlap { base: u64, length: u64, other: u64 },
    #[error("bus range {base:#x}+{length:#x} is empty or wraps around")]
    Invalid { base: u64, length: u64 },
}

#[derive(Clone)]
struct Range {
    base: u64,
    /// Inclusive, so that a range may reach the end of the address space.
    last: u64,
    offset: u64,
    device: Arc<dyn Device>,
}

/// Devices by address. Ports and memory are a bus each.
#[derive(Default)]
pub struct Bus {
    /// In ascending order, without overlaps.
    ranges: ArcSwap<Vec<Range>>,
    /// Held while the list is copied and replaced.
    changing: Mutex<()>,
}

impl Bus {
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `device` answer at `base..base + length`; it sees the first byte of the
    /// range at `offset` of its registers.
    pub fn insert(
        &self,
        base: u64,
        length: u64,
        offset: u64,
        device: Arc<dyn Device>,
    ) -> Result<(), BusError> {
        let last = match length.checked_sub(1).and_then(|more| base.checked_add(more)) {
            Some(last) if offset.checked_add(length - 1).is_some() => last,
            _ => return Err(BusError::Invalid { base, length }),
        };
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let ranges = self.ranges.load();
        let at = ranges.partition_point(|range| range.last < base);
        if let Some(next) = ranges.get(at)
            && next.base <= last
        {
            return Err(BusError::Overlap { base, length, other: next.base });
        }
        let mut changed = Vec::clone(&ranges);
        changed.insert(at, Range { base, last, offset, device });
        self.ranges.store(Arc::new(changed));
        Ok(())
    }

    /// Takes away the range that begins at `base`. Says whether there was one.
    pub fn remove(&self, base: u64) -> bool {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let ranges = self.ranges.load();
        let Ok(at) = ranges.binary_search_by_key(&base, |range| range.base) else { return false };
        let mut changed = Vec::clone(&ranges);
        changed.remove(at);
        self.ranges.store(Arc::new(changed));
        true
    }

    /// Lets go of all devices. Some of them hold on to the bus that they sit at (a PCI
    /// host, whose BARs move), so that neither would ever go away by itself.
    pub fn clear(&self) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.ranges.store(Arc::default());
    }

    /// Whether a device answers at this address.
    pub fn contains(&self, address: u64) -> bool {
        let ranges = self.ranges.load();
        find(&ranges, address).is_ok()
    }

    pub fn read(&self, address: u64, data: &mut [u8]) {
        let ranges = self.ranges.load();
        if let Ok(range) = find(&ranges, address)
            && range.last - address >= data.len().saturating_sub(1) as u64
        {
            range.device.read(address - range.base + range.offset, data);
            return;
        }
        let mut rest = data;
        let mut address = address;
        while !rest.is_empty() {
            let (length, range) = piece(&ranges, address, rest.len());
            let (now, later) = rest.split_at_mut(length);
            match range {
                Some(range) => range.device.read(address - range.base + range.offset, now),
                None => now.fill(0xff),
            }
            rest = later;
            address = address.wrapping_add(length as u64);
        }
    }

    pub fn write(&self, address: u64, data: &[u8]) {
        let ranges = self.ranges.load();
        if let Ok(range) = find(&ranges, address)
            && range.last - address >= data.len().saturating_sub(1) as u64
        {
            range.device.write(address - range.base + range.offset, data);
            return;
        }
        let mut rest = data;
        let mut address = address;
        while !rest.is_empty() {
            let (length, range) = piece(&ranges, address, rest.len());
            let (now, later) = rest.split_at(length);
            if let Some(range) = range {
                range.device.write(address - range.base + range.offset, now);
            }
            rest = later;
            address = address.wrapping_add(length as u64);
        }
    }
}

/// The range that holds the address, or the index of the first range after it.
fn find(ranges: &[Range], address: u64) -> Result<&Range, usize> {
    let at = ranges.partition_point(|range| range.last < address);
    match ranges.get(at) {
        Some(range) if range.base <= address => Ok(range),
        _ => Err(at),
    }
}

/// The part of an access that one range, or one hole between ranges, takes.
fn piece(ranges: &[Range], address: u64, length: usize) -> (usize, Option<&Range>) {
    let length = length as u64;
    let (room, range) = match find(ranges, address) {
        Ok(range) => ((range.last - address).saturating_add(1), Some(range)),
        Err(next) => (ranges.get(next).map_or(u64::MAX, |next| next.base - address), None),
    };
    // Address zero follows the last one.
    let to_wrap = (u64::MAX - address).saturating_add(1);
    (length.min(room).min(to_wrap) as usize, range)
}

/// The value of an access of up to 8 bytes.
pub(crate) fn value(data: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let length = data.len().min(8);
    bytes[..length].copy_from_slice(&data[..length]);
    u64::from_le_bytes(bytes)
}

/// Answers an access with as much of a register as it asked for; what is wider than
/// the register reads as zero.
pub(crate) fn answer(data: &mut [u8], value: u64) {
    data.fill(0);
    let length = data.len().min(8);
    data[..length].copy_from_slice(&value.to_le_bytes()[..length]);
}

#[cfg(test)]
mod tests;
