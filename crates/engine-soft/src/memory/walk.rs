//! Page walks: from a linear to a guest-physical address, through 32-bit, PAE and
//! 4-level tables.
//!
//! Accessed and dirty bits are set with a compare-and-exchange on the entry as it was
//! read; where another processor changed it meanwhile, the walk begins again.

use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::spaces::View;
use crate::cpu::Cpu;
use crate::cpu::mode::bits::*;
use crate::exception::Exception;
use crate::interpret::op::Run;
use crate::vm::map::Place;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Fetch,
}

/// Bits of a page fault's error code.
mod code {
    pub const PRESENT: u32 = 1;
    pub const WRITE: u32 = 2;
    pub const USER: u32 = 4;
    pub const RESERVED: u32 = 8;
    pub const FETCH: u32 = 16;
    pub const KEY: u32 = 32;
}

const P: u64 = 1;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Physical address bits that CPUID tells the guest of.
pub const PHYSICAL_BITS: u32 = 46;
const BEYOND_PHYSICAL: u64 = FRAME & !((1 << PHYSICAL_BITS) - 1);

/// Where a linear page leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Guest-physical address of the 4 KiB page.
    pub frame: u64,
    /// The same access, but writing, needs no further walk.
    pub writable: bool,
    pub global: bool,
    /// 12, 21, 22 or 30; 12 without paging.
    pub page_shift: u32,
    /// The protection key that was asked, as a set, or none.
    pub keys: u32,
}

/// Entries that a walk marked, so that code in their pages can be forgotten: page
/// tables may stand in one page with code.
#[derive(Default)]
struct Marked {
    entries: Cell<[Option<NonNull<u8>>; 4]>,
}

impl Marked {
    /// Notes an entry if it stands in a page that code was decoded from.
    fn note(&self, place: &Place) {
        let marks = place.marks();
        if marks.code.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut entries = self.entries.get();
        if let Some(free) = entries.iter_mut().find(|entry| entry.is_none()) {
            *free = NonNull::new(place.host);
        }
        self.entries.set(entries);
    }
}

/// How a walk ended early.
enum Stop {
    Fault(u32),
    /// An entry changed under the walk.
    Again,
}

/// What a protection key says.
struct Asked {
    writable: bool,
    keys: u32,
}

/// What all levels allow together.
struct Rights {
    writable: bool,
    user: bool,
    no_execute: bool,
}

impl Rights {
    fn new() -> Rights {
        Rights { writable: true, user: true, no_execute: false }
    }

    fn and(&mut self, entry: u64) {
        self.writable &= entry & W != 0;
        self.user &= entry & U != 0;
        self.no_execute |= entry & NX != 0;
    }
}

impl Cpu {
    /// Translates for an access, sets accessed and dirty bits, or raises #PF.
    pub fn walk(&mut self, linear: u64, access: Access, view: View) -> Run<Leaf> {
        self.counters.walks += 1;
        loop {
            let marked = Marked::default();
            let result = self.try_walk(linear, access, view, Some(&marked));
            for entry in marked.entries.get().into_iter().flatten() {
                self.code_written(entry.as_ptr(), size_of::<u64>());
            }
            match result {
                Ok(leaf) => return Ok(leaf),
                Err(Stop::Again) => {}
                Err(Stop::Fault(error_code)) => {
                    return self.raise(Exception::page_fault(linear, error_code));
                }
            }
        }
    }

    /// Translates without side effects, for a debugger.
    pub fn look_up(&self, linear: u64) -> Option<u64> {
        let leaf = self.try_walk(linear, Access::Read, View::SupervisorOnUser, None).ok()?;
        Some(leaf.frame | linear & 0xfff)
    }

    fn try_walk(
        &self,
        linear: u64,
        access: Access,
        view: View,
        marked: Option<&Marked>,
    ) -> Result<Leaf, Stop> {
        if self.state.cr0 & CR0_PG == 0 {
            let frame = linear & 0xffff_f000;
            return Ok(Leaf { frame, writable: true, global: false, page_shift: 12, keys: 0 });
        }
        let walk = Walk { cpu: self, linear, access, view, marked };
        if self.mode.long {
            walk.four_levels()
        } else if self.state.cr4 & CR4_PAE != 0 {
            walk.pae()
        } else {
            walk.two_levels()
        }
    }

    /// Reads the PDPTE registers of PAE paging; #GP(0) where one has reserved bits set.
    pub fn load_pdptes(&mut self, cr3: u64) -> Run {
        let mut entries = [0; 4];
        for (number, entry) in entries.iter_mut().enumerate() {
            *entry = self.read_entry(cr3 & 0xffff_ffe0 | (number as u64 * 8));
            if *entry & P != 0 && *entry & (0x1e6 | BEYOND_PHYSICAL | !FRAME & !0xfff) != 0 {
                return self.general_protection(0);
            }
        }
        self.pdpte = entries;
        Ok(())
    }

