//! Places that remember what they have accessed last.
//!
//! Most instructions access the same few pages again and again. So in user code each access
//! has a [`Site`]: a stretch of linear memory that lies in one piece in the host's, too, found
//! without any computation.
//!
//! ```text
//! lea S0, [address]
//! sub S0, [site.start] ; cmp S0, 4096 - size ; ja     out of line: asks the software TLB
//! mov S0, [site.distance]        or        add S0, [site.host]
//! ```
//!
//! That is one page at first. A site that changes its page all the time is looked at by the
//! Rust code ([`Sites::settle`]), which gives it all the pages around that the bank knows and
//! that go on in the same way; from then on its compare is with `[site.limit]`, and it grows
//! when the page before or behind it is asked for and goes on like that. Where that does not
//! help, either, the access goes by way of the software TLB from then on: the subtraction is
//! overwritten with a jump there.
//!
//! What a site holds is true as long as nothing is taken away from the bank that it was
//! filled from ([`Bank::changes`]). Sites that hold something are in a list; when user
//! code is about to run on another bank, or on one that has changed, all of them are
//! emptied.

use std::arch::x86_64::_rdtsc;
use std::mem::offset_of;

use super::block::{Compiler, Origin};
use super::cache::Cache;
use super::emit::{Alu, Emit, Fixup, Mem, RAX, RCX, RDX, Reg, cc};
use super::frame::{self, S0, S1};
use super::memory::{AccessInfo, ENTRY_HOST, Form, INDEX_MASK};
use crate::state::CpuState;
use crate::tlb::{Bank, PAGE_SIZE};

/// In the data of the arena; generated code knows the layout.
#[repr(C, align(64))]
struct Site {
    start: u64,
    /// How far from the start an access may begin.
    limit: u64,
    /// From the guest's memory to the host's.
    distance: u64,
    /// Where the start is in this process.
    host: u64,
    /// How many bytes there are.
    length: u64,
    /// When it was filled, by the low part of the host's TSC.
    filled: u32,
    /// How often that was soon after the time before.
    restless: u16,
    /// Not 0: the compare is with the limit. Until then a site holds one page.
    grows: u8,
    /// From the subtraction to the compare.
    gap: u8,
    /// Offsets in the arena: of its subtraction, and of the access by the software TLB.
    compare: u32,
    lookup: u32,
    /// When the Rust code looked at it last, and how often it has lately.
    settled: u32,
    settlings: u8,
    write: bool,
    /// Of an access.
    size: u16,
}

pub(super) const SIZE: usize = size_of::<Site>();
/// An address that no data has: it is not canonical. Nor is what any distance makes of
/// it: an access there traps, which is the guest's fault.
pub(super) const EMPTY: u64 = 0x8000_0000_0000_0000;
const START: u64 = offset_of!(Site, start) as u64;
const LIMIT: u64 = offset_of!(Site, limit) as u64;
const DISTANCE: u64 = offset_of!(Site, distance) as u64;
const HOST: u64 = offset_of!(Site, host) as u64;
const LENGTH: i32 = offset_of!(Site, length) as i32;
const FILLED: i32 = offset_of!(Site, filled) as i32;
const RESTLESS: i32 = offset_of!(Site, restless) as i32;
const ACCESS_SIZE: i32 = offset_of!(Site, size) as i32;
const GROWS: i32 = offset_of!(Site, grows) as i32;
/// Bytes of the compare, with a constant and with the limit, and of the jump's opcode.
const COMPARE: usize = 7;
const JUMP: usize = 2;
const _: () = assert!(SIZE == 64, "a line of the host's cache");
/// Ticks of the TSC between two fills that are soon after each other, and how many of
/// these in a row make a site one for the Rust code.
const SOON: i32 = 250;
const TOO_OFTEN: i32 = 64;
/// Pages that the Rust code adds to a site on each side, at most.
const AROUND: u64 = 512;
/// How often the Rust code looks at a site before it gives up, unless this many units of
/// 1024 ticks have passed since the last time.
const SETTLINGS: u8 = 8;
const LATELY: u32 = 1000;
/// Sites that are filled at once, at most.
const LISTED: usize = 8192;

