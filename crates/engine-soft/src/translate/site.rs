//! Places that remember the page they have accessed last.
//!
//! Most instructions access the same page again and again. So in user code each access
//! has a [`Site`]: the linear page and how far from it the host's is, found without any
//! computation.
//!
//! ```text
//! lea S1, [address]
//! sub S1, [site.page] ; cmp S1, 4096 - size ; ja     out of line: asks the software TLB
//! mov S0, [site.distance]
//! ```
//!
//! What a site holds is true as long as nothing is taken away from the bank that it was
//! filled from ([`Bank::changes`]). Sites that hold something are in a list; when user
//! code is about to run on another bank, or on one that has changed, all of them are
//! emptied. A site that changes pages all the time becomes an access by way of the
//! software TLB: its compare is overwritten with a jump there.

use std::mem::offset_of;

use super::block::{Compiler, Origin};
use super::cache::Cache;
use super::emit::{Alu, Emit, Fixup, Mem, RAX, RCX, RDX, cc};
use super::frame::{self, S0, S1};
use super::memory::{AccessInfo, ENTRY_HOST, Form, INDEX_MASK};
use crate::state::CpuState;

/// In the data of the arena; generated code knows the layout.
#[repr(C)]
struct Site {
    page: u64,
    /// From the guest's page to the host's.
    distance: u64,
    /// When it was filled, by the low part of the host's TSC.
    filled: u32,
    /// How often that was soon after the time before.
    restless: u32,
    /// Offsets in the arena: of its compare, and of the access by the software TLB.
    compare: u32,
    lookup: u32,
}

pub(super) const SIZE: usize = size_of::<Site>();
/// An address that no data has: it is not canonical. Nor is what any distance makes of
/// it: an access there traps, which is the guest's fault.
pub(super) const EMPTY: u64 = 0x8000_0000_0000_0000;
const PAGE: u64 = offset_of!(Site, page) as u64;
const DISTANCE: u64 = offset_of!(Site, distance) as u64;
const FILLED: i32 = offset_of!(Site, filled) as i32;
const RESTLESS: i32 = offset_of!(Site, restless) as i32;
/// Ticks of the TSC between two fills that are soon after each other, and how many of
/// these in a row make a site give up.
const SOON: i32 = 250;
const TOO_OFTEN: i32 = 64;
/// Sites that are filled at once, at most.
const LISTED: usize = 8192;

/// A site's compare, before it is known where it is.
#[derive(Clone, Copy)]
pub struct NewSite {
    pub compare: usize,
    pub lookup: usize,
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
            unsafe { (*(site as *mut Site)).page = EMPTY };
        }
        self.start(state);
    }
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
                    page: EMPTY,
                    distance: 0,
                    filled: 0,
                    restless: 0,
                    compare: code + site.compare as u32,
                    lookup: code + site.lookup as u32,
                });
            }
        }
        true
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
}

impl Compiler<'_> {
    /// The check with a site.
    pub(super) fn check_site(&mut self, info: AccessInfo, table: i32, form: Form) -> Failed {
        let number = self.out.sites.len();
        let site = self.sites_top - ((number + 1) * SIZE) as u64;
        match form {
            Form::Distance { base, displacement: 0 } => self.emit.mov(S1, base),
            Form::Distance { base, displacement } => {
                self.emit.lea(S1, Mem::at(base, displacement));
            }
            Form::Base { displacement } => self.emit.lea(S1, Mem::at(S0, displacement)),
            Form::Address => self.emit.mov(S1, S0),
        }
        self.out.sites.push(NewSite { compare: self.emit.here(), lookup: 0 });
        self.emit.op_at(true, &[0x2b], S1, site + PAGE);
        let enter = self.emit.cmp_jcc(S1, 4096 - info.size as i32, cc::A);
        self.apply(form, site);
        // An address in the page `EMPTY` gets here with an empty site, and traps.
        let (host, native) = (self.emit.here() as u32, self.flags.native);
        self.out.origins.push(Origin { host, offset: info.offset, native });
        Failed { enter, back: self.emit.here(), info, site, number, table, form, group: None }
    }

    /// The site knows the page.
    fn apply(&mut self, form: Form, site: u64) {
        let opcode = if matches!(form, Form::Distance { .. }) { 0x8b } else { 0x03 };
        self.emit.op_at(true, &[opcode], S0, site + DISTANCE);
    }

    /// S1 is how far the address is from the site's page.
    pub(super) fn emit_site(&mut self, failed: Failed) {
        let Failed { enter, back, info, site, number, table, form, group } = failed;
        self.emit.bind_here(enter);
        self.emit.op_at(true, &[0x03], S1, site + PAGE);
        if let Form::Base { .. } = form {
            self.emit.store(frame::scratch(2), S0);
        }
        self.emit.mov(S0, S1);
        self.emit.op_at(true, &[0x8d], S1, site);
        let routines = self.routines;
        self.emit.call_to(if info.write { routines.fill_write } else { routines.fill_read });
        self.emit.mov(S1, S0);
        self.emit.op_at(true, &[0x2b], S1, site + PAGE);
        let slow = self.emit.cmp_jcc(S1, 4096 - info.size as i32, cc::A);
        if let Form::Base { .. } = form {
            self.emit.load(S0, frame::scratch(2));
        }
        self.apply(form, site);
        let jump = self.emit.jmp();
        self.emit.bind(jump, back);
        // Instead of the comparison: S1 is the address.
        self.out.sites[number].lookup = self.emit.here();
        self.emit.mov(S0, S1);
        let other = self.look_up_page(info.size, table);
        self.emit.alu_mem(Alu::Add, S0, Mem::at(S1, table + ENTRY_HOST));
        self.give_form(form);
        let jump = self.emit.jmp();
        self.emit.bind(jump, back);
        self.emit.bind_here(slow);
        let both = self.emit.jmp();
        self.emit.bind_here(other);
        self.emit.alu_mem(Alu::Add, S0, Mem::at(S1, table));
        self.emit.bind_here(both);
        match group {
            Some(group) => self.emit_group_slow(back, info, form, group),
            None => {
                self.emit.mov_imm(S1, u64::from(info.pack()));
                self.emit.call_to(self.routines.access);
                self.give_form(form);
                let jump = self.emit.jmp();
                self.emit.bind(jump, back);
            }
        }
    }
}

