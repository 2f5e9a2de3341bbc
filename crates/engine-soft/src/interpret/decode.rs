//! From bytes to operations.
//!
//! iced decodes; this chooses a handler for each instruction and lays out what it
//! needs. Instructions are decoded as if the block began at address 0, so that what
//! iced gives as targets of branches and RIP-relative operands is an offset from the
//! block, wherever that is mapped. What no handler is written for runs on the host.
//!
//! [`integer`](self::integer) chooses for arithmetic, logic and moves,
//! [`flow`](self::flow) for stack and branches, [`privileged`](self::privileged) for
//! system instructions.

mod flow;
mod integer;
mod privileged;

use std::cell::Cell;

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::op::{Address, Extra, Handler, Op, Run, Slot, Step};
use super::{branch, vector};
use crate::cpu::{Cpu, Mode};
use crate::host::classify::{self, Class};
use crate::host::features::Features;
use crate::state::{CS, DS, ES, FS, GS, SS};

/// A block ends after so many instructions at the latest.
const MOST: usize = 64;

pub enum Decoded {
    Ops {
        ops: Vec<Op>,
        length: u32,
    },
    /// The bytes end within the first instruction.
    TooShort,
}

/// What decoding depends on.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub mode: &'a Mode,
    pub features: &'a Features,
}

/// What a handler was chosen for, and whether the block ends with it.
pub struct Choice {
    pub run: Handler,
    pub ends: bool,
}

pub fn goes_on(run: Handler) -> Option<Choice> {
    Some(Choice { run, ends: false })
}

pub fn ends(run: Handler) -> Option<Choice> {
    Some(Choice { run, ends: true })
}

/// An instruction on its way to an operation.
pub struct Builder<'a> {
    pub instruction: &'a Instruction,
    pub mode: &'a Mode,
    pub op: Op,
}

fn undefined(cpu: &mut Cpu, _op: &Op) -> Run<Step> {
    cpu.invalid_opcode()
}

fn empty_op() -> Op {
    Op {
        run: Cell::new(undefined),
        a: Slot::ZERO,
        b: Slot::ZERO,
        start: 0,
        length: 0,
        small: 0,
        address: Address::NONE,
        immediate: 0,
        extra: None,
    }
}

/// Decodes as many instructions as a block may have.
pub fn block(bytes: &[u8], context: Context) -> Decoded {
    decode(bytes, context, MOST)
}

/// Decodes one.
pub fn single(bytes: &[u8], context: Context) -> Decoded {
    decode(bytes, context, 1)
}