    /// Eight bytes of a paging structure. Where there is no memory, none is present.
    fn read_entry(&self, address: u64) -> u64 {
        match self.map.find(address) {
            // SAFETY: `address` is 8-byte aligned and in a slot of whole pages, which
            // is shared memory.
            Some(place) => unsafe {
                AtomicU64::from_ptr(place.host.cast()).load(Ordering::Acquire)
            },
            None => 0,
        }
    }
}

struct Walk<'a> {
    cpu: &'a Cpu,
    linear: u64,
    access: Access,
    view: View,
    /// Where to note what was marked; without it, nothing is.
    marked: Option<&'a Marked>,
}

impl Walk<'_> {
    fn nx_enabled(&self) -> bool {
        self.cpu.state.efer & EFER_NXE != 0
    }

    fn error(&self, bits: u32) -> u32 {
        let mut error = bits;
        if self.access == Access::Write {
            error |= code::WRITE;
        }
        if self.view == View::User {
            error |= code::USER;
        }
        let pae = self.cpu.state.cr4 & CR4_PAE != 0;
        let fetch_is_told = self.cpu.state.cr4 & CR4_SMEP != 0 || pae && self.nx_enabled();
        if self.access == Access::Fetch && fetch_is_told {
            error |= code::FETCH;
        }
        error
    }

    fn not_present(&self) -> Stop {
        Stop::Fault(self.error(0))
    }

    fn reserved(&self) -> Stop {
        Stop::Fault(self.error(code::PRESENT | code::RESERVED))
    }

    /// Checks presence and the reserved bits that every 64-bit entry has.
    fn check(&self, entry: u64, reserved: u64) -> Result<(), Stop> {
        if entry & P == 0 {
            return Err(self.not_present());
        }
        let mut reserved = reserved | BEYOND_PHYSICAL;
        if !self.cpu.mode.long {
            // Bits 62:52 are free in 4-level paging only.
            reserved |= 0x7ff0_0000_0000_0000;
        }
        if !self.nx_enabled() {
            reserved |= NX;
        }
        if entry & reserved != 0 { Err(self.reserved()) } else { Ok(()) }
    }

    /// Whether the access may go ahead, as far as the page's protection key is concerned.
    fn ask_key(&self, rights: &Rights, entry: u64) -> Result<Asked, Stop> {
        let Some(key) = self.cpu.page_key(entry, rights.user) else {
            return Ok(Asked { writable: true, keys: 0 });
        };
        let closed = self.cpu.closed_by(key, self.view == View::User);
        let denied = match self.access {
            Access::Fetch => false,
            Access::Read => closed.to_all,
            Access::Write => closed.to_all || closed.to_writes,
        };
        if denied && (rights.user || self.view != View::User) {
            return Err(Stop::Fault(self.error(code::PRESENT | code::KEY)));
        }
        Ok(Asked { writable: !closed.to_writes, keys: key.bit() })
    }

    /// Whether the access may go ahead; the result says if a write might.
    fn permit(&self, rights: &Rights) -> Result<bool, Stop> {
        let state = &self.cpu.state;
        let denied = || Stop::Fault(self.error(code::PRESENT));
        let user = self.view == View::User;
        if user && !rights.user {
            return Err(denied());
        }
        let may_write = rights.writable || !user && state.cr0 & CR0_WP == 0;
        match self.access {
            Access::Fetch => {
                let smep = !user && rights.user && state.cr4 & CR4_SMEP != 0;
                if rights.no_execute && self.nx_enabled() || smep {
                    return Err(denied());
                }
            }
            Access::Read | Access::Write => {
                if self.view == View::Supervisor && rights.user {
                    return Err(denied());
                }
                if self.access == Access::Write && !may_write {
                    return Err(denied());
                }
            }
        }
        Ok(may_write)
    }

    /// Sets bits in an entry that was read as `entry`.
    fn mark64(&self, address: u64, entry: u64, bits: u64) -> Result<(), Stop> {
        let Some(marked) = self.marked.filter(|_| entry & bits != bits) else { return Ok(()) };
        let Some(place) = self.cpu.map.find(address) else { return Ok(()) };
        if place.slot.read_only {
            return Ok(());
        }
        // SAFETY: an aligned entry in shared memory, as in `read_entry`.
        let atomic = unsafe { AtomicU64::from_ptr(place.host.cast()) };
        let new = entry | bits;
        match atomic.compare_exchange(entry, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => {
                self.cpu.note_write(&place);
                marked.note(&place);
                Ok(())
            }
            Err(_) => Err(Stop::Again),
        }
    }

    fn leaf_bits(&self) -> u64 {
        if self.access == Access::Write { A | D } else { A }
    }

    fn four_levels(&self) -> Result<Leaf, Stop> {
        self.upper_levels(self.cpu.state.cr3 & FRAME, &[39, 30, 21, 12], Rights::new())
    }

    fn pae(&self) -> Result<Leaf, Stop> {
        let pdpte = self.cpu.pdpte[(self.linear >> 30 & 3) as usize];
        if pdpte & P == 0 {
            return Err(self.not_present());
        }
        self.upper_levels(pdpte & FRAME, &[21, 12], Rights::new())
    }

    /// Walks tables of 512 entries, the first at `table`, for these shifts.
    fn upper_levels(
        &self,
        mut table: u64,
        shifts: &[u32],
        mut rights: Rights,
    ) -> Result<Leaf, Stop> {
        let mut path = [(0, 0); 4];
        for (level, &shift) in shifts.iter().enumerate() {
            let address = table | (self.linear >> shift & 0x1ff) << 3;
            let entry = self.cpu.read_entry(address);
            let large = entry & PS != 0 && (shift == 21 || shift == 30);
            let reserved = match shift {
                39 => PS,
                30 | 21 if large => (1 << shift) - 0x2000,
                _ => 0,
            };
            self.check(entry, reserved)?;
            rights.and(entry);
            path[level] = (address, entry);
            if large || shift == 12 {
                let asked = self.ask_key(&rights, entry)?;
                let may_write = self.permit(&rights)? && asked.writable;
                for &(address, entry) in &path[..level] {
                    self.mark64(address, entry, A)?;
                }
                self.mark64(address, entry, self.leaf_bits())?;
                let offset = (1u64 << shift) - 1;
                let frame = entry & FRAME & !offset | self.linear & offset & !0xfff;
                let dirty = entry & D != 0 || self.access == Access::Write;
                return Ok(Leaf {
                    frame,
                    writable: may_write && dirty,
                    global: entry & G != 0 && self.cpu.state.cr4 & CR4_PGE != 0,
                    page_shift: shift,
                    keys: asked.keys,
                });
            }
            table = entry & FRAME;
        }
        Err(self.not_present())
    }

    fn read32(&self, address: u64) -> u64 {
        match self.cpu.map.find(address) {
            // SAFETY: `address` is 4-byte aligned, in shared memory.
            Some(place) => unsafe {
                AtomicU32::from_ptr(place.host.cast()).load(Ordering::Acquire) as u64
            },
            None => 0,
        }
    }

    fn mark32(&self, address: u64, entry: u64, bits: u64) -> Result<(), Stop> {
        let Some(marked) = self.marked.filter(|_| entry & bits != bits) else { return Ok(()) };
        let Some(place) = self.cpu.map.find(address) else { return Ok(()) };
        if place.slot.read_only {
            return Ok(());
        }
        // SAFETY: an aligned entry in shared memory.
        let atomic = unsafe { AtomicU32::from_ptr(place.host.cast()) };
        let new = (entry | bits) as u32;
        match atomic.compare_exchange(entry as u32, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => {
                self.cpu.note_write(&place);
                marked.note(&place);
                Ok(())
            }
            Err(_) => Err(Stop::Again),
        }
    }

    fn two_levels(&self) -> Result<Leaf, Stop> {
        let state = &self.cpu.state;
        let mut rights = Rights::new();
        let directory = state.cr3 & 0xffff_f000 | (self.linear >> 22 & 0x3ff) << 2;
        let pde = self.read32(directory);
        if pde & P == 0 {
            return Err(self.not_present());
        }
        rights.and(pde);
        let global = |entry| entry & G != 0 && state.cr4 & CR4_PGE != 0;
        if pde & PS != 0 && state.cr4 & CR4_PSE != 0 {
            // PSE-36: bits 39:32 of the address are bits 20:13 of the entry.
            if pde & 1 << 21 != 0 {
                return Err(self.reserved());
            }
            let may_write = self.permit(&rights)?;
            self.mark32(directory, pde, self.leaf_bits())?;
            let base = pde & 0xffc0_0000 | (pde >> 13 & 0xff) << 32;
            let dirty = pde & D != 0 || self.access == Access::Write;
            return Ok(Leaf {
                frame: base | self.linear & 0x3f_f000,
                writable: may_write && dirty,
                global: global(pde),
                page_shift: 22,
                keys: 0,
            });
        }
        let address = pde & 0xffff_f000 | (self.linear >> 12 & 0x3ff) << 2;
        let pte = self.read32(address);
        if pte & P == 0 {
            return Err(self.not_present());
        }
        rights.and(pte);
        let may_write = self.permit(&rights)?;
        self.mark32(directory, pde, A)?;
        self.mark32(address, pte, self.leaf_bits())?;
        Ok(Leaf {
            frame: pte & 0xffff_f000,
            writable: may_write && (pte & D != 0 || self.access == Access::Write),
            global: global(pte),
            page_shift: 12,
            keys: 0,
        })
    }
}
