//! What generated code and the Rust code around it tell each other.
//!
//! One [`Frame`] a vCPU, a part of its [`CpuState`], so that generated code reaches
//! it through GS.

use std::mem::offset_of;

use super::emit::{Mem, Reg};
use crate::state::CpuState;

/// The guest's registers that have no host register: generated code keeps its
/// scratch registers and the guest's stack pointer in their places. Compilers take these
/// three last.
pub const S0: Reg = 14;
pub const S1: Reg = 13;
/// Holds the guest's RSP; the host's RSP is the shadow stack.
pub const STACK: Reg = 15;
pub const DISPLACED: [Reg; 3] = [S0, S1, STACK];

/// Entries of the jump cache.
pub const JUMPS: usize = 1024;

/// Where an indirect jump goes while the bank's epoch is this one.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub struct Jump {
    pub rip: u64,
    pub epoch: u64,
    pub code: u64,
}

impl Jump {
    /// What stands in a place of the cache when nothing does: an address of another place,
    /// so that not even a jump to address 0 finds it.
    pub fn empty(place: usize) -> Jump {
        Jump { rip: u64::from(place == jump_index(0)), epoch: 0, code: 0 }
    }
}

/// The multiplier of the jump cache's hash; generated code has it as a constant.
pub const JUMP_HASH: u32 = 0x9e37_79b1;

/// What is left of the product in 32 bits is the place.
pub const JUMP_SHIFT: u8 = 32 - JUMPS.trailing_zeros() as u8;

/// Where a target belongs in the jump cache.
pub fn jump_index(rip: u64) -> usize {
    ((rip as u32).wrapping_mul(JUMP_HASH) >> JUMP_SHIFT) as usize
}

/// Why generated code was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Leave {
    /// Go on at `rip`.
    Next = 0,
    /// Go on at `rip`, and connect the link in `argument`.
    Link = 1,
    /// Interpret the instruction at `rip`.
    Interpret = 2,
    /// The host trapped at `trapped`.
    Trap = 3,
    /// Go on at `rip` in its plain translation, and connect the link in `argument`.
    Plain = 4,
}

#[derive(Default)]
#[repr(C)]
pub struct Frame {
    /// Arithmetic flags when they are not in the host's flags: OF in the low byte, the
    /// rest in the high byte as LAHF gives them. Within generated code also where they can be
    /// computed ([`super::deferred`]).
    pub flags: u64,
    /// Stack pointer of generated code while it does not run, where it began, and the page
    /// in which it traps for being too deep.
    pub shadow: u64,
    pub shadow_top: u64,
    pub shadow_guard: u64,
    /// The jump cache.
    pub jumps: u64,
    /// A [`Leave`], and what belongs to it.
    pub leave: u32,
    pub argument: u32,
    /// For the helpers: the translator that runs.
    pub context: u64,
    /// The supervisor's banks while AC is clear and while it is set.
    pub bank_without_ac: u64,
    pub bank_with_ac: u64,
    /// Not 0: an interrupt waits for IF.
    pub waiting: u32,
    /// Host address of a trap in generated code.
    pub trapped: u64,
    /// The guest may read its TSC, which is the host's and this.
    pub tsc_usable: u32,
    pub tsc_offset: u64,
    pub tsc_aux: u64,
    /// Instructions begun, where the code counts them.
    pub begun: u64,
    /// Not 0: the guest's vectors and MXCSR are in the host's registers, not in the state.
    pub vectors_live: u32,
    /// The list of sites that hold something: its free part.
    pub sites_next: u64,
    pub sites_end: u64,
    /// A site to be retired, or 0.
    pub restless_site: u64,
    /// What the checks of groups have found.
    pub distances: [u64; DISTANCES],
}

/// Groups that can be open at once while S0 is used for other things.
pub const DISTANCES: usize = 6;

macro_rules! field {
    ($name:ident, $($path:tt)+) => {
        pub fn $name() -> Mem { Mem::state(offset_of!(CpuState, $($path)+)) }
    };
}

field!(rip, rip);
field!(rflags, rflags);
field!(attention, attention);
field!(cr4, cr4);
field!(mxcsr, mxcsr);
field!(bank, bank);
field!(host_rsp, host_rsp);
field!(host_mxcsr, host_mxcsr);
field!(flags, generated.flags);
field!(shadow, generated.shadow);
field!(shadow_top, generated.shadow_top);
field!(jumps, generated.jumps);
field!(leave, generated.leave);
field!(argument, generated.argument);
field!(context, generated.context);
field!(bank_without_ac, generated.bank_without_ac);
field!(bank_with_ac, generated.bank_with_ac);
field!(waiting, generated.waiting);
field!(trapped, generated.trapped);
field!(tsc_usable, generated.tsc_usable);
field!(tsc_offset, generated.tsc_offset);
field!(tsc_aux, generated.tsc_aux);
field!(kernel_gs_base, kernel_gs_base);
field!(begun, generated.begun);
field!(vectors_live, generated.vectors_live);
field!(sites_next, generated.sites_next);
field!(sites_end, generated.sites_end);
field!(restless_site, generated.restless_site);

/// The high byte of the flags.
pub fn flags_high() -> Mem {
    Mem::state(offset_of!(CpuState, generated.flags) + 1)
}

pub fn gpr(number: Reg) -> Mem {
    Mem::state(offset_of!(CpuState, gpr) + 8 * number as usize)
}

pub fn scratch(number: usize) -> Mem {
    Mem::state(offset_of!(CpuState, scratch) + 8 * number)
}

pub fn distance(slot: usize) -> Mem {
    Mem::state(offset_of!(CpuState, generated.distances) + 8 * slot)
}

pub fn segment_base(segment: usize) -> Mem {
    let place = size_of::<crate::state::Segment>() * segment;
    Mem::state(offset_of!(CpuState, seg) + place + offset_of!(crate::state::Segment, base))
}

pub fn selector(segment: usize) -> Mem {
    let place = size_of::<crate::state::Segment>() * segment;
    Mem::state(offset_of!(CpuState, seg) + place + offset_of!(crate::state::Segment, selector))
}

pub fn vector_offset(number: usize) -> usize {
    offset_of!(CpuState, vector) + 64 * number
}

pub fn opmask_offset(number: usize) -> usize {
    offset_of!(CpuState, opmask) + 8 * number
}

/// The arithmetic flags in RFLAGS: CF, PF, AF, ZF, SF, OF.
pub const ARITHMETIC: u64 = 0x8d5;

/// RFLAGS into the form of [`Frame::flags`].
pub fn pack_flags(rflags: u64) -> u64 {
    (rflags & 0xd5 | 2) << 8 | rflags >> 11 & 1
}

/// The arithmetic flags from the form of [`Frame::flags`].
pub fn unpack_flags(packed: u64) -> u64 {
    packed >> 8 & 0xd5 | (packed & 1) << 11
}
