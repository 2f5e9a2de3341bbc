//! One decoded instruction, ready to be executed, and the blocks that hold them.
//!
//! An [`Op`] is a handler and its operands. A register operand is a [`Slot`]: the
//! offset of its bytes in the vCPU, so that AL, AH, AX, EAX and RAX are read alike,
//! a missing base or index is a field that is always 0, and RIP can be a base. RIP
//! stays at the block's first instruction while a block runs; whoever needs the
//! address of an instruction adds the instruction's offset. So a block does not
//! depend on the linear address at which it stands.

use std::cell::Cell;
use std::mem::offset_of;

use iced_x86::{Instruction, Register};

use crate::cpu::Cpu;
use crate::host::stub::Stub;
use crate::state::{CpuState, Segment};

/// An exception (or another reason to abandon the instruction) stands in
/// [`Cpu::raised`]; nothing of the instruction has been committed that would be in
/// the way of executing it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap;

/// What a piece of an instruction gives, or a [`Trap`].
pub type Run<T = ()> = Result<T, Trap>;

/// How execution goes on after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// With the next instruction of the block.
    Next,
    /// The block ends; RIP is set. The successor may be remembered in its first link.
    Fall,
    /// As `Fall`, for the second link.
    Taken,
    /// The block ends; RIP is set, and the successor or the mode may differ each time.
    Jump,
    /// The same instruction again, after a look at what wants attention.
    Again,
    /// The block was invalidated; RIP is set to what has not been executed.
    Stale,
}

pub type Handler = fn(&mut Cpu, &Op) -> Run<Step>;

/// Where an operand's bytes are in the vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u16);

impl Slot {
    pub const ZERO: Slot = Slot(offset_of!(CpuState, zero) as u16);
    const RIP: Slot = Slot(offset_of!(CpuState, rip) as u16);

    #[inline(always)]
    pub fn offset(self) -> usize {
        self.0 as usize
    }

    /// General register `number`, any width but for the high bytes.
    pub const fn gpr(number: usize) -> Slot {
        Slot((offset_of!(CpuState, gpr) + (number & 15) * 8) as u16)
    }

    /// The base of segment `number`.
    fn segment_base(number: usize) -> Slot {
        let segments = offset_of!(CpuState, seg) + number * size_of::<Segment>();
        Slot((segments + offset_of!(Segment, base)) as u16)
    }

    /// A general register of any width, RIP, or nothing.
    pub fn of(register: Register) -> Slot {
        match register {
            Register::None => Slot::ZERO,
            Register::RIP | Register::EIP => Slot::RIP,
            Register::AH | Register::CH | Register::DH | Register::BH => {
                let number = register as u16 - Register::AH as u16;
                Slot(offset_of!(CpuState, gpr) as u16 + number * 8 + 1)
            }
            other => Slot::gpr(other.full_register() as usize - Register::RAX as usize),
        }
    }
}

/// How an address is made: `(base + (index << scale) + displacement) & mask`, in a
/// segment.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub base: Slot,
    pub index: Slot,
    /// What is added for the segment where no check is needed.
    pub segment_base: Slot,
    pub scale: u8,
    /// Index of the segment register.
    pub segment: u8,
    /// Limit and access rights have to be looked at.
    pub checked: bool,
    pub displacement: u64,
    pub mask: u64,
}

impl Address {
    pub const NONE: Address = Address {
        base: Slot::ZERO,
        index: Slot::ZERO,
        segment_base: Slot::ZERO,
        scale: 0,
        segment: 0,
        checked: false,
        displacement: 0,
        mask: !0,
    };

    pub fn with_segment(mut self, segment: usize, add_base: bool, checked: bool) -> Address {
        self.segment = segment as u8;
        self.segment_base = if add_base { Slot::segment_base(segment) } else { Slot::ZERO };
        self.checked = checked;
        self
    }
}

/// What a rare instruction needs besides.
pub struct Extra {
    pub instruction: Instruction,
    /// The instruction as it runs on the host, once it did.
    pub stub: Cell<Option<Stub>>,
}

pub struct Op {
    pub run: Cell<Handler>,
    pub a: Slot,
    pub b: Slot,
    /// Where the instruction begins in the block, and its length.
    pub start: u16,
    pub length: u8,
    /// Meaning differs: a condition, a segment's number, a count.
    pub small: u8,
    pub address: Address,
    pub immediate: u64,
    /// Set where the operands above do not say all.
    pub extra: Option<Box<Extra>>,
}

impl Op {
    /// Offset of the following instruction in the block.
    #[inline(always)]
    pub fn end(&self) -> u64 {
        self.start as u64 + self.length as u64
    }
}

/// Instructions that follow each other in one page (a single one may reach into the
/// next page), up to the first that may go elsewhere.
pub struct Block {
    /// Where its first byte is in this process.
    pub host: *const u8,
    pub length: u32,
    /// The second page, for an instruction that crosses.
    pub second_page: Option<*const u8>,
    pub ops: Box<[Op]>,
    /// Successors in the same page.
    pub links: [Cell<*const Block>; 2],
}
