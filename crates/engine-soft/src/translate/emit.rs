//! A small assembler for what the translator itself adds to guest code.
//!
//! Guest instructions are re-encoded by iced-x86; the checks, spills and jumps around
//! them are few in kind and many in number, so they are written byte by byte here,
//! which takes a few nanoseconds each.
//!
//! Some of Intel's processors (those of Skylake's family, since the microcode of 2019) do
//! not keep the decoded form of 32 bytes of code in which a jump ends or which one
//! crosses. With a check before every access that is every second line, so here no jump
//! does on such a processor: no-operations stand before it, or before the comparison that
//! is decoded together with it.

use std::arch::x86_64::__cpuid;
use std::sync::LazyLock;

use super::frame::S1;

/// Host registers by the number of their encoding.
pub type Reg = u8;

pub const RAX: Reg = 0;
pub const RCX: Reg = 1;
pub const RDX: Reg = 2;
pub const RSP: Reg = 4;
pub const RBP: Reg = 5;
pub const RSI: Reg = 6;
pub const RDI: Reg = 7;
const NONE: Reg = 0xff;

/// Condition codes as they stand in `jcc` and `setcc`.
pub mod cc {
    pub const AE: u8 = 3;
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const BE: u8 = 6;
    pub const A: u8 = 7;
}

/// The arithmetic group: the digit in `81 /digit`, and `opcode = digit * 8 + form`.
#[derive(Clone, Copy)]
pub enum Alu {
    Add = 0,
    Or = 1,
    And = 4,
    Sub = 5,
    Cmp = 7,
}

/// A memory operand.
#[derive(Clone, Copy)]
pub struct Mem {
    base: Reg,
    index: Reg,
    scale_log2: u8,
    disp: i32,
    gs: bool,
}

impl Mem {
    /// A field of the vCPU's state.
    pub fn state(offset: usize) -> Mem {
        Mem { base: NONE, index: NONE, scale_log2: 0, disp: offset as i32, gs: true }
    }

    pub fn at(base: Reg, disp: i32) -> Mem {
        Mem { base, index: NONE, scale_log2: 0, disp, gs: false }
    }

    /// Any combination; a part that is not there is `None`.
    pub fn parts(base: Option<Reg>, index: Option<(Reg, u8)>, disp: i32) -> Mem {
        let (index, scale_log2) = index.unwrap_or((NONE, 0));
        Mem { base: base.unwrap_or(NONE), index, scale_log2, disp, gs: false }
    }
}

impl Mem {
    pub fn base(self) -> Option<Reg> {
        Some(self.base).filter(|&base| base != NONE)
    }

    /// Only for those that are not scaled.
    pub fn index(self) -> Option<Reg> {
        Some(self.index).filter(|&index| index != NONE)
    }

    pub fn displacement(self) -> i64 {
        i64::from(self.disp)
    }
}

/// A place in the code where a 32-bit displacement is still to be filled in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fixup(pub usize);

/// Code that jumps may not leave in the decoded form.
const LINE: u64 = 32;

/// Whether a jump at the end of a line costs more here.
static LINES_MATTER: LazyLock<bool> = LazyLock::new(|| {
    let vendor = __cpuid(0);
    let signature = __cpuid(1).eax;
    let (family, model) = (signature >> 8 & 15, signature >> 4 & 15 | signature >> 12 & 0xf0);
    let intel = vendor.ebx == u32::from_le_bytes(*b"Genu");
    intel && family == 6 && matches!(model, 0x4e | 0x55 | 0x5e | 0x8e | 0x9e | 0xa5 | 0xa6 | 0xae)
});

