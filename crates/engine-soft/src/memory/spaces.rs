//! The TLB banks of a vCPU: for each of a few address spaces (PCIDs), one for each view.
//!
//! Changing the address space or the privilege is choosing another bank. Flushes are
//! as narrow as the guest asks for them: what is filled and what is global is known
//! for each entry, and 2 MiB and 1 GiB pages, of which a bank holds 4 KiB pieces, are
//! remembered coarsely so that INVLPG of any address in them finds the pieces.

use crate::tlb::{Bank, ENTRIES, index};

/// From whose point of view memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    User,
    /// A supervisor that SMAP keeps from user pages.
    Supervisor,
    /// A supervisor that may access user pages.
    SupervisorOnUser,
}

const WORDS: usize = ENTRIES / 64;

/// Which entries of a table hold something, and which of these are global.
#[derive(Clone, Default)]
struct Filled {
    any: [u64; WORDS],
    global: [u64; WORDS],
}

impl Filled {
    fn set(&mut self, place: usize, global: bool) {
        let bit = 1u64 << (place % 64);
        self.any[place / 64] |= bit;
        if global {
            self.global[place / 64] |= bit;
        } else {
            self.global[place / 64] &= !bit;
        }
    }

    /// Calls back for each place to be emptied, and notes that it is.
    fn drain(&mut self, keep_global: bool, mut reset: impl FnMut(usize)) {
        for word in 0..WORDS {
            let keep = if keep_global { self.global[word] } else { 0 };
            let mut go = self.any[word] & !keep;
            self.any[word] &= keep;
            while go != 0 {
                reset(word * 64 + go.trailing_zeros() as usize);
                go &= go - 1;
            }
        }
    }
}

struct Table {
    bank: Box<Bank>,
    read: Filled,
    write: Filled,
}

impl Table {
    fn new() -> Table {
        Table { bank: Bank::new(), read: Filled::default(), write: Filled::default() }
    }

    fn clear(&mut self, keep_global: bool) {
        let bank = &mut self.bank;
        bank.changed();
        self.read.drain(keep_global, |place| bank.reset_read(place));
        self.write.drain(keep_global, |place| bank.reset_write(place));
        if keep_global {
            bank.forget_local_code();
        } else {
            bank.forget_code();
        }
    }

    /// Forgets what can be read and written, but not where code is.
    fn clear_data(&mut self) {
        let bank = &mut self.bank;
        bank.changed();
        self.read.drain(false, |place| bank.reset_read(place));
        self.write.drain(false, |place| bank.reset_write(place));
    }

    fn clear_writes(&mut self) {
        let bank = &mut self.bank;
        bank.changed();
        self.write.drain(false, |place| bank.reset_write(place));
    }

    /// Looks at what is filled only, which is little of the whole.
    fn forget_writes_to(&mut self, host: *mut u8) {
        self.bank.changed();
        for (word, &filled) in self.write.any.iter().enumerate() {
            let mut left = filled;
            while left != 0 {
                let place = word * 64 + left.trailing_zeros() as usize;
                left &= left - 1;
                if self.bank.write[place].host == host {
                    self.bank.reset_write(place);
                }
            }
        }
    }

    /// Forgets every entry in the aligned range of `1 << shift` bytes around `address`.
    fn forget_range(&mut self, address: u64, shift: u32) {
        self.bank.changed();
        self.bank.forget_code_range(address, shift);
        for place in 0..ENTRIES {
            if self.bank.read[place].page >> shift == address >> shift {
                self.bank.reset_read(place);
            }
            if self.bank.write[place].page >> shift == address >> shift {
                self.bank.reset_write(place);
            }
        }
    }
}

/// A hashed set of the large pages of one size: it may say yes for too many.
#[derive(Clone, Copy, Default)]
struct LargePages([u64; 16]);

impl LargePages {
    fn bit(number: u64) -> (usize, u64) {
        let hash = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as usize;
        (hash / 64, 1 << (hash % 64))
    }
    fn insert(&mut self, number: u64) {
        let (word, bit) = Self::bit(number);
        self.0[word] |= bit;
    }
    fn contains(&self, number: u64) -> bool {
        let (word, bit) = Self::bit(number);
        self.0[word] & bit != 0
    }
}

/// One address space.
struct Space {
    pcid: u16,
    last_use: u64,
    generation: u64,
    /// One for each view, and the one that stays empty.
    tables: [Option<Table>; 4],
    two_mib: LargePages,
    one_gib: LargePages,
}

