//! What has been translated: where it can be entered, what it was made from, and how
//! pieces of it are connected.
//!
//! A **page id** stands for one linear page, backed by one physical page, in one mode
//! of the processor. Banks hold, by linear page, the id that is mapped there now
//! (`Bank::code`), so a link between pages needs one comparison to know that its
//! target is still what it was. Ids are never used again.
//!
//! When bytes that a region was made from change, the region dies: every place where
//! it can be entered becomes a jump to a stub that goes through the Rust code, and
//! later to the code that has replaced it. Its memory is not used again before the
//! whole cache is emptied, which happens when the arena is full.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::NO_ADDRESS;
use super::block::{Compiled, Guess, Origin};
use super::branches::code_place;
use super::emit::Emit;
use super::frame::{self, S1};
use super::paths::Paths;
use super::runtime::Routines;
use crate::host::arena::Arena;

/// Multiplies: keys are addresses and small numbers, and nobody chooses them to harm
/// more than the guest itself.
#[derive(Default)]
pub struct Multiply(u64);

impl Hasher for Multiply {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 29;
    }
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<Multiply>>;

/// What a page id stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageKey {
    pub linear: u64,
    pub physical: u64,
    pub mode: u32,
}

struct Record {
    /// Offset in the arena where its code begins.
    start: u32,
    /// Offset in the page of its first instruction.
    first: u16,
    page: PageKey,
    page_id: u32,
    plain: bool,
    alive: bool,
    /// Offset in the page, place in the code.
    entries: Vec<(u16, u32)>,
    returns: Vec<(u16, u32)>,
    origins: Vec<Origin>,
}

/// Of a link that is not connected any more.
const NO_PLACE: u64 = 0;

struct Link {
    jump: u64,
    expected: u64,
    guess: Option<Guess>,
    /// Of the code that it is in.
    start: u64,
}

/// What a host address belongs to.
pub struct Place {
    /// The page that it was made from, and the mode ([`super::Mode`]'s key).
    pub linear: u64,
    pub mode: u32,
    pub origin: Option<Origin>,
    /// Where the region begins, and how far into its code the address is.
    pub start: u64,
    pub inside: u32,
}

/// Counters for `--stats`.
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheCounts {
    pub regions: u64,
    pub instructions: u64,
    pub flushes: u64,
    pub invalidated: u64,
    pub links: u64,
    pub retargeted: u64,
    pub retired: u64,
    pub guesses_given_up: u64,
}

pub struct Cache {
    pub arena: Arena,
    pub counts: CacheCounts,
    ids: Map<PageKey, u32>,
    pages: Map<u32, PageKey>,
    next_id: u32,
    entries: Map<u64, u64>,
    records: Vec<Record>,
    /// By physical page: regions that were made from it, and from which parts.
    by_page: Map<u64, Vec<(u32, u64)>>,
    links: Vec<Link>,
    /// Entries of dead regions, by what they entered.
    dead: Map<u64, Vec<u64>>,
    /// Indirect jumps that guess code, by its address.
    guesses: Map<u64, Vec<u32>>,
    /// The arena is full, or nearly.
    pub exhausted: bool,
}

fn key(page_id: u32, offset: u16, plain: bool) -> u64 {
    (plain as u64) << 63 | u64::from(page_id) << 12 | u64::from(offset)
}

impl Cache {
    pub fn new(arena: Arena) -> Cache {
        Cache {
            arena,
            counts: CacheCounts::default(),
            ids: Map::default(),
            pages: Map::default(),
            next_id: 1,
            entries: Map::default(),
            records: Vec::new(),
            by_page: Map::default(),
            links: Vec::new(),
            dead: Map::default(),
            guesses: Map::default(),
            exhausted: false,
        }
    }

