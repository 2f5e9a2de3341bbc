//! Reads and writes of guest memory by linear address.
//!
//! What the TLB has goes straight to memory; everything else comes through the slow
//! path here: page walks, accesses that cross pages, devices, pages that hold code.
//! An access that crosses pages is translated as a whole before any byte of it moves,
//! so that it faults without a trace or not at all.

use std::sync::atomic::Ordering;

use super::spaces::{Fill, View};
use super::walk::Access;
use crate::cpu::{Cpu, Raised};
use crate::exception::{ALIGNMENT_CHECK, Exception};
use crate::interpret::int::Int;
use crate::interpret::op::{Run, Trap};
use crate::vm::map::Place;
use crate::vm::shared::Request;

const PAGE: u64 = 4096;
/// What an address of code that is not 64-bit can have.
const LOW: u64 = 0xffff_ffff;

/// What stands behind a linear address, after translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spot {
    Memory(*mut u8),
    /// Memory from which code may have been decoded: who writes says so afterwards.
    Code(*mut u8),
    /// A device, at this guest-physical address.
    Device(u64),
}

pub fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

/// Copies guest memory in accesses as wide as alignment allows.
///
/// # Safety
///
/// `length` bytes can be read at `from` and written at `to`.
unsafe fn copy(from: *const u8, to: *mut u8, length: usize) {
    // SAFETY: the caller vouches for all bytes; the widths add up to `length`.
    unsafe {
        match length {
            1 => u8::load(from).store(to),
            2 => u16::load(from).store(to),
            4 => u32::load(from).store(to),
            8 => u64::load(from).store(to),
            _ => {
                let mut done = 0;
                while done + 8 <= length {
                    u64::load(from.add(done)).store(to.add(done));
                    done += 8;
                }
                while done < length {
                    u8::load(from.add(done)).store(to.add(done));
                    done += 1;
                }
            }
        }
    }
}

impl Cpu {
    /// Reads memory in the current view.
    #[inline(always)]
    pub fn read<T: Int>(&mut self, address: u64) -> Run<T> {
        // SAFETY: `bank` is the current view's, owned by `spaces`; what it finds can
        // be read.
        unsafe {
            match (*self.state.bank).find_read(address, T::SIZE) {
                Some(host) => Ok(T::load(host)),
                None => self.read_slow(address),
            }
        }
    }

    /// Writes memory in the current view.
    #[inline(always)]
    pub fn write<T: Int>(&mut self, address: u64, value: T) -> Run {
        // SAFETY: `bank` is the current view's, owned by `spaces`; what it finds can
        // be written.
        unsafe {
            match (*self.state.bank).find_write(address, T::SIZE) {
                Some(host) => {
                    value.store(host);
                    Ok(())
                }
                None => self.write_slow(address, value),
            }
        }
    }

    /// Reads, lets `change` make a new value (and results of its own) and writes it.
    /// Nothing happens where the write would fault.
    #[inline(always)]
    pub fn modify<T: Int>(&mut self, address: u64, change: impl FnOnce(&mut Cpu, T) -> T) -> Run {
        // SAFETY: as in `write`; what can be written can be read.
        unsafe {
            match (*self.state.bank).find_write(address, T::SIZE) {
                Some(host) => {
                    let value = change(self, T::load(host));
                    value.store(host);
                    Ok(())
                }
                None => self.modify_slow(address, change),
            }
        }
    }

    #[inline(never)]
    fn modify_slow<T: Int>(&mut self, address: u64, change: impl FnOnce(&mut Cpu, T) -> T) -> Run {
        let view = self.view();
        self.check_alignment(address, T::SIZE)?;
        self.probe(address, T::SIZE, Access::Write, view)?;
        let old = self.read(address)?;
        let new = change(self, old);
        self.write(address, new)
    }

    /// As [`Cpu::modify`], as one atomic operation; `change` may be called repeatedly.
    pub fn modify_locked<T: Int>(
        &mut self,
        address: u64,
        mut change: impl FnMut(&mut Cpu, T) -> T,
    ) -> Run {
        let view = self.view();
        self.check_alignment(address, T::SIZE)?;
        let spot = match self.spots(address, T::SIZE, Access::Write, view)? {
            (spot, None) => spot,
            (_, Some(_)) => {
                // Two pages: nothing of the host's is atomic there.
                return self.alone(|cpu| cpu.modify(address, change));
            }
        };
        match spot {
            Spot::Memory(host) | Spot::Code(host) => {
                // SAFETY: found writable for this access just now.
                unsafe {
                    let mut old = T::load(host);
                    loop {
                        let new = change(self, old);
                        match T::exchange_if(host, old, new) {
                            None => break,
                            Some(found) => old = found,
                        }
                    }
                }
                if let Spot::Code(_) = spot {
                    self.code_written(host, T::SIZE as usize);
                }
                Ok(())
            }
            Spot::Device(_) => self.modify(address, change),
        }
    }

    #[cold]
    #[inline(never)]
    fn read_slow<T: Int>(&mut self, address: u64) -> Run<T> {
        let mut bytes = [0; 8];
        self.read_bytes(address, &mut bytes[..T::SIZE as usize])?;
        Ok(T::new(u64::from_le_bytes(bytes)))
    }