const NOPS: [&[u8]; 9] = [
    &[0x90],
    &[0x66, 0x90],
    &[0x0f, 0x1f, 0x00],
    &[0x0f, 0x1f, 0x40, 0x00],
    &[0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
    &[0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
    &[0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
];

/// Code under construction.
pub struct Emit {
    pub code: Vec<u8>,
    /// The address that `code[0]` will execute at.
    pub origin: u64,
    /// The guest's register whose value S1 has, too, until something else is put there.
    pub held: Option<Reg>,
    pads: bool,
}

impl Emit {
    /// For code that will be placed at `origin`.
    pub fn new(capacity: usize, origin: u64) -> Emit {
        Emit { code: Vec::with_capacity(capacity), origin, held: None, pads: *LINES_MATTER }
    }

    /// Before `length` bytes that end with a jump, where they must be in one line.
    pub fn room_for_jump(&mut self, length: u64) {
        let at = (self.origin + self.code.len() as u64) % LINE;
        if !self.pads || at + length < LINE || length >= LINE {
            return;
        }
        let mut left = (LINE - at) as usize;
        while left != 0 {
            let piece = NOPS[left.min(NOPS.len()) - 1];
            self.bytes(piece);
            left -= piece.len();
        }
    }

    pub fn here(&self) -> usize {
        self.code.len()
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    fn imm32(&mut self, value: i32) {
        self.bytes(&value.to_le_bytes());
    }

    fn modrm(&mut self, reg: Reg, mem: Mem) {
        let reg = (reg & 7) << 3;
        if mem.base == NONE {
            let index = if mem.index == NONE { 4 } else { mem.index & 7 };
            self.bytes(&[reg | 4, mem.scale_log2 << 6 | index << 3 | 5]);
            self.imm32(mem.disp);
            return;
        }
        let mode = match mem.disp {
            0 if mem.base & 7 != 5 => 0,
            -128..=127 => 0x40,
            _ => 0x80,
        };
        if mem.index != NONE || mem.base & 7 == 4 {
            let index = if mem.index == NONE { 4 } else { mem.index & 7 };
            self.bytes(&[mode | reg | 4, mem.scale_log2 << 6 | index << 3 | (mem.base & 7)]);
        } else {
            self.code.push(mode | reg | (mem.base & 7));
        }
        match mode {
            0x40 => self.code.push(mem.disp as u8),
            0x80 => self.imm32(mem.disp),
            _ => {}
        }
    }

    /// An instruction may have changed its register operands.
    fn changes(&mut self, opcode: &[u8], reg: Reg, rm: Reg) {
        let stores = matches!(opcode, [0x38..=0x3b | 0x85 | 0x88 | 0x89]);
        let changes_rm = matches!(opcode, [0x80..=0x83 | 0x89 | 0xc1 | 0xf7 | 0xff]);
        if reg == S1 && !stores || rm == S1 && changes_rm {
            self.held = None;
        }
    }

    /// An instruction with a register (or a digit) and a memory operand.
    pub fn op_mem(&mut self, wide: bool, opcode: &[u8], reg: Reg, mem: Mem) {
        self.changes(opcode, reg, NONE);
        if mem.gs {
            self.code.push(0x65);
        }
        let high = |register: Reg| (register != NONE && register >= 8) as u8;
        let rex = 0x40 | (wide as u8) << 3 | high(reg) << 2 | high(mem.index) << 1 | high(mem.base);
        if rex != 0x40 {
            self.code.push(rex);
        }
        self.bytes(opcode);
        self.modrm(reg, mem);
    }

    /// An instruction with a register and the memory at an address that the code can reach.
    pub fn op_at(&mut self, wide: bool, opcode: &[u8], reg: Reg, address: u64) {
        self.changes(opcode, reg, NONE);
        let rex = 0x40 | (wide as u8) << 3 | (reg >> 3) << 2;
        if rex != 0x40 {
            self.code.push(rex);
        }
        self.bytes(opcode);
        self.code.push((reg & 7) << 3 | 5);
        self.imm32(0);
        self.bind_address(Fixup(self.here() - 4), address);
    }

    /// An instruction with two registers: `reg` and `rm` of the ModRM byte.
    pub fn op_reg(&mut self, wide: bool, opcode: &[u8], reg: Reg, rm: Reg) {
        self.changes(opcode, reg, rm);
        let rex = 0x40 | (wide as u8) << 3 | (reg >> 3) << 2 | rm >> 3;
        if rex != 0x40 {
            self.code.push(rex);
        }
        self.bytes(opcode);
        self.code.push(0xc0 | (reg & 7) << 3 | (rm & 7));
    }

    pub fn load(&mut self, to: Reg, from: Mem) {
        self.op_mem(true, &[0x8b], to, from);
    }

    pub fn load32(&mut self, to: Reg, from: Mem) {
        self.op_mem(false, &[0x8b], to, from);
    }

    pub fn store(&mut self, to: Mem, from: Reg) {
        self.op_mem(true, &[0x89], from, to);
    }

    /// Stores a sign-extended constant.
    pub fn store_imm(&mut self, to: Mem, value: i32) {
        self.op_mem(true, &[0xc7], 0, to);
        self.imm32(value);
    }

    pub fn store32_imm(&mut self, to: Mem, value: i32) {
        self.op_mem(false, &[0xc7], 0, to);
        self.imm32(value);
    }

    pub fn mov(&mut self, to: Reg, from: Reg) {
        self.op_reg(true, &[0x8b], to, from);
    }

    pub fn mov32(&mut self, to: Reg, from: Reg) {
        self.op_reg(false, &[0x8b], to, from);
    }

    /// Loads a constant in its shortest form. Flags stay.
    pub fn mov_imm(&mut self, to: Reg, value: u64) {
        self.changes(&[0xb8], to, NONE);
        let low = to & 7;
        if value <= u64::from(u32::MAX) {
            if to >= 8 {
                self.code.push(0x41);
            }
            self.code.push(0xb8 | low);
            self.imm32(value as i32);
        } else if value as i64 == i64::from(value as i32) {
            self.bytes(&[0x48 | to >> 3, 0xc7, 0xc0 | low]);
            self.imm32(value as i32);
        } else {
            self.bytes(&[0x48 | to >> 3, 0xb8 | low]);
            self.bytes(&value.to_le_bytes());
        }
    }

    pub fn lea(&mut self, to: Reg, mem: Mem) {
        self.op_mem(true, &[0x8d], to, mem);
    }

    pub fn alu_mem(&mut self, op: Alu, to: Reg, from: Mem) {
        self.op_mem(true, &[(op as u8) << 3 | 3], to, from);
    }

    pub fn alu_reg(&mut self, op: Alu, to: Reg, from: Reg) {
        self.op_reg(true, &[(op as u8) << 3 | 3], to, from);
    }

    pub fn alu_imm(&mut self, wide: bool, op: Alu, to: Reg, value: i32) {
        if (-128..=127).contains(&value) {
            self.op_reg(wide, &[0x83], op as u8, to);
            self.code.push(value as u8);
        } else {
            self.op_reg(wide, &[0x81], op as u8, to);
            self.imm32(value);
        }
    }

    /// A 32-bit operation on memory with a constant.
    pub fn alu_mem_imm32(&mut self, op: Alu, to: Mem, value: i32) {
        if (-128..=127).contains(&value) {
            self.op_mem(false, &[0x83], op as u8, to);
            self.code.push(value as u8);
        } else {
            self.op_mem(false, &[0x81], op as u8, to);
            self.imm32(value);
        }
    }

    /// Compares 32 bits of memory with a constant that is always four bytes long, and
    /// returns where it stands.
    pub fn cmp_mem_patchable(&mut self, mem: Mem, value: u32) -> usize {
        self.op_mem(false, &[0x81], Alu::Cmp as u8, mem);
        self.imm32(value as i32);
        self.here() - 4
    }

    pub fn shift_imm(&mut self, wide: bool, digit: u8, to: Reg, count: u8) {
        self.op_reg(wide, &[0xc1], digit, to);
        self.code.push(count);
    }

    pub fn jmp(&mut self) -> Fixup {
        self.room_for_jump(5);
        self.code.push(0xe9);
        self.imm32(0);
        Fixup(self.here() - 4)
    }

    pub fn call(&mut self) -> Fixup {
        self.held = None;
        self.room_for_jump(5);
        self.code.push(0xe8);
        self.imm32(0);
        Fixup(self.here() - 4)
    }

    pub fn jcc(&mut self, condition: u8) -> Fixup {
        self.room_for_jump(6);
        self.bytes(&[0x0f, 0x80 | condition]);
        self.imm32(0);
        Fixup(self.here() - 4)
    }

    /// Compares a register with a constant that takes four bytes, and jumps.
    pub fn cmp_jcc(&mut self, register: Reg, value: i32, condition: u8) -> Fixup {
        self.room_for_jump(13);
        self.alu_imm(true, Alu::Cmp, register, value);
        self.jcc(condition)
    }

    /// Points a displacement to a place in this code.
    pub fn bind(&mut self, fixup: Fixup, place: usize) {
        let distance = place as i64 - (fixup.0 as i64 + 4);
        self.code[fixup.0..fixup.0 + 4].copy_from_slice(&(distance as i32).to_le_bytes());
    }

    pub fn bind_here(&mut self, fixup: Fixup) {
        self.bind(fixup, self.here());
    }

    /// Points a displacement to an address outside of this code.
    pub fn bind_address(&mut self, fixup: Fixup, address: u64) {
        let distance = address.wrapping_sub(self.origin + fixup.0 as u64 + 4);
        self.code[fixup.0..fixup.0 + 4].copy_from_slice(&(distance as i32).to_le_bytes());
    }

    pub fn jmp_to(&mut self, address: u64) {
        let fixup = self.jmp();
        self.bind_address(fixup, address);
    }

    pub fn call_to(&mut self, address: u64) {
        let fixup = self.call();
        self.bind_address(fixup, address);
    }

    pub fn jcc_to(&mut self, condition: u8, address: u64) {
        let fixup = self.jcc(condition);
        self.bind_address(fixup, address);
    }
}