/// A site, before it is known where it is.
#[derive(Clone, Copy)]
pub struct NewSite {
    pub compare: usize,
    pub gap: u8,
    pub lookup: usize,
    pub size: u32,
    pub write: bool,
}

/// Which sites hold something, and of which bank.
pub(super) struct Sites {
    list: Box<[u64]>,
    bank: u64,
    changes: u64,
}

impl Sites {
    pub fn new() -> Sites {
        Sites { list: vec![0; LISTED].into_boxed_slice(), bank: 0, changes: 0 }
    }

    /// Sites are filled only while this is so.
    pub fn start(&mut self, state: &mut CpuState) {
        let start = self.list.as_ptr() as u64;
        state.generated.sites_next = start;
        state.generated.sites_end = start + (LISTED * 8) as u64;
    }

    /// Before user code runs: empties sites whose contents may not be true any more, or
    /// all if no more fit into the list.
    pub fn check(&mut self, state: &mut CpuState) {
        // SAFETY: the bank is the vCPU's current one.
        let changes = unsafe { (*state.bank).changes };
        let bank = state.bank as u64;
        let full = state.generated.sites_next == state.generated.sites_end;
        if self.bank == bank && self.changes == changes && !full {
            return;
        }
        (self.bank, self.changes) = (bank, changes);
        let start = self.list.as_ptr() as u64;
        let count = (state.generated.sites_next.wrapping_sub(start) / 8) as usize;
        for &site in self.list.iter().take(count) {
            // SAFETY: the list holds writable addresses of sites, which live as long as
            // the arena.
            let site = unsafe { &mut *(site as *mut Site) };
            (site.start, site.host) = (EMPTY, EMPTY);
        }
        self.start(state);
    }

    /// Gives a site that cannot settle all the memory around an address that it has just
    /// accessed. False if that does not help. Sites have been checked.
    pub fn settle(&mut self, state: &mut CpuState, address: u64, cache: &Cache) -> bool {
        let in_code = std::mem::take(&mut state.generated.restless_site);
        let place = cache.arena.writable(in_code as *const u8).cast::<Site>();
        // SAFETY: generated code has told the address of one of its sites, which nobody else
        // has a reference to.
        let site = unsafe { &mut *place };
        // SAFETY: reads a counter.
        let now = unsafe { _rdtsc() >> 10 } as u32;
        if now.wrapping_sub(site.settled) > LATELY {
            site.settlings = 0;
        }
        site.settled = now;
        site.settlings += 1;
        // SAFETY: the bank is the vCPU's current one.
        let bank = unsafe { &*state.bank };
        let Some((start, host, length)) = around(bank, address, site.write) else { return true };
        let full = state.generated.sites_next == state.generated.sites_end;
        if length == PAGE_SIZE || site.settlings > SETTLINGS || full {
            return false;
        }
        if site.grows == 0 {
            site.grows = 1;
            let compare = site.compare + u32::from(site.gap);
            cache.compare_with_limit(compare, in_code);
        }
        (site.start, site.host, site.length) = (start, host, length);
        site.distance = host.wrapping_sub(start);
        site.limit = length - u64::from(site.size);
        // SAFETY: inside of the list, which is not full.
        unsafe { (state.generated.sites_next as *mut u64).write(place as u64) };
        state.generated.sites_next += 8;
        true
    }
}

/// The stretch of memory around an address that the bank knows and that is one in the host's
/// memory: where it starts, there and here, and its bytes. None if the bank does not know
/// the address.
fn around(bank: &Bank, address: u64, write: bool) -> Option<(u64, u64, u64)> {
    let find = |page| {
        let found = if write { bank.find_write(page, 1) } else { bank.find_read(page, 1) };
        found.map(|host| host as u64)
    };
    let page = address & !(PAGE_SIZE - 1);
    let host = find(page)?;
    let distance = host.wrapping_sub(page);
    let follows = |page: u64| find(page).is_some_and(|host| host.wrapping_sub(page) == distance);
    let reach = |step: u64| {
        (1..=AROUND).take_while(|by| follows(page.wrapping_add(by.wrapping_mul(step)))).count()
    };
    let below = reach(PAGE_SIZE.wrapping_neg()) as u64 * PAGE_SIZE;
    let above = reach(PAGE_SIZE) as u64 * PAGE_SIZE;
    let (start, host) = (page.wrapping_sub(below), host.wrapping_sub(below));
    Some((start, host, below + PAGE_SIZE + above))
}