    #[cold]
    #[inline(never)]
    fn write_slow<T: Int>(&mut self, address: u64, value: T) -> Run {
        self.write_bytes(address, &value.get().to_le_bytes()[..T::SIZE as usize])
    }

    /// #AC where alignment is checked and an operand of this size is not aligned.
    ///
    /// While it is checked, the current bank has no entries, so that nobody gets by.
    pub fn check_alignment(&mut self, address: u64, size: u64) -> Run {
        let unit = match size {
            2 | 4 | 8 | 16 => size,
            // An x87 register.
            10 => 8,
            _ => return Ok(()),
        };
        if self.checks_alignment() && !address.is_multiple_of(unit) {
            return self.raise(Exception::with_code(ALIGNMENT_CHECK, 0));
        }
        Ok(())
    }

    /// Reads some bytes (at most a page) in the current view.
    pub fn read_bytes(&mut self, address: u64, bytes: &mut [u8]) -> Run {
        self.check_alignment(address, bytes.len() as u64)?;
        let view = self.view();
        self.read_bytes_in(self.of_code(address), bytes, view)
    }

    pub fn write_bytes(&mut self, address: u64, bytes: &[u8]) -> Run {
        self.check_alignment(address, bytes.len() as u64)?;
        let view = self.view();
        self.write_bytes_in(self.of_code(address), bytes, view)
    }

    /// An address that the current code came to: what is not 64-bit wraps at 4 GiB.
    fn of_code(&self, address: u64) -> u64 {
        if self.mode.is_64() { address } else { address & LOW }
    }

    /// Reads what the processor reads by itself: descriptors, the IDT, the TSS.
    pub fn read_system<T: Int>(&mut self, address: u64) -> Run<T> {
        let mut bytes = [0; 8];
        let view = self.system_view();
        self.read_bytes_in(address, &mut bytes[..T::SIZE as usize], view)?;
        Ok(T::new(u64::from_le_bytes(bytes)))
    }

    pub fn write_system<T: Int>(&mut self, address: u64, value: T) -> Run {
        let view = self.system_view();
        self.write_bytes_in(address, &value.get().to_le_bytes()[..T::SIZE as usize], view)
    }

    pub fn read_bytes_in(&mut self, address: u64, bytes: &mut [u8], view: View) -> Run {
        let length = bytes.len() as u64;
        let (first, second) = self.spots(address, length, Access::Read, view)?;
        if self.debug.watches(address) || self.debug.watches(address.wrapping_add(length)) {
            self.note_access(address, length, false);
        }
        let split = split(address, bytes.len());
        let (low, high) = bytes.split_at_mut(split);
        self.read_spot(first, low);
        if let Some(second) = second {
            self.read_spot(second, high);
        }
        Ok(())
    }

    pub fn write_bytes_in(&mut self, address: u64, bytes: &[u8], view: View) -> Run {
        let length = bytes.len() as u64;
        let (first, second) = self.spots(address, length, Access::Write, view)?;
        if self.debug.watches(address) || self.debug.watches(address.wrapping_add(length)) {
            self.note_access(address, length, true);
        }
        let (low, high) = bytes.split_at(split(address, bytes.len()));
        self.write_spot(first, low);
        if let Some(second) = second {
            self.write_spot(second, high);
        }
        Ok(())
    }

    /// Translates all bytes of an access (at most a page), so that it can fault.
    pub fn probe(&mut self, address: u64, size: u64, access: Access, view: View) -> Run {
        self.spots(address, size, access, view).map(|_| ())
    }

    /// Where the bytes of an access are, in one page or in two.
    ///
    /// In long mode the address is taken as it is, whatever the code's size: the IDT,
    /// the TSS and the stacks for an interrupt of 32-bit code may lie anywhere.
    pub fn spots(
        &mut self,
        address: u64,
        size: u64,
        access: Access,
        view: View,
    ) -> Run<(Spot, Option<Spot>)> {
        let address = if self.mode.long { address } else { address & LOW };
        let first = self.spot(address, access, view)?;
        if size <= PAGE - address % PAGE {
            return Ok((first, None));
        }
        let mut next = (address & !(PAGE - 1)).wrapping_add(PAGE);
        if !self.mode.is_64() && address <= LOW {
            next &= LOW;
        }
        let second = self.spot(next, access, view)?;
        Ok((first, Some(second)))
    }

