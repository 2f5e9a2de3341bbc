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
pub const ENTRIES: usize = 2048;
/// Places for ids of code, a power of two: more than there are pages in a kernel's text, so
/// that none of them takes another's. Two that do are connected anew each time that one is
/// gone to after the other.
pub const CODE_PLACES: usize = 8192;
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
    pub code: [u32; CODE_PLACES],
    /// A number that no bank has had before, new whenever an id above is taken away for
    /// more than its place.
    pub epoch: u64,
    /// Counts what was taken away from the tables for reads and writes. What is replaced by
    /// another page is still true; `crowded` says where that happened since.
    pub changes: u64,
    crowded: [u64; ENTRIES / 64],
    is_crowded: bool,
    /// What the ids above are for; which places have one, which of these are global, and which
    /// have lost one to another since `epoch` was new.
    code_page: [u64; CODE_PLACES],
    code_filled: CodeSet,
    code_global: CodeSet,
    code_crowded: CodeSet,
    /// Since `epoch` was new, there was an id here that is not global.
    has_local_code: bool,
}

/// A bit for each place of an id.
type CodeSet = [u64; CODE_PLACES / 64];

static LAST_EPOCH: AtomicU64 = AtomicU64::new(0);

fn new_epoch() -> u64 {
    LAST_EPOCH.fetch_add(1, Ordering::Relaxed) + 1
}

/// Where an address belongs in a table.
#[inline(always)]
pub fn index(address: u64) -> usize {
    (address >> 12) as usize & (ENTRIES - 1)
}

/// Where the id of the code at an address belongs.
#[inline(always)]
pub fn code_index(address: u64) -> usize {
    (address >> 12) as usize & (CODE_PLACES - 1)
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
    /// A bank without entries. It is 166 KiB, so it is made on the heap.
    pub fn new() -> Box<Bank> {
        let table: [Entry; ENTRIES] = std::array::from_fn(empty);
        Box::new(Bank {
            read: table,
            write: table,
            code: [0; CODE_PLACES],
            epoch: new_epoch(),
            changes: 0,
            crowded: [0; ENTRIES / 64],
            is_crowded: false,
            code_page: [0; CODE_PLACES],
            code_filled: [0; CODE_PLACES / 64],
            code_global: [0; CODE_PLACES / 64],
            code_crowded: [0; CODE_PLACES / 64],
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
        let place = index(address);
        self.replaces(self.read[place], address, host);
        self.read[place] = Entry { page: address & !(PAGE_SIZE - 1), host };
    }

    pub fn fill_write(&mut self, address: u64, host: *mut u8) {
        let place = index(address);
        self.replaces(self.write[place], address, host);
        self.write[place] = Entry { page: address & !(PAGE_SIZE - 1), host };
    }

    fn replaces(&mut self, old: Entry, address: u64, host: *mut u8) {
        if old.host.is_null() || old.host == host {
            return;
        }
        if old.page == address & !(PAGE_SIZE - 1) {
            self.changed();
        } else {
            set(&mut self.crowded, index(address), true);
            self.is_crowded = true;
        }
    }

    /// What is known of this bank elsewhere is not to be used any more.
    pub fn changed(&mut self) {
        self.changes += 1;
        if self.is_crowded {
            self.crowded = [0; ENTRIES / 64];
            self.is_crowded = false;
        }
    }

    /// Empties one place of the table for reads.
    pub fn reset_read(&mut self, place: usize) {
        self.read[place] = empty(place);
        self.changed();
    }

    /// Empties one place of the table for writes.
    pub fn reset_write(&mut self, place: usize) {
        self.write[place] = empty(place);
        self.changed();
    }

    /// Forgets one linear page.
    pub fn forget(&mut self, address: u64) {
        let place = index(address);
        let page = address & !(PAGE_SIZE - 1);
        if is_set(&self.crowded, place) {
            self.changed();
        }
        if self.read[place].page == page {
            self.reset_read(place);
        }
        if self.write[place].page == page {
            self.reset_write(place);
        }
        let place = code_index(address);
        let here = self.code[place] != 0 && self.code_page[place] == page;
        if here {
            self.take_code(place);
        }
        if here || is_set(&self.code_crowded, place) {
            self.renew_epoch();
        }
    }

    /// Notes what code is at a linear address now.
    pub fn set_code(&mut self, address: u64, id: u32, global: bool) {
        let place = code_index(address);
        let page = address & !(PAGE_SIZE - 1);
        if self.code[place] != 0 && self.code_page[place] != page {
            set(&mut self.code_crowded, place, true);
        }
        self.code[place] = id;
        self.code_page[place] = page;
        set(&mut self.code_filled, place, id != 0);
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

    fn take_code(&mut self, place: usize) {
        self.code[place] = 0;
        set(&mut self.code_filled, place, false);
    }

    fn renew_epoch(&mut self) {
        self.epoch = new_epoch();
        self.code_crowded = [0; CODE_PLACES / 64];
        let mut words = self.code_filled.iter().zip(&self.code_global);
        self.has_local_code = words.any(|(filled, global)| filled & !global != 0);
    }

    /// Forgets every write entry that leads to this host page.
    pub fn forget_writes_to(&mut self, host: *mut u8) {
        for (place, entry) in self.write.iter_mut().enumerate() {
            if entry.host == host {
                *entry = empty(place);
            }
        }
        self.changed();
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
        let all = self.code_filled;
        self.forget_code_in(all, |_| true);
    }

    /// Forgets where code is, but for global pages.
    pub fn forget_local_code(&mut self) {
        if !self.has_local_code {
            return;
        }
        let local = std::array::from_fn(|word| self.code_filled[word] & !self.code_global[word]);
        self.forget_code_in(local, |_| true);
    }

    /// Forgets where code is in the aligned range of `1 << shift` bytes around `address`.
    pub fn forget_code_range(&mut self, address: u64, shift: u32) {
        let all = self.code_filled;
        self.forget_code_in(all, |page| page >> shift == address >> shift);
    }

    /// Forgets the code in those of the places whose page is asked for.
    fn forget_code_in(&mut self, places: CodeSet, is_meant: impl Fn(u64) -> bool) {
        for place in members(places) {
            if is_meant(self.code_page[place]) {
                self.take_code(place);
            }
        }
        self.renew_epoch();
    }

    /// Takes over what another bank knows of global code.
    pub fn share_code(&mut self, other: &Bank) {
        let shared = std::array::from_fn(|word| other.code_filled[word] & other.code_global[word]);
        for place in members(shared) {
            self.set_code(other.code_page[place], other.code[place], true);
        }
    }
}

/// The places in a set.
fn members(set: CodeSet) -> impl Iterator<Item = usize> {
    set.into_iter().enumerate().flat_map(|(word, mut left)| {
        std::iter::from_fn(move || {
            let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(word * 64 + bit)
        })
    })
}

fn is_set(bits: &[u64], place: usize) -> bool {
    bits[place / 64] >> (place % 64) & 1 == 1
}

fn set(bits: &mut [u64], place: usize, value: bool) {
    let bit = 1 << (place % 64);
    bits[place / 64] = bits[place / 64] & !bit | if value { bit } else { 0 };
}

#[cfg(test)]
mod tests;