impl Cache {
    /// Fills the data that belongs to code which was placed at `address`. Its sites were
    /// numbered backwards from what was reserved last.
    pub(super) fn make_sites(&mut self, address: u64, sites: &[NewSite]) -> bool {
        let top = self.arena.data();
        if !self.arena.reserve(sites.len() * SIZE) {
            return false;
        }
        let code = (address - self.arena.range().start as u64) as u32;
        for (number, site) in sites.iter().enumerate() {
            let place = top - ((number + 1) * SIZE) as u64;
            let place = self.arena.writable(place as *const u8).cast::<Site>();
            // SAFETY: reserved for this site just now, and aligned as the arena's end is.
            unsafe {
                place.write(Site {
                    start: EMPTY,
                    limit: 0,
                    distance: 0,
                    host: EMPTY,
                    length: 0,
                    filled: 0,
                    restless: 0,
                    compare: code + site.compare as u32,
                    lookup: code + site.lookup as u32,
                    settled: 0,
                    settlings: 0,
                    write: site.write,
                    size: site.size as u16,
                    grows: 0,
                    gap: site.gap,
                });
            }
        }
        true
    }

    /// A compare at this offset in the arena is with its site's limit from now on.
    fn compare_with_limit(&self, compare: u32, site: u64) {
        let at = self.arena.range().start as u64 + u64::from(compare);
        let mut emit = Emit::new(COMPARE, at);
        emit.op_at(true, &[0x3b], S0, site + LIMIT);
        assert_eq!(emit.code.len(), COMPARE);
        let place = self.arena.writable(at as *const u8);
        // SAFETY: placed code; only this thread runs it, and is elsewhere.
        unsafe { place.copy_from_nonoverlapping(emit.code.as_ptr(), COMPARE) };
    }

    /// A site's accesses go by way of the software TLB from now on.
    pub(super) fn retire(&mut self, site: u64) {
        let place = self.arena.writable(site as *const u8).cast::<Site>();
        // SAFETY: generated code has told the address of one of its sites.
        let (compare, lookup) = unsafe { ((*place).compare, (*place).lookup) };
        let start = self.arena.range().start as u64;
        self.patch_jump(start + u64::from(compare), start + u64::from(lookup));
        self.counts.retired += 1;
    }
}

/// What both kinds of failing checks need to go on.
#[derive(Clone, Copy)]
pub struct Failed {
    pub enter: Fixup,
    pub back: usize,
    pub info: AccessInfo,
    pub site: u64,
    pub number: usize,
    pub table: i32,
    pub form: Form,
    /// For a group: its RIP, link and the number of that here.
    pub group: Option<(u64, u32, usize)>,
    /// The guest's register that S1 is to hold afterwards.
    pub held: Option<Reg>,
}

