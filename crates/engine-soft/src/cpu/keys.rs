//! Protection keys: the two registers that say what pages of each key are closed to.
//!
//! A leaf entry of 4-level paging carries a key of four bits. PKRU has two bits for each
//! key of user pages, IA32_PKRS for each key of supervisor pages: no data access, no
//! writes. Walks ask here; instruction fetches do not.
//!
//! An entry in the TLB holds what the keys allowed when it was filled. [`Spaces`] remembers
//! which keys that were, so that a change of a register that closes or opens other keys
//! only, as most of a kernel's context switches do, forgets nothing.
//!
//! [`Spaces`]: crate::memory::spaces::Spaces

use super::Cpu;
use super::mode::bits::*;
use crate::interpret::op::{Op, Run, Step};
use crate::state::{RAX, RCX, RDX};
use guise_engine::extensions::Register;
use guise_engine::processor::msr::IA32_PKRS;

/// The key of a page, and which register is asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageKey {
    pub user: bool,
    pub key: u8,
}

/// What a key leaves of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    pub to_all: bool,
    pub to_writes: bool,
}

impl PageKey {
    /// Its place in a set of keys: user pages' first.
    pub fn bit(self) -> u32 {
        1 << (self.key + if self.user { 0 } else { 16 })
    }
}

/// The keys of which two values of a register do not say the same.
fn changed(old: u32, new: u32) -> u32 {
    let differs = old ^ new;
    (0..16).filter(|key| differs >> (2 * key) & 3 != 0).fold(0, |set, key| set | 1 << key)
}

impl Cpu {
    /// The key that counts for a page of this leaf entry, while keys are enabled.
    pub fn page_key(&self, entry: u64, user: bool) -> Option<PageKey> {
        let enabled = if user { CR4_PKE } else { CR4_PKS };
        let counts = self.mode.long && self.state.cr4 & enabled != 0;
        counts.then_some(PageKey { user, key: (entry >> 59 & 15) as u8 })
    }

    pub fn key_register(&self, user: bool) -> u32 {
        if user {
            self.state.pkru
        } else {
            self.msr.plain.get(&IA32_PKRS).map_or(0, |&value| value as u32)
        }
    }

    /// What data accesses to pages of this key cannot do, from user mode or not.
    pub fn closed_by(&self, key: PageKey, from_user: bool) -> Closed {
        let bits = self.key_register(key.user) >> (2 * key.key);
        let binds = from_user || self.state.cr0 & CR0_WP != 0;
        Closed { to_all: bits & 1 != 0, to_writes: bits & 2 != 0 && binds }
    }

    /// Forgets translations that were made under another value of PKRU or PKRS.
    pub fn key_register_changed(&mut self, user: bool, old: u32) {
        let keys = changed(old, self.key_register(user));
        self.spaces.keys_changed(if user { keys } else { keys << 16 });
    }
}

/// #UD unless keys of user pages are enabled, #GP(0) unless ECX is 0.
fn require_keys(cpu: &mut Cpu) -> Run {
    let there = cpu.shared.model.tells(7, Register::Ecx, 3);
    if !there || cpu.state.cr4 & CR4_PKE == 0 {
        return cpu.invalid_opcode();
    }
    if cpu.state.gpr[RCX] as u32 == 0 { Ok(()) } else { cpu.general_protection(0) }
}

pub fn rdpkru(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    require_keys(cpu)?;
    cpu.state.gpr[RAX] = u64::from(cpu.state.pkru);
    cpu.state.gpr[RDX] = 0;
    Ok(Step::Next)
}

pub fn wrpkru(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    require_keys(cpu)?;
    if cpu.state.gpr[RDX] as u32 != 0 {
        return cpu.general_protection(0);
    }
    let old = std::mem::replace(&mut cpu.state.pkru, cpu.state.gpr[RAX] as u32);
    cpu.key_register_changed(true, old);
    Ok(Step::Next)
}

#[cfg(test)]
mod tests;
