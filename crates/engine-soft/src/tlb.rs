//! The software TLB: from a guest's linear page to a host pointer.
//!
//! A [`Bank`] belongs to one view of one address space (its PCID, and whether
//! accesses are a user's or a supervisor's), so that changing the view is changing
//! a pointer. It is direct-mapped by the low bits of the page number, with separate
//! tables for reads and writes. An entry in a table is a permission to do just that,
//! directly, in RAM: pages of devices, pages whose dirty bit is not set yet, and (for
//! writes) pages from which code was decoded have none.
//!
//! One comparison answers whether a whole access may go ahead:
//!
//! ```text
//! entry = table[(address >> 12) & (ENTRIES - 1)]
//! offset = address - entry.page            (wrapping, unsigned)
//! offset <= 4096 - size  =>  the bytes are at entry.host + offset
//! ```
//!
//! It fails for another page, for an access that leaves the page, and for an empty
//! entry, whose `page` is one that does not belong in its place.

use std::sync::atomic::{AtomicU64, Ordering};

/// Entries of each table; a power of two.
pub const ENTRIES: usize = 1024;
pub const PAGE_SIZE: u64 = 4096;

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Entry {
    /// Linear address of the page.
    pub page: u64,
    /// Where the page is in this process.
    pub host: *mut u8,
}

/// Two tables, for reads and for writes. Generated code knows this layout.
#[repr(C, align(64))]
pub struct Bank {
    pub read: [Entry; ENTRIES],
    pub write: [Entry; ENTRIES],
    /// For instruction fetches: the translator's id of the page that is mapped, or 0.
    pub code: [u32; ENTRIES],
    /// A number that no bank has had before, new whenever an id above is taken away for
    /// more than its place.
    pub epoch: u64,
    /// What the ids above are for; which of them are global, and which places have lost an
    /// id to another since `epoch` was new.
    code_page: [u64; ENTRIES],
    code_global: [u64; ENTRIES / 64],
    code_crowded: [u64; ENTRIES / 64],
    /// Since `epoch` was new, there was an id here that is not global.
    has_local_code: bool,
}

static LAST_EPOCH: AtomicU64 = AtomicU64::new(0);

fn new_epoch() -> u64 {
    LAST_EPOCH.fetch_add(1, Ordering::Relaxed) + 1
}

/// Where an address belongs in a table.
#[inline(always)]
pub fn index(address: u64) -> usize {
    (address >> 12) as usize & (ENTRIES - 1)
}

/// What stands in place `index` when nothing does: a page of another place.
#[inline(always)]
fn empty(index: usize) -> Entry {
    Entry { page: (index as u64 ^ 1) << 12, host: std::ptr::null_mut() }
}

#[inline(always)]
fn find(table: &[Entry; ENTRIES], address: u64, size: u64) -> Option<*mut u8> {
    let entry = &table[index(address)];
    let offset = address.wrapping_sub(entry.page);
    (offset <= PAGE_SIZE - size).then(|| entry.host.wrapping_add(offset as usize))
}

impl Bank {
    /// A bank without entries. It is 44 KiB, so it is made on the heap.
    pub fn new() -> Box<Bank> {
        let table: [Entry; ENTRIES] = std::array::from_fn(empty);
        Box::new(Bank {
            read: table,
            write: table,
            code: [0; ENTRIES],
            epoch: new_epoch(),
            code_page: [0; ENTRIES],
            code_global: [0; ENTRIES / 64],
            code_crowded: [0; ENTRIES / 64],
            has_local_code: false,
        })
    }

    /// Where `size` bytes (1 to 4096) can be read at once.
    #[inline(always)]
    pub fn find_read(&self, address: u64, size: u64) -> Option<*mut u8> {
        find(&self.read, address, size)
    }

    /// Where `size` bytes (1 to 4096) can be written at once.
    #[inline(always)]
    pub fn find_write(&self, address: u64, size: u64) -> Option<*mut u8> {
        find(&self.write, address, size)
    }