impl Space {
    fn clear(&mut self, keep_global: bool) {
        for table in self.tables.iter_mut().flatten() {
            table.clear(keep_global);
        }
        if !keep_global {
            self.two_mib = LargePages::default();
            self.one_gib = LargePages::default();
        }
    }

    /// Whether it was, or may have been, in a large page.
    fn forget(&mut self, address: u64) -> bool {
        let shift = if self.one_gib.contains(address >> 30) {
            30
        } else if self.two_mib.contains(address >> 21) {
            21
        } else {
            12
        };
        for table in self.tables.iter_mut().flatten() {
            if shift == 12 {
                table.bank.forget(address);
            } else {
                table.forget_range(address, shift);
            }
        }
        shift != 12
    }
}

/// How many address spaces keep their entries at once. Linux uses six PCIDs, twice
/// that with page-table isolation.
const SPACES: usize = 8;

pub struct Spaces {
    spaces: Vec<Space>,
    current: usize,
    uses: u64,
    generations: u64,
    /// The protection keys that entries were filled under, as [`PageKey::bit`] says.
    ///
    /// [`PageKey::bit`]: crate::cpu::keys::PageKey::bit
    keys: u32,
}

/// What is put into a bank after a walk.
#[derive(Clone, Copy)]
pub struct Fill {
    pub address: u64,
    pub host: *mut u8,
    pub write: bool,
    pub global: bool,
    /// 12, 21, 22 or 30.
    pub page_shift: u32,
    /// The protection key that was asked, as a set.
    pub keys: u32,
}

impl Default for Spaces {
    fn default() -> Self {
        let mut spaces =
            Spaces { spaces: Vec::new(), current: 0, uses: 0, generations: 0, keys: 0 };
        spaces.switch(0);
        spaces
    }
}

impl Spaces {
    fn next_generation(&mut self) -> u64 {
        self.generations += 1;
        self.generations
    }

    /// Changes when anything that was known of the current address space's
    /// translations may be wrong; never the same for two address spaces.
    pub fn generation(&self) -> u64 {
        self.spaces[self.current].generation
    }

    /// Makes the address space of this PCID the current one, keeping its entries.
    pub fn switch(&mut self, pcid: u16) {
        self.uses += 1;
        let found = self.spaces.iter().position(|space| space.pcid == pcid);
        self.current = match found {
            Some(place) => place,
            None => {
                let generation = self.next_generation();
                if self.spaces.len() < SPACES {
                    self.spaces.push(Space {
                        pcid,
                        last_use: 0,
                        generation,
                        tables: [None, None, None, None],
                        two_mib: LargePages::default(),
                        one_gib: LargePages::default(),
                    });
                    self.spaces.len() - 1
                } else {
                    let oldest = (0..SPACES).min_by_key(|&n| self.spaces[n].last_use).unwrap_or(0);
                    let space = &mut self.spaces[oldest];
                    space.clear(true);
                    space.pcid = pcid;
                    space.generation = generation;
                    self.share_epoch();
                    oldest
                }
            }
        };
        self.spaces[self.current].last_use = self.uses;
    }

    /// The current address space's bank for a view.
    pub fn bank(&mut self, view: View) -> *mut Bank {
        &raw mut *self.table(view).bank
    }

    fn table(&mut self, view: View) -> &mut Table {
        if self.spaces[self.current].tables[view as usize].is_none() {
            self.make_table(view);
        }
        let table = &mut self.spaces[self.current].tables[view as usize];
        table.as_mut().expect("made just now")
    }

    /// Apart, because a table is large and is made on the stack first.
    #[cold]
    #[inline(never)]
    fn make_table(&mut self, view: View) {
        let mut table = Table::new();
        if view != View::User {
            let known = self.spaces.iter().find_map(|space| space.tables[view as usize].as_ref());
            if let Some(known) = known {
                table.bank.share_code(&known.bank);
            }
            let shared = self.supervisors().find(|table| !table.bank.has_local_code());
            table.bank.epoch = shared.map_or(table.bank.epoch, |shared| shared.bank.epoch);
        }
        self.spaces[self.current].tables[view as usize] = Some(table);
    }

    /// Supervisors that execute global pages only have one epoch in all address spaces:
    /// what is known of an indirect jump in one is true in the others.
    fn share_epoch(&mut self) {
        let shared = |table: &&mut Table| !table.bank.has_local_code();
        let newest = self.supervisors().filter(shared).map(|table| table.bank.epoch).max();
        for table in self.supervisors().filter(shared) {
            table.bank.epoch = newest.unwrap_or(table.bank.epoch);
        }
    }

    fn supervisors(&mut self) -> impl Iterator<Item = &mut Table> {
        self.spaces.iter_mut().flat_map(|space| space.tables[1..3].iter_mut().flatten())
    }