fn decode(bytes: &[u8], context: Context, most: usize) -> Decoded {
    let bits = context.mode.code_bits as u32;
    let mut decoder = Decoder::with_ip(bits, bytes, 0, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let mut ops: Vec<Op> = Vec::with_capacity(most.min(16) + 1);
    let mut length = 0;
    let mut after_sti = false;
    while ops.len() < most {
        if decoder.position() == bytes.len() && !ops.is_empty() {
            break;
        }
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes {
            // More than 15 bytes are an invalid instruction, not a short one.
            if bytes.len() - length < 15 {
                if ops.is_empty() {
                    return Decoded::TooShort;
                }
                break;
            }
        }
        let start = length;
        length += instruction.len().max(1);
        let (op, ends) = translate(&instruction, context, start as u16);
        if after_sti && let Some(sti) = ops.last_mut() {
            sti.small = 1;
        }
        after_sti = instruction.mnemonic() == Mnemonic::Sti;
        ops.push(op);
        if ends {
            return Decoded::Ops { ops, length: length as u32 };
        }
    }
    ops.push(Op { run: Cell::new(branch::fall_through), start: length as u16, ..empty_op() });
    Decoded::Ops { ops, length: length as u32 }
}

/// The operation for an instruction, and whether the block ends with it.
fn translate(instruction: &Instruction, context: Context, start: u16) -> (Op, bool) {
    let mode = context.mode;
    let op = Op { start, length: instruction.len().max(1) as u8, ..empty_op() };
    let mut builder = Builder { instruction, mode, op };
    if instruction.is_invalid() {
        return (builder.op, true);
    }
    builder.address();
    let choice = builder
        .integer()
        .or_else(|| builder.flow())
        .or_else(|| builder.privileged())
        .or_else(|| builder.on_host(context.features));
    match choice {
        Some(choice) => {
            builder.op.run.set(choice.run);
            (builder.op, choice.ends)
        }
        None => (builder.op, true),
    }
}

pub fn segment_index(register: Register) -> usize {
    match register {
        Register::ES => ES,
        Register::CS => CS,
        Register::SS => SS,
        Register::FS => FS,
        Register::GS => GS,
        _ => DS,
    }
}

impl Builder<'_> {
    pub fn mnemonic(&self) -> Mnemonic {
        self.instruction.mnemonic()
    }

    pub fn is_memory(&self, operand: u32) -> bool {
        self.instruction.op_kind(operand) == OpKind::Memory
    }

    pub fn is_register(&self, operand: u32) -> bool {
        self.instruction.op_kind(operand) == OpKind::Register
    }

    pub fn register(&self, operand: u32) -> Register {
        self.instruction.op_register(operand)
    }

    pub fn slot(&self, operand: u32) -> Slot {
        Slot::of(self.register(operand))
    }

    /// Size in bytes of a register or memory operand.
    pub fn size(&self, operand: u32) -> usize {
        match self.instruction.op_kind(operand) {
            OpKind::Register => self.register(operand).size(),
            _ => self.instruction.memory_size().size(),
        }
    }

    /// Sign-extended.
    pub fn immediate(&self, operand: u32) -> u64 {
        self.instruction.immediate(operand)
    }

    pub fn is_locked(&self) -> bool {
        self.instruction.has_lock_prefix()
    }

    /// Lays out the memory operand, if there is one.
    fn address(&mut self) {
        let i = self.instruction;
        let mut string_width = None;
        for operand in 0..i.op_count() {
            match i.op_kind(operand) {
                OpKind::Memory => {
                    self.explicit_address();
                    return;
                }
                OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => {
                    string_width = Some(0xffff);
                }
                OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => {
                    string_width = Some(0xffff_ffff);
                }
                OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => {
                    string_width = Some(!0);
                }
                _ => {}
            }
        }
        if let Some(mask) = string_width {
            self.op.address.mask = mask;
            self.op.address = self.in_segment(self.op.address, segment_index(i.memory_segment()));
        }
    }

    fn explicit_address(&mut self) {
        let i = self.instruction;
        let (base, index) = (i.memory_base(), i.memory_index());
        let width = match (base, index) {
            (Register::None, Register::None) => i.memory_displ_size() as usize,
            (Register::None, index) if index.is_gpr() => index.size(),
            (Register::None, _) => i.memory_displ_size() as usize,
            (base, _) => base.size(),
        };
        let mask = match width {
            2 => 0xffff,
            4 => 0xffff_ffff,
            8 => !0,
            _ if self.mode.is_64() => !0,
            _ if self.mode.code_bits == 32 => 0xffff_ffff,
            _ => 0xffff,
        };
        let address = Address {
            base: Slot::of(base),
            index: if index.is_gpr() { Slot::of(index) } else { Slot::ZERO },
            scale: i.memory_index_scale().trailing_zeros() as u8,
            displacement: i.memory_displacement64(),
            mask,
            ..Address::NONE
        };
        self.op.address = self.in_segment(address, segment_index(i.memory_segment()));
    }

    fn in_segment(&self, address: Address, segment: usize) -> Address {
        if self.mode.is_64() {
            address.with_segment(segment, matches!(segment, FS | GS), false)
        } else {
            let unchecked = self.mode.flat && matches!(segment, DS | ES | SS);
            address.with_segment(segment, false, !unchecked)
        }
    }

    pub fn keep_instruction(&mut self) {
        let instruction = *self.instruction;
        self.op.extra = Some(Box::new(Extra { instruction, stub: Cell::new(None) }));
    }

    /// What the host's processor executes, or nobody.
    fn on_host(&mut self, features: &Features) -> Option<Choice> {
        match classify::classify(self.instruction, features) {
            Class::Stub => {
                self.keep_instruction();
                if self.is_locked() {
                    return goes_on(vector::locked_stub);
                }
                goes_on(if self.instruction.op_count() > 0 && self.has_memory() {
                    vector::stub_with_memory
                } else {
                    vector::stub
                })
            }
            Class::Hint => goes_on(vector::hint),
            Class::Masked => {
                self.keep_instruction();
                self.implicit_address();
                goes_on(vector::masked)
            }
            Class::Decimal => {
                self.keep_instruction();
                goes_on(vector::decimal)
            }
            Class::Core | Class::Invalid => None,
        }
    }

    /// MASKMOVDQU and MASKMOVQ: the operand is at RDI.
    fn implicit_address(&mut self) {
        let first = self.instruction.op_kind(0);
        let mask = match first {
            OpKind::MemorySegDI => 0xffff,
            OpKind::MemorySegEDI => 0xffff_ffff,
            OpKind::MemorySegRDI => !0,
            _ => return,
        };
        self.op.address.base = Slot::gpr(crate::state::RDI);
        self.op.address.mask = mask;
    }

    pub fn has_memory(&self) -> bool {
        (0..self.instruction.op_count()).any(|n| self.is_memory(n))
    }
}

/// Chooses a handler's version by the size of its operand.
macro_rules! sized {
    ($size:expr, $($name:ident)::+ $(, $generic:ty)*) => {
        match $size {
            1 => $($name)::+::<$($generic,)* u8>,
            2 => $($name)::+::<$($generic,)* u16>,
            4 => $($name)::+::<$($generic,)* u32>,
            8 => $($name)::+::<$($generic,)* u64>,
            _ => return None,
        }
    };
}

/// As `sized`, without a version for bytes.
macro_rules! wide {
    ($size:expr, $($name:ident)::+ $(, $generic:ty)*) => {
        match $size {
            2 => $($name)::+::<$($generic,)* u16>,
            4 => $($name)::+::<$($generic,)* u32>,
            8 => $($name)::+::<$($generic,)* u64>,
            _ => return None,
        }
    };
}

use {sized, wide};