impl Compiler<'_> {
    /// The check with a site. For an address, that is in S0.
    pub(super) fn check_site(&mut self, info: AccessInfo, table: i32, form: Form) -> Failed {
        let number = self.out.sites.len();
        let site = self.sites_top - ((number + 1) * SIZE) as u64;
        match form {
            Form::Distance { base, displacement: 0 } => self.emit.mov(S0, base),
            Form::Distance { base, displacement } => {
                self.emit.lea(S0, Mem::at(base, displacement));
            }
            Form::Address { .. } => {}
        }
        let compare = self.emit.here();
        self.emit.op_at(true, &[0x2b], S0, site + START);
        let enter = self.emit.cmp_jcc(S0, 4096 - info.size as i32, cc::A);
        let gap = (enter.0 - JUMP - COMPARE - compare) as u8;
        let (size, write) = (info.size, info.write);
        self.out.sites.push(NewSite { compare, gap, lookup: 0, size, write });
        self.apply(form, site);
        // An address in the page `EMPTY` gets here with an empty site, and traps.
        let (host, native) = (self.emit.here() as u32, self.flags.native);
        self.out.origins.push(Origin { host, offset: info.offset, native });
        let (back, held) = (self.emit.here(), self.emit.held);
        Failed { enter, back, info, site, number, table, form, group: None, held }
    }

    /// Whether what is so far from the site's start is in it: where that fails.
    fn within(&mut self, register: Reg, site: u64) -> Fixup {
        self.emit.room_for_jump(13);
        self.emit.op_at(true, &[0x3b], register, site + LIMIT);
        self.emit.jcc(cc::A)
    }

    /// The site knows the memory; for an address, S0 is how far from its start that is.
    fn apply(&mut self, form: Form, site: u64) {
        match form {
            Form::Distance { .. } => self.emit.op_at(true, &[0x8b], S0, site + DISTANCE),
            Form::Address { .. } => self.emit.op_at(true, &[0x03], S0, site + HOST),
        }
    }

    /// S0 is how far the address is from the site's start.
    pub(super) fn emit_site(&mut self, failed: Failed) {
        let Failed { enter, back, info, site, number, table, form, group, held } = failed;
        self.emit.bind_here(enter);
        self.emit.op_at(true, &[0x03], S0, site + START);
        self.emit.op_at(true, &[0x8d], S1, site);
        let routines = self.routines;
        self.emit.call_to(if info.write { routines.fill_write } else { routines.fill_read });
        self.emit.mov(S1, S0);
        self.emit.op_at(true, &[0x2b], S1, site + START);
        let slow = self.within(S1, site);
        if let Form::Address { .. } = form {
            self.emit.mov(S0, S1);
        }
        self.apply(form, site);
        self.go_back(held, back);
        // Instead of the comparison: S0 is the address.
        self.out.sites[number].lookup = self.emit.here();
        let other = self.look_up_page(info.size, table);
        self.emit.alu_mem(Alu::Add, S0, Mem::at(S1, table + ENTRY_HOST));
        self.give_form(form);
        self.go_back(held, back);
        self.emit.bind_here(slow);
        let both = self.emit.jmp();
        self.emit.bind_here(other);
        self.emit.alu_mem(Alu::Add, S0, Mem::at(S1, table));
        self.emit.bind_here(both);
        match group {
            Some(group) => self.emit_group_slow(back, info, form, group, held),
            None => {
                self.emit.mov_imm(S1, u64::from(info.pack()));
                self.emit.call_to(self.routines.access);
                self.give_form(form);
                self.go_back(held, back);
            }
        }
    }

    /// From code out of line to where it was left, with S1 as it was there.
    pub(super) fn go_back(&mut self, held: Option<Reg>, back: usize) {
        if let Some(number) = held {
            self.emit.load(S1, frame::gpr(number));
        }
        let jump = self.emit.jmp();
        self.emit.bind(jump, back);
    }
}