/// The routine that fills the site at S1 with the page of the address in S0, if the table
/// has that. Flags are lost.
pub(super) fn emit_fill(emit: &mut Emit, table: i32, twin: u64) {
    let site = |base, offset: i32| Mem::at(base, offset);
    for (place, register) in [(3, RAX), (4, RCX), (5, RDX)] {
        emit.store(frame::scratch(place), register);
    }
    emit.mov32(RAX, S0);
    emit.shift_imm(false, 5, RAX, 8);
    emit.alu_imm(false, Alu::And, RAX, INDEX_MASK);
    emit.alu_mem(Alu::Add, RAX, frame::bank());
    emit.mov(RCX, S0);
    emit.alu_mem(Alu::Sub, RCX, Mem::at(RAX, table));
    emit.alu_imm(true, Alu::Cmp, RCX, 4096);
    let unknown = emit.jcc(cc::AE);
    // RCX: where the site can be written.
    emit.mov_imm(RCX, twin);
    emit.alu_reg(Alu::Add, RCX, S1);
    emit.alu_mem_imm32(Alu::Cmp, site(S1, 4), (EMPTY >> 32) as i32);
    let listed = emit.jcc(cc::NE);
    emit.load(RDX, frame::sites_next());
    emit.alu_mem(Alu::Cmp, RDX, frame::sites_end());
    let full = emit.jcc(cc::E);
    emit.store(Mem::at(RDX, 0), RCX);
    emit.lea(RDX, Mem::at(RDX, 8));
    emit.store(frame::sites_next(), RDX);
    emit.bind_here(listed);
    emit.load(RDX, Mem::at(RAX, table));
    emit.store(site(RCX, PAGE as i32), RDX);
    emit.load(RDX, Mem::at(RAX, table + ENTRY_HOST));
    emit.alu_mem(Alu::Sub, RDX, Mem::at(RAX, table));
    emit.store(site(RCX, DISTANCE as i32), RDX);
    emit.bytes(&[0x0f, 0x31]); // rdtsc
    emit.mov32(RDX, RAX);
    emit.op_mem(false, &[0x2b], RDX, site(S1, FILLED));
    emit.op_mem(false, &[0x89], RAX, site(RCX, FILLED));
    emit.alu_imm(false, Alu::Cmp, RDX, SOON);
    let soon = emit.jcc(cc::BE);
    emit.store32_imm(site(RCX, RESTLESS), 0);
    let calm = emit.jmp();
    emit.bind_here(soon);
    emit.alu_mem_imm32(Alu::Add, site(RCX, RESTLESS), 1);
    emit.alu_mem_imm32(Alu::Cmp, site(S1, RESTLESS), TOO_OFTEN);
    let bearable = emit.jcc(cc::BE);
    emit.store32_imm(site(RCX, RESTLESS), 0);
    // The helper is to retire it, and is called if the site is empty.
    emit.store(frame::restless_site(), S1);
    emit.mov_imm(RDX, EMPTY);
    emit.store(site(RCX, PAGE as i32), RDX);
    emit.bind_here(bearable);
    emit.bind_here(calm);
    emit.bind_here(full);
    emit.bind_here(unknown);
    for (place, register) in [(3, RAX), (4, RCX), (5, RDX)] {
        emit.load(register, frame::scratch(place));
    }
    emit.code.push(0xc3);
}