    pub fn fill_read(&mut self, address: u64, host: *mut u8) {
        self.read[index(address)] = Entry { page: address & !(PAGE_SIZE - 1), host };
    }

    pub fn fill_write(&mut self, address: u64, host: *mut u8) {
        self.write[index(address)] = Entry { page: address & !(PAGE_SIZE - 1), host };
    }

    /// Empties one place of the table for reads.
    pub fn reset_read(&mut self, place: usize) {
        self.read[place] = empty(place);
    }

    /// Empties one place of the table for writes.
    pub fn reset_write(&mut self, place: usize) {
        self.write[place] = empty(place);
    }

    /// Forgets one linear page.
    pub fn forget(&mut self, address: u64) {
        let place = index(address);
        let page = address & !(PAGE_SIZE - 1);
        if self.read[place].page == page {
            self.read[place] = empty(place);
        }
        if self.write[place].page == page {
            self.write[place] = empty(place);
        }
        let here = self.code[place] != 0 && self.code_page[place] == page;
        if here {
            self.code[place] = 0;
        }
        if here || is_set(&self.code_crowded, place) {
            self.renew_epoch();
        }
    }

    /// Notes what code is at a linear address now.
    pub fn set_code(&mut self, address: u64, id: u32, global: bool) {
        let place = index(address);
        let page = address & !(PAGE_SIZE - 1);
        if self.code[place] != 0 && self.code_page[place] != page {
            set(&mut self.code_crowded, place, true);
        }
        self.code[place] = id;
        self.code_page[place] = page;
        set(&mut self.code_global, place, global);
        if !global && !self.has_local_code {
            // The old one may be that of other banks, too.
            self.renew_epoch();
            self.has_local_code = true;
        }
    }

    /// Whether jumps that were found here may be shared with other address spaces.
    pub fn has_local_code(&self) -> bool {
        self.has_local_code
    }

    fn renew_epoch(&mut self) {
        self.epoch = new_epoch();
        self.code_crowded = [0; ENTRIES / 64];
        self.has_local_code =
            (0..ENTRIES).any(|place| self.code[place] != 0 && !is_set(&self.code_global, place));
    }

    /// Forgets every write entry that leads to this host page.
    pub fn forget_writes_to(&mut self, host: *mut u8) {
        for (place, entry) in self.write.iter_mut().enumerate() {
            if entry.host == host {
                *entry = empty(place);
            }
        }
    }

    pub fn clear(&mut self) {
        for place in 0..ENTRIES {
            self.read[place] = empty(place);
            self.write[place] = empty(place);
        }
        self.forget_code();
    }

    /// Forgets where code is.
    pub fn forget_code(&mut self) {
        self.code = [0; ENTRIES];
        self.renew_epoch();
    }

    /// Forgets where code is, but for global pages.
    pub fn forget_local_code(&mut self) {
        if !self.has_local_code {
            return;
        }
        for place in 0..ENTRIES {
            if !is_set(&self.code_global, place) {
                self.code[place] = 0;
            }
        }
        self.renew_epoch();
    }

    /// Forgets where code is in the aligned range of `1 << shift` bytes around `address`.
    pub fn forget_code_range(&mut self, address: u64, shift: u32) {
        for place in 0..ENTRIES {
            if self.code_page[place] >> shift == address >> shift {
                self.code[place] = 0;
            }
        }
        self.renew_epoch();
    }

    /// Takes over what another bank knows of global code.
    pub fn share_code(&mut self, other: &Bank) {
        for place in (0..ENTRIES).filter(|&place| is_set(&other.code_global, place)) {
            if other.code[place] != 0 {
                self.set_code(other.code_page[place], other.code[place], true);
            }
        }
    }
}

fn is_set(bits: &[u64; ENTRIES / 64], place: usize) -> bool {
    bits[place / 64] >> (place % 64) & 1 == 1
}

fn set(bits: &mut [u64; ENTRIES / 64], place: usize, value: bool) {
    let bit = 1 << (place % 64);
    bits[place / 64] = bits[place / 64] & !bit | if value { bit } else { 0 };
}

#[cfg(test)]
mod tests;
