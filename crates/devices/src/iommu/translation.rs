//! DMA remapping: from a requester and an address to memory.
//!
//! The root table has an entry for each bus, which leads to a table with an entry for
//! each function, which leads to page tables of three or four levels. All of them are
//! the guest's and are trusted in nothing.

use guise_engine::GuestMemory;
use guise_engine::memory::vm_memory::{Bytes, GuestAddress};

use super::faults::{Fault, Reason};
use super::registers::{IommuState, TRANSLATION};
use super::{ADDRESS_BITS, entry};

const PRESENT: u64 = 1 << 0;
const ADDRESS: u64 = (1 << ADDRESS_BITS) - (1 << 12);
/// Address bits that no memory has.
const BEYOND: u64 = (1 << 52) - (1 << ADDRESS_BITS);

const ROOT_RESERVED: u64 = 0xffe;

const FAULTS_DISABLED: u64 = 1 << 1;
const CONTEXT_RESERVED: [u64; 2] = [0xff0, !0xff_ff7f];
/// What an entry has done with requests.
const TYPE: u64 = 0b11 << 2;
const TYPE_TRANSLATE: u64 = 0b00 << 2;
const TYPE_PASS: u64 = 0b10 << 2;

const READABLE: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;

/// Where a request may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub address: u64,
    /// How far the same holds from there; not 0.
    pub length: u64,
}

impl IommuState {
    pub(super) fn translate(
        &self,
        memory: &GuestMemory,
        source: u16,
        address: u64,
        write: bool,
    ) -> Result<Found, Fault> {
        let unchanged = Found { address, length: 4096 - address % 4096 };
        if self.status & TRANSLATION == 0 {
            return Ok(unchanged);
        }
        let information = address & !0xfff;
        let fault = |reason| Fault { reason, source, information, read: !write, silent: false };
        let (bus, function) = (u64::from(source >> 8), u64::from(source & 0xff));

        let root = entry(memory, self.root_table_used.wrapping_add(16 * bus))
            .ok_or(fault(Reason::RootUnreachable))?;
        if root[0] & PRESENT == 0 {
            return Err(fault(Reason::RootNotPresent));
        }
        if root[0] & ROOT_RESERVED != 0 || root[1] != 0 {
            return Err(fault(Reason::RootReserved));
        }
        let context = entry(memory, (root[0] & !0xfff).wrapping_add(16 * function))
            .ok_or(fault(Reason::ContextUnreachable))?;
        let silent = context[0] & FAULTS_DISABLED != 0;
        let fault = |reason| Fault { silent, ..fault(reason) };
        if context[0] & PRESENT == 0 {
            return Err(fault(Reason::ContextNotPresent));
        }
        if context[0] & CONTEXT_RESERVED[0] != 0 || context[1] & CONTEXT_RESERVED[1] != 0 {
            return Err(fault(Reason::ContextReserved));
        }
        let levels: u32 = match context[1] & 7 {
            1 => 3,
            2 => 4,
            _ => return Err(fault(Reason::ContextInvalid)),
        };
        let width = 12 + 9 * levels;
        if address >> width != 0 {
            return Err(fault(Reason::AddressTooLarge));
        }
        match context[0] & TYPE {
            TYPE_TRANSLATE => {
                walk(memory, context[0] & !0xfff, levels, address, write).map_err(fault)
            }
            // Its width has to be the largest that there is.
            TYPE_PASS if levels == 4 => Ok(unchanged),
            _ => Err(fault(Reason::ContextInvalid)),
        }
    }
}

/// Down the page tables. Each step is one entry, so this ends after as many as there
/// are levels.
fn walk(
    memory: &GuestMemory,
    top: u64,
    levels: u32,
    address: u64,
    write: bool,
) -> Result<Found, Reason> {
    let (wanted, forbidden) = match write {
        true => (WRITABLE, Reason::WriteForbidden),
        false => (READABLE, Reason::ReadForbidden),
    };
    let mut table = top;
    for level in (1..=levels).rev() {
        let shift = 12 + 9 * (level - 1);
        let at = table.wrapping_add(8 * (address >> shift & 0x1ff));
        let entry: u64 = memory
            .load(GuestAddress(at), std::sync::atomic::Ordering::Acquire)
            .map_err(|_| Reason::TableUnreachable)?;
        if entry & wanted == 0 {
            return Err(forbidden);
        }
        let large = entry & LARGE != 0 && level > 1;
        let inside = (1 << shift) - 1;
        let crooked = large && (level > 3 || entry & ADDRESS & inside != 0);
        if entry & BEYOND != 0 || crooked {
            return Err(Reason::TableReserved);
        }
        if large || level == 1 {
            let offset = address & inside;
            return Ok(Found { address: entry & ADDRESS | offset, length: inside + 1 - offset });
        }
        table = entry & ADDRESS;
    }
    unreachable!("the last level is a leaf")
}