    /// Forgets all code. Nothing may be running in it or return to it.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.ids.clear();
        self.pages.clear();
        self.entries.clear();
        self.records.clear();
        self.by_page.clear();
        self.links.clear();
        self.dead.clear();
        self.guesses.clear();
        self.exhausted = false;
        self.counts.flushes += 1;
    }

    /// The same, and gives the memory back that it took.
    pub fn give_back(&mut self) {
        self.clear();
        self.arena.give_back();
        self.ids.shrink_to_fit();
        self.pages.shrink_to_fit();
        self.entries.shrink_to_fit();
        self.records.shrink_to_fit();
        self.by_page.shrink_to_fit();
        self.links.shrink_to_fit();
        self.dead.shrink_to_fit();
        self.guesses.shrink_to_fit();
    }

    pub fn id(&mut self, page: PageKey) -> u32 {
        if let Some(&id) = self.ids.get(&page) {
            return id;
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.ids.insert(page, id);
        self.pages.insert(id, page);
        id
    }

    pub fn page(&self, id: u32) -> Option<PageKey> {
        self.pages.get(&id).copied()
    }

    /// Where the code for an instruction begins; `plain` is for that without groups.
    pub fn entry(&self, page_id: u32, offset: u16, plain: bool) -> Option<u64> {
        self.entries.get(&key(page_id, offset, plain)).copied()
    }

    pub fn next_link(&self) -> u32 {
        self.links.len() as u32
    }

    /// Takes over a region's code. None if it does not fit.
    pub fn add(
        &mut self,
        page: PageKey,
        page_id: u32,
        sources: &[(u64, u64)],
        (instructions, plain): (usize, bool),
        mut compiled: Compiled,
    ) -> Option<u64> {
        if plain {
            // Only who asks for it gets it.
            compiled.entries.truncate(1);
        }
        let address = self.arena.next();
        if !self.make_sites(address, &compiled.sites) {
            return None;
        }
        self.arena.place(&compiled.code)?;
        for &(offset, place) in &compiled.entries {
            // The newest one counts only where there is none: older links go there.
            self.entries.entry(key(page_id, offset, plain)).or_insert(address + u64::from(place));
        }
        let first = compiled.entries[0];
        self.entries.insert(key(page_id, first.0, plain), address);
        for &(offset, _) in &compiled.entries {
            let code = self.entries[&key(page_id, offset, plain)];
            for dead in self.dead.remove(&key(page_id, offset, plain)).unwrap_or_default() {
                self.counts.retargeted += 1;
                self.patch_jump(dead, code);
            }
        }
        for link in &compiled.links {
            self.links.push(Link {
                jump: address + link.jump.0 as u64,
                expected: link.expected.map_or(0, |place| address + place as u64),
                guess: link.guess,
                start: address,
            });
        }
        for &(physical, granules) in sources {
            let list = self.by_page.entry(physical).or_default();
            list.push((self.records.len() as u32, granules));
        }
        self.records.push(Record {
            start: (address - self.arena.range().start as u64) as u32,
            first: first.0,
            page,
            page_id,
            plain,
            alive: true,
            entries: compiled.entries,
            returns: compiled.returns,
            origins: compiled.origins,
        });
        self.counts.regions += 1;
        self.counts.instructions += instructions as u64;
        Some(address)
    }

    /// Writes only what differs: writing near code that has just run makes the host's
    /// processor start over.
    fn write32(&self, address: u64, value: u32) {
        let place = self.arena.writable(address as *const u8).cast::<u32>();
        // SAFETY: the address is within code that this cache has placed, and the vCPU's
        // thread, the only one that runs it, is here.
        unsafe {
            if place.read_unaligned() != value {
                place.write_unaligned(value);
            }
        }
    }

    fn write64(&self, address: u64, value: u64) {
        self.write32(address, value as u32);
        self.write32(address + 4, (value >> 32) as u32);
    }

    fn read64(&self, address: u64) -> u64 {
        let place = self.arena.writable(address as *const u8).cast::<u64>();
        // SAFETY: the address is within code that this cache has placed.
        unsafe { place.read_unaligned() }
    }

    /// Overwrites five bytes with a jump.
    pub(super) fn patch_jump(&self, from: u64, to: u64) {
        let place = self.arena.writable(from as *const u8);
        // SAFETY: as in `write32`.
        unsafe { *place = 0xe9 };
        self.write32(from + 1, to.wrapping_sub(from + 5) as u32);
    }

    /// Points a link to its target's code, which is for `rip`.
    pub fn connect(&mut self, number: u32, page_id: u32, rip: u64, code: u64) {
        let Some(link) = self.links.get(number as usize) else { return };
        if link.jump == NO_PLACE {
            return;
        }
        let target = link.start + link.guess.map_or(0, |guess| guess.target as u64);
        if link.guess.is_some()
            && !{
                let known = self.read64(target);
                known == NO_ADDRESS || known == rip
            }
        {
            return self.give_up(number);
        }
        self.write32(link.jump, code.wrapping_sub(link.jump + 4) as u32);
        if link.expected != 0 {
            self.write32(link.expected, page_id);
        }
        if let Some(guess) = link.guess {
            self.write64(target, rip);
            // The place in the bank stands before the id.
            self.write32(link.expected - 4, code_place(rip) as u32);
            let first = guess.first.0 as u64;
            self.write32(link.start + first, (guess.rest as u64 - (first + 4)) as u32);
            self.guesses.entry(code).or_default().push(number);
        }
        self.counts.links += 1;
    }

    /// Kills the regions that were made from these bytes. True if there were any. What the
    /// jump cache knows of them goes, too.
    pub fn invalidate(
        &mut self,
        physical: u64,
        granules: u64,
        routines: &Routines,
        paths: &mut Paths,
    ) -> bool {
        let Some(list) = self.by_page.get_mut(&physical) else { return false };
        let (dying, rest): (Vec<_>, Vec<_>) =
            std::mem::take(list).into_iter().partition(|&(_, made_from)| made_from & granules != 0);
        *list = rest;
        let mut any = false;
        for &(index, _) in &dying {
            if std::mem::take(&mut self.records[index as usize].alive) {
                any = true;
                self.counts.invalidated += 1;
                self.kill(index as usize, routines, paths);
            }
        }
        any
    }

    fn kill(&mut self, index: usize, routines: &Routines, paths: &mut Paths) {
        let record = &mut self.records[index];
        let entries = std::mem::take(&mut record.entries);
        let returns = std::mem::take(&mut record.returns);
        let (linear, page_id, plain) = (record.page.linear, record.page_id, record.plain);
        let base = self.arena.range().start as u64 + u64::from(record.start);
        for (offset, place) in entries {
            let address = base + u64::from(place);
            self.forget_guesses(address);
            paths.forget(linear + u64::from(offset), address);
            if self.entries.get(&key(page_id, offset, plain)) == Some(&address) {
                self.entries.remove(&key(page_id, offset, plain));
            }
            self.divert(address, linear + u64::from(offset), routines);
            self.dead.entry(key(page_id, offset, plain)).or_default().push(address);
        }
        for (offset, place) in returns {
            self.divert(base + u64::from(place), linear + u64::from(offset), routines);
        }
    }

    /// Indirect jumps to this code look their targets up from now on: were they led on to
    /// what replaces it, the way would grow with each time that it is replaced.
    fn forget_guesses(&mut self, code: u64) {
        for number in self.guesses.remove(&code).unwrap_or_default() {
            self.give_up(number);
        }
    }

    /// An indirect jump does not guess any more.
    fn give_up(&mut self, number: u32) {
        let link = &mut self.links[number as usize];
        let code = link.start;
        if let Some(guess) = link.guess.take() {
            let (start, rest) = (code + guess.start as u64, code + guess.rest as u64);
            link.jump = NO_PLACE;
            self.patch_jump(start, rest);
            self.counts.guesses_given_up += 1;
        }
    }

    /// Makes a place go to the Rust code.
    fn divert(&mut self, place: u64, rip: u64, routines: &Routines) {
        let mut emit = Emit::new(40, self.arena.next());
        emit.mov_imm(S1, rip);
        emit.store(frame::rip(), S1);
        emit.jmp_to(routines.leave_next);
        match self.arena.place(&emit.code) {
            Some(stub) => self.patch_jump(place, stub as u64),
            // Everything goes before any of it runs again.
            None => self.exhausted = true,
        }
    }

    /// What a host address belongs to, if it is in a region.
    pub fn find(&self, host: u64) -> Option<Place> {
        let start = self.arena.range().start as u64;
        let offset = u32::try_from(host.checked_sub(start)?).ok()?;
        let after = self.records.partition_point(|record| record.start <= offset);
        let record = self.records.get(after.checked_sub(1)?)?;
        let inside = offset - record.start;
        let next = record.origins.partition_point(|origin| origin.host <= inside);
        let origin = next.checked_sub(1).map(|index| record.origins[index]);
        let page = record.page;
        let begin = page.linear + u64::from(record.first);
        Some(Place { linear: page.linear, mode: page.mode, origin, start: begin, inside })
    }
}