    fn spot(&mut self, address: u64, access: Access, view: View) -> Run<Spot> {
        // SAFETY: the bank belongs to `spaces`.
        let found = unsafe {
            let bank = &*self.spaces.bank(view);
            match access {
                Access::Write => bank.find_write(address, 1),
                _ => bank.find_read(address, 1),
            }
        };
        if let Some(host) = found {
            return Ok(Spot::Memory(host));
        }
        if self.mode.long && !is_canonical(address) {
            self.raised = Raised::NonCanonical;
            return Err(Trap);
        }
        let leaf = self.walk(address, access, view)?;
        let physical = leaf.frame | address & 0xfff;
        let write = access == Access::Write;
        let map = self.map.clone();
        let Some(place) = map.find(leaf.frame) else { return Ok(Spot::Device(physical)) };
        if self.msr.apic_covers(leaf.frame) || write && place.slot.read_only {
            return Ok(Spot::Device(physical));
        }
        let host = place.host.wrapping_add((address & 0xfff) as usize);
        let may_write = write && self.may_write_unseen(&place);
        if write && let Some(journal) = &mut self.journal {
            journal.note(place.host);
        }
        let fill = Fill {
            address,
            host: place.host,
            write: may_write,
            global: leaf.global,
            page_shift: leaf.page_shift,
            keys: leaf.keys,
        };
        if !self.debug.watches(address) {
            self.spaces.fill(view, fill);
        }
        Ok(if write && !may_write { Spot::Code(host) } else { Spot::Memory(host) })
    }

    /// Announces a write entry for the page, unless somebody holds code from it.
    fn may_write_unseen(&mut self, place: &Place) -> bool {
        let tracker = place.slot.region.tracker();
        if tracker.logs_dirty() {
            tracker.note_dirty(place.page());
        }
        let marks = place.marks();
        if marks.writers.load(Ordering::Relaxed) & self.bit() == 0 {
            marks.writers.fetch_or(self.bit(), Ordering::SeqCst);
        }
        std::sync::atomic::fence(Ordering::SeqCst);
        marks.code.load(Ordering::SeqCst) == 0
    }

    /// Notes a write that went past the TLB, for the dirty log.
    pub fn note_write(&self, place: &Place) {
        let tracker = place.slot.region.tracker();
        if tracker.logs_dirty() {
            tracker.note_dirty(place.page());
        }
    }

    fn read_spot(&mut self, spot: Spot, bytes: &mut [u8]) {
        match spot {
            // SAFETY: translated for all of these bytes, which are in one page.
            Spot::Memory(host) | Spot::Code(host) => unsafe {
                copy(host, bytes.as_mut_ptr(), bytes.len());
            },
            Spot::Device(address) => self.device_read(address, bytes),
        }
    }

    fn write_spot(&mut self, spot: Spot, bytes: &[u8]) {
        match spot {
            Spot::Memory(host) | Spot::Code(host) => {
                // SAFETY: translated for writing all of these bytes, which are in one page.
                unsafe { copy(bytes.as_ptr(), host, bytes.len()) };
                if let Spot::Code(_) = spot {
                    self.code_written(host, bytes.len());
                }
            }
            Spot::Device(address) => self.device_write(address, bytes),
        }
    }

    /// Bytes of a page that may hold code were written by this vCPU.
    pub fn code_written(&mut self, host: *mut u8, length: usize) {
        let map = self.map.clone();
        let Some(region) = map.region_of(host) else { return };
        let page = region.page_of(host);
        if region.tracker().logs_dirty() {
            region.tracker().note_dirty(page);
        }
        let marks = region.marks(page);
        let offset = host as usize % PAGE as usize;
        if !marks.code_in(offset, length) {
            return;
        }
        let holders = marks.code.load(Ordering::SeqCst);
        let shared = self.shared.clone();
        for vcpu in shared.vcpus_in(holders & !self.bit()) {
            vcpu.ask(Request::Invalidate { host, length });
        }
        if holders & self.bit() != 0 {
            self.invalidate_code(host, length);
        }
    }

    fn device_read(&mut self, address: u64, bytes: &mut [u8]) {
        self.counters.device_accesses += 1;
        if self.msr.apic_covers(address) {
            self.apic_read(address, bytes);
        } else {
            self.outside(|cpu| cpu.platform().memory_read(address, bytes));
        }
    }

    fn device_write(&mut self, address: u64, bytes: &[u8]) {
        self.counters.device_accesses += 1;
        if self.msr.apic_covers(address) {
            self.apic_write(address, bytes);
        } else if !self.ring_doorbell(guise_engine::DoorbellAddress::Memory(address), bytes) {
            self.outside(|cpu| cpu.platform().memory_write(address, bytes));
        }
    }

    /// Reads guest-physical memory.
    pub fn read_physical(&mut self, address: u64, bytes: &mut [u8]) {
        let map = self.map.clone();
        match map.find(address) {
            Some(place) if address % PAGE + bytes.len() as u64 <= PAGE => {
                self.read_spot(Spot::Memory(place.host), bytes);
            }
            _ => self.device_read(address, bytes),
        }
    }

    /// Writes guest-physical memory, in one page.
    pub fn write_physical(&mut self, address: u64, bytes: &[u8]) {
        let map = self.map.clone();
        match map.find(address) {
            Some(place) if !place.slot.read_only && address % PAGE + bytes.len() as u64 <= PAGE => {
                self.write_spot(Spot::Code(place.host), bytes);
            }
            _ => self.device_write(address, bytes),
        }
    }
}

/// How many of the bytes are in the first page.
fn split(address: u64, length: usize) -> usize {
    length.min((PAGE - address % PAGE) as usize)
}