    /// Notes what code is at a linear address of the current address space. What is global
    /// is so for the supervisor in all of them.
    pub fn set_code(&mut self, view: View, address: u64, id: u32, global: bool) {
        if !global || view == View::User {
            return self.table(view).bank.set_code(address, id, global);
        }
        for space in &mut self.spaces {
            for view in [View::Supervisor, View::SupervisorOnUser] {
                if let Some(table) = &mut space.tables[view as usize] {
                    table.bank.set_code(address, id, true);
                }
            }
        }
    }

    /// A bank in which no access finds anything, so that each is looked at.
    pub fn empty_bank(&mut self) -> *mut Bank {
        if self.spaces[self.current].tables[3].is_none() {
            self.make_empty_table();
        }
        let table = self.spaces[self.current].tables[3].as_mut();
        &raw mut *table.expect("made just now").bank
    }

    #[cold]
    #[inline(never)]
    fn make_empty_table(&mut self) {
        self.spaces[self.current].tables[3] = Some(Table::new());
    }

    /// Notes what code is at a linear address while the bank without data is the current one.
    pub fn set_code_in_empty(&mut self, address: u64, id: u32) {
        self.empty_bank();
        if let Some(table) = &mut self.spaces[self.current].tables[3] {
            table.bank.set_code(address, id, false);
        }
    }

    /// Remembers the size of a page of which something is kept.
    pub fn note_page(&mut self, address: u64, page_shift: u32) {
        let space = &mut self.spaces[self.current];
        match page_shift {
            12 => {}
            30 => space.one_gib.insert(address >> 30),
            _ => {
                // A 4 MiB page is two of 2 MiB, of which either may be named.
                let number = address >> 21;
                space.two_mib.insert(number);
                if page_shift == 22 {
                    space.two_mib.insert(number ^ 1);
                }
            }
        }
    }

    pub fn fill(&mut self, view: View, fill: Fill) {
        self.note_page(fill.address, fill.page_shift);
        self.keys |= fill.keys;
        let table = self.table(view);
        let place = index(fill.address);
        table.bank.fill_read(fill.address, fill.host);
        table.read.set(place, fill.global);
        if fill.write {
            table.bank.fill_write(fill.address, fill.host);
            table.write.set(place, fill.global);
        }
    }

    /// Forgets the current address space, or all of it but its global pages.
    pub fn flush_current(&mut self, keep_global: bool) {
        let generation = self.next_generation();
        let space = &mut self.spaces[self.current];
        space.clear(keep_global);
        space.generation = generation;
        self.share_epoch();
    }

    /// Forgets what is not global of one PCID.
    pub fn flush_pcid(&mut self, pcid: u16) {
        let generation = self.next_generation();
        if let Some(space) = self.spaces.iter_mut().find(|space| space.pcid == pcid) {
            space.clear(true);
            space.generation = generation;
        }
        self.share_epoch();
    }

    pub fn flush_all(&mut self, keep_global: bool) {
        for place in 0..self.spaces.len() {
            let generation = self.next_generation();
            self.spaces[place].clear(keep_global);
            self.spaces[place].generation = generation;
        }
        self.share_epoch();
    }

    /// Forgets one linear page in every address space: it may have been global.
    pub fn forget(&mut self, address: u64) {
        for place in 0..self.spaces.len() {
            if self.spaces[place].forget(address) {
                self.spaces[place].generation = self.next_generation();
            }
        }
        self.share_epoch();
    }

    /// Forgets one linear page of another PCID.
    pub fn forget_in(&mut self, pcid: u16, address: u64) {
        let generation = self.next_generation();
        if let Some(space) = self.spaces.iter_mut().find(|space| space.pcid == pcid) {
            space.forget(address);
            space.generation = generation;
        }
        self.share_epoch();
    }

    /// Forgets every entry with which this page of host memory could be written.
    pub fn forget_writes_to(&mut self, host: *mut u8) {
        for table in self.tables() {
            table.forget_writes_to(host);
        }
    }

    pub fn forget_all_writes(&mut self) {
        for table in self.tables() {
            table.clear_writes();
        }
    }

    /// Something else is allowed to pages of these keys now.
    pub fn keys_changed(&mut self, keys: u32) {
        if self.keys & keys != 0 {
            for table in self.tables() {
                table.clear_data();
            }
            self.keys = 0;
        }
    }

    fn tables(&mut self) -> impl Iterator<Item = &mut Table> {
        self.spaces.iter_mut().flat_map(|space| space.tables.iter_mut().flatten())
    }
}

#[cfg(test)]
mod tests;