/// The routine that fills the site at S1 with the page of the address in S0, if the table
/// has that. Flags are lost.
pub(super) fn emit_fill(emit: &mut Emit, table: i32, twin: u64) {
    let site = |base, offset: u64| Mem::at(base, offset as i32);
    for (place, register) in [(3, RAX), (4, RCX), (5, RDX)] {
        emit.store(frame::scratch(place), register);
    }
    emit.mov32(RAX, S0);
    emit.shift_imm(false, 5, RAX, 8);
    emit.alu_imm(false, Alu::And, RAX, INDEX_MASK);
    emit.alu_mem(Alu::Add, RAX, frame::bank());
    emit.mov(RCX, S0);
    emit.alu_mem(Alu::Sub, RCX, Mem::at(RAX, table));
    emit.alu_imm(true, Alu::Cmp, RCX, PAGE_SIZE as i32);
    let unknown = emit.jcc(cc::AE);
    // RCX: where the site can be written.
    emit.mov_imm(RCX, twin);
    emit.alu_reg(Alu::Add, RCX, S1);
    emit.alu_mem_imm32(Alu::Cmp, site(S1, START + 4), (EMPTY >> 32) as i32);
    let listed = emit.jcc(cc::NE);
    emit.load(RDX, frame::sites_next());
    emit.alu_mem(Alu::Cmp, RDX, frame::sites_end());
    let full = emit.jcc(cc::E);
    emit.store(Mem::at(RDX, 0), RCX);
    emit.lea(RDX, Mem::at(RDX, 8));
    emit.store(frame::sites_next(), RDX);
    let first = emit.jmp();
    // Does the page go on where the site ends, or end where it starts?
    emit.bind_here(listed);
    emit.op_mem(false, &[0x80], Alu::Cmp as u8, Mem::at(S1, GROWS));
    emit.bytes(&[0]);
    let page_only = emit.jcc(cc::E);
    emit.load(RDX, Mem::at(RAX, table + ENTRY_HOST));
    emit.alu_mem(Alu::Sub, RDX, Mem::at(RAX, table));
    emit.alu_mem(Alu::Cmp, RDX, site(S1, DISTANCE));
    let elsewhere = emit.jcc(cc::NE);
    emit.load(RDX, Mem::at(RAX, table));
    emit.alu_mem(Alu::Sub, RDX, site(S1, START));
    emit.alu_mem(Alu::Cmp, RDX, Mem::at(S1, LENGTH));
    let above = emit.jcc(cc::E);
    emit.alu_imm(true, Alu::Cmp, RDX, -(PAGE_SIZE as i32));
    let apart = emit.jcc(cc::NE);
    for place in [START, HOST] {
        emit.load(RDX, site(S1, place));
        emit.alu_imm(true, Alu::Sub, RDX, PAGE_SIZE as i32);
        emit.store(site(RCX, place), RDX);
    }
    emit.bind_here(above);
    for place in [LIMIT, LENGTH as u64] {
        emit.load(RDX, site(S1, place));
        emit.alu_imm(true, Alu::Add, RDX, PAGE_SIZE as i32);
        emit.store(site(RCX, place), RDX);
    }
    let grown = emit.jmp();
    emit.bind_here(page_only);
    emit.bind_here(elsewhere);
    emit.bind_here(apart);
    emit.bind_here(first);
    emit.load(RDX, Mem::at(RAX, table));
    emit.store(site(RCX, START), RDX);
    emit.load(RDX, Mem::at(RAX, table + ENTRY_HOST));
    emit.store(site(RCX, HOST), RDX);
    emit.alu_mem(Alu::Sub, RDX, Mem::at(RAX, table));
    emit.store(site(RCX, DISTANCE), RDX);
    emit.mov_imm(RDX, PAGE_SIZE);
    emit.store(Mem::at(RCX, LENGTH), RDX);
    emit.op_mem(false, &[0x0f, 0xb7], RAX, Mem::at(S1, ACCESS_SIZE)); // movzx
    emit.alu_reg(Alu::Sub, RDX, RAX);
    emit.store(site(RCX, LIMIT), RDX);
    emit.bytes(&[0x0f, 0x31]); // rdtsc
    emit.mov32(RDX, RAX);
    emit.op_mem(false, &[0x2b], RDX, Mem::at(S1, FILLED));
    emit.op_mem(false, &[0x89], RAX, Mem::at(RCX, FILLED));
    emit.alu_imm(false, Alu::Cmp, RDX, SOON);
    let soon = emit.jcc(cc::BE);
    let restless = |emit: &mut Emit, operation, base, value| {
        emit.bytes(&[0x66]); // 16 bits
        emit.alu_mem_imm32(operation, Mem::at(base, RESTLESS), value);
    };
    restless(emit, Alu::And, RCX, 0);
    let calm = emit.jmp();
    emit.bind_here(soon);
    restless(emit, Alu::Add, RCX, 1);
    restless(emit, Alu::Cmp, S1, TOO_OFTEN);
    let bearable = emit.jcc(cc::BE);
    restless(emit, Alu::And, RCX, 0);
    // The helper is to settle it, and is called if the site is empty.
    emit.store(frame::restless_site(), S1);
    emit.mov_imm(RDX, EMPTY);
    emit.store(site(RCX, START), RDX);
    emit.store(site(RCX, HOST), RDX);
    emit.bind_here(bearable);
    emit.bind_here(calm);
    emit.bind_here(grown);
    emit.bind_here(full);
    emit.bind_here(unknown);
    for (place, register) in [(3, RAX), (4, RCX), (5, RDX)] {
        emit.load(register, frame::scratch(place));
    }
    emit.code.push(0xc3);
}

#[cfg(test)]
mod tests;
