//! The routines that all generated code shares, generated themselves: into it, out of
//! it, and from it to Rust helpers and back.
//!
//! Generated code runs with the guest's registers in the host's and the host's stack
//! pointer on the shadow stack. Vectors and MXCSR follow when a region that uses them is
//! entered (`vectors_live` in the frame says whether they have): kernels hardly ever do,
//! and 32 vectors of 64 bytes each way are most of what coming and going would cost. A helper sees all of the guest's
//! registers in the state, runs on the stack of the Rust code that entered, and may
//! change what it likes there; it returns to the generated code, or tells it to
//! leave.

use std::ops::Range;

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};

use super::branches::look_up;
use super::deferred::{emit_compute, emit_settle};
use super::emit::{Alu, Emit, Mem, RAX, RCX, RDI, RDX, RSI, RSP, cc};
use super::flags::Flags;
use super::frame::{self, Leave, S0, S1, STACK};
use super::memory::{ENTRY_HOST, INDEX_MASK, TABLE_READ, TABLE_WRITE};
use super::registers::host_of;
use super::select::VectorLevel;
use super::site::emit_fill;
use crate::host::arena::Arena;

/// Addresses of the routines.
#[derive(Clone, Copy, Default)]
pub struct Routines {
    /// `extern "C" fn(code)`: runs generated code until it leaves.
    pub enter: u64,
    /// Leave; RIP is in the state, flags in the frame.
    pub leave_next: u64,
    pub leave_link: u64,
    pub leave_interpret: u64,
    pub leave_plain: u64,
    /// Leave; RIP is in S0.
    pub leave_to_s0: u64,
    /// Called after a failed check: S0 the address, S1 an `AccessInfo`. Returns with
    /// the host address in S0.
    pub access: u64,
    /// Called for one instruction to be interpreted: S1 its address, S0 the page's id
    /// and its length. Returns if control goes on behind it.
    pub interpret: u64,
    /// Called where the frame has a place instead of flags: computes them.
    pub settle: u64,
    /// Jumped to by a return whose shadow entry does not match, in the supervisor's code and
    /// in the user's: S0 the target.
    pub return_miss: [u64; 2],
    /// Called with vectors in the state: brings them, and MXCSR, into the host's registers.
    pub load_vectors: u64,
    /// Called with an address in S0 and a site in S1: fills it from the table for reads, or
    /// for writes, if that has the page.
    pub fill_read: u64,
    pub fill_write: u64,
    /// Stands as the return address in the shadow stack's last entry.
    pub return_bottom: u64,
    /// Where a trap in generated code goes on: S1 the trapping address.
    pub trap: u64,
    /// REP MOVS and STOS by log2 of the element's size; S0 is 0 afterwards if done.
    pub movs: [u64; 4],
    pub stos: [u64; 4],
}

/// What the routines call, as `extern "C"` functions.
#[derive(Clone, Copy)]
pub struct Helpers {
    /// (context, address, info, return address) -> host address, or 0 to leave.
    pub access: u64,
    /// (context, rip, info, return address) -> 1 to go on, 0 to leave.
    pub interpret: u64,
}

const CALLEE_SAVED: [u8; 6] = [3, 5, 12, 13, 14, 15];

/// The register that stands for the first vector, and the instructions that move it.
#[derive(Clone, Copy)]
struct Moves {
    first: Register,
    load: Code,
    store: Code,
}

const SSE_MOVES: Moves = Moves {
    first: Register::XMM0,
    load: Code::Movups_xmm_xmmm128,
    store: Code::Movups_xmmm128_xmm,
};
const VZEROUPPER: [u8; 3] = [0xc5, 0xf8, 0x77];

/// A place in the state, for instructions that are encoded.
fn in_state(offset: usize) -> MemoryOperand {
    let none = Register::None;
    MemoryOperand::new(none, none, 1, offset as i64, 4, false, Register::GS)
}

struct Builder {
    emit: Emit,
    vectors: VectorLevel,
}

impl Builder {
    fn push(&mut self, register: u8) {
        if register >= 8 {
            self.emit.code.push(0x41);
        }
        self.emit.code.push(0x50 | (register & 7));
    }

    fn pop(&mut self, register: u8) {
        if register >= 8 {
            self.emit.code.push(0x41);
        }
        self.emit.code.push(0x58 | (register & 7));
    }

    fn store_registers(&mut self) {
        for number in 0..16 {
            if let Some(host) = host_of(number) {
                self.emit.store(frame::gpr(number), host);
            }
        }
    }

    fn load_registers(&mut self) {
        for number in 0..16 {
            if let Some(host) = host_of(number) {
                self.emit.load(host, frame::gpr(number));
            }
        }
    }

    fn encode(&mut self, instruction: &Instruction) {
        let mut encoder = Encoder::new(64);
        encoder.encode(instruction, 0).expect("a register move encodes");
        self.emit.bytes(&encoder.take_buffer());
    }

    /// How vectors are moved from the state and to it.
    fn moves(&self) -> Moves {
        match self.vectors {
            VectorLevel::None | VectorLevel::Sse => SSE_MOVES,
            VectorLevel::Avx => Moves {
                first: Register::YMM0,
                load: Code::VEX_Vmovups_ymm_ymmm256,
                store: Code::VEX_Vmovups_ymmm256_ymm,
            },
            VectorLevel::Avx512 => Moves {
                first: Register::ZMM0,
                load: Code::EVEX_Vmovups_zmm_k1z_zmmm512,
                store: Code::EVEX_Vmovups_zmmm512_k1z_zmm,
            },
        }
    }

    fn move_vectors(&mut self, numbers: Range<usize>, moves: Moves, store: bool) {
        for number in numbers {
            let register = moves.first + number as u32;
            let memory = in_state(frame::vector_offset(number));
            let instruction = if store {
                Instruction::with2(moves.store, memory, register)
            } else {
                Instruction::with2(moves.load, register, memory)
            };
            self.encode(&instruction.expect("a vector move has this form"));
        }
    }

    /// Vectors 16 to 31 and the masks, where there are any.
    fn move_more(&mut self, store: bool) {
        if self.vectors != VectorLevel::Avx512 {
            return;
        }
        self.move_vectors(16..32, self.moves(), store);
        for number in 0..8 {
            let register = Register::K0 + number as u32;
            let memory = in_state(frame::opmask_offset(number));
            let instruction = if store {
                Instruction::with2(Code::VEX_Kmovq_m64_kr, memory, register)
            } else {
                Instruction::with2(Code::VEX_Kmovq_kr_km64, register, memory)
            };
            self.encode(&instruction.expect("a mask move has this form"));
        }
    }

    /// Sets ZF if the state has nothing above the low 16 bytes of vectors 0 to 15. Takes
    /// vectors 0 to 2.
    fn test_upper_parts(&mut self) {
        let whole = self.moves();
        let or = match self.vectors {
            VectorLevel::Avx512 => Code::EVEX_Vporq_zmm_k1z_zmm_zmmm512b64,
            _ => Code::VEX_Vorps_ymm_ymm_ymmm256,
        };
        let all = whole.first;
        self.move_vectors(0..1, whole, false);
        for number in 1..16 {
            let place = in_state(frame::vector_offset(number));
            self.encode(&Instruction::with3(or, all, all, place).expect("it has this form"));
        }
        let (ymm0, ymm1, xmm1, xmm2) =
            (Register::YMM0, Register::YMM1, Register::XMM1, Register::XMM2);
        let half = Code::VEX_Vextractf128_xmmm128_ymm_imm8;
        let steps = match self.vectors {
            VectorLevel::Avx512 => vec![
                Instruction::with3(
                    Code::EVEX_Vextractf64x4_ymmm256_k1z_zmm_imm8,
                    ymm1,
                    Register::ZMM0,
                    1,
                ),
                Instruction::with3(half, xmm2, ymm0, 1),
                Instruction::with3(Code::VEX_Vorps_ymm_ymm_ymmm256, ymm1, ymm1, Register::YMM2),
            ],
            _ => vec![Instruction::with3(half, xmm1, ymm0, 1)],
        };
        for step in steps {
            self.encode(&step.expect("it has this form"));
        }
        let test = Instruction::with2(Code::VEX_Vptest_ymm_ymmm256, ymm1, ymm1);
        self.encode(&test.expect("it has this form"));
    }

    fn load_mxcsr(&mut self, from: Mem) {
        self.emit.op_mem(false, &[0x0f, 0xae], 2, from);
    }

    fn store_mxcsr(&mut self, to: Mem) {
        self.emit.op_mem(false, &[0x0f, 0xae], 3, to);
    }

    /// If vectors are in the host's registers: puts them, and MXCSR, into the state.
    fn put_vectors_away(&mut self) {
        self.emit.alu_mem_imm32(Alu::Cmp, frame::vectors_live(), 0);
        let none = self.emit.jcc(cc::E);
        self.move_vectors(0..16, self.moves(), true);
        self.move_more(true);
        if self.vectors >= VectorLevel::Avx {
            self.emit.bytes(&VZEROUPPER);
        }
        self.store_mxcsr(frame::mxcsr());
        self.load_mxcsr(frame::host_mxcsr());
        self.emit.bind_here(none);
    }

    /// From the state. Where nothing is above the low 16 bytes of vectors, the processor must
    /// know it: after a move of wider ones, even of zeros, instructions of SSE wait for what
    /// they leave as it is there, and floating point takes up to four times as long.
    fn bring_vectors(&mut self) {
        self.load_mxcsr(frame::mxcsr());
        if self.vectors < VectorLevel::Avx {
            return self.move_vectors(0..16, SSE_MOVES, false);
        }
        self.test_upper_parts();
        let narrow = self.emit.jcc(cc::E);
        self.move_vectors(0..16, self.moves(), false);
        let moved = self.emit.jmp();
        self.emit.bind_here(narrow);
        self.emit.bytes(&VZEROUPPER);
        self.move_vectors(0..16, SSE_MOVES, false);
        self.emit.bind_here(moved);
        self.move_more(false);
    }

    fn load_vectors(&mut self) -> u64 {
        self.align();
        let start = self.here();
        self.store_mxcsr(frame::host_mxcsr());
        self.bring_vectors();
        self.emit.store32_imm(frame::vectors_live(), 1);
        self.emit.code.push(0xc3);
        start
    }

    fn here(&self) -> u64 {
        self.emit.origin + self.emit.here() as u64
    }

    fn align(&mut self) {
        while !self.emit.here().is_multiple_of(16) {
            self.emit.code.push(0xcc);
        }
    }

    fn enter(&mut self) -> u64 {
        let start = self.here();
        for register in CALLEE_SAVED {
            self.push(register);
        }
        self.emit.alu_imm(true, Alu::Sub, RSP, 8);
        self.emit.store(frame::host_rsp(), RSP);
        self.emit.store32_imm(frame::vectors_live(), 0);
        self.emit.store(frame::scratch(2), RDI);
        self.emit.load(RSP, frame::shadow());
        self.load_registers();
        self.emit.op_mem(false, &[0xff], 4, frame::scratch(2)); // jmp
        start
    }

    /// All of the ways out; the last one expects everything to be in the state.
    fn leave(&mut self, routines: &mut Routines) -> u64 {
        self.align();
        let mut joins = Vec::new();
        for (reason, place) in [
            (Leave::Link, &mut routines.leave_link),
            (Leave::Interpret, &mut routines.leave_interpret),
            (Leave::Plain, &mut routines.leave_plain),
            (Leave::Next, &mut routines.leave_next),
        ] {
            *place = self.here();
            self.emit.store32_imm(frame::leave(), reason as i32);
            joins.push(self.emit.jmp());
        }
        routines.leave_to_s0 = self.here();
        self.emit.store(frame::rip(), S0);
        self.emit.jmp_to(routines.leave_next);
        // A trap: its address is in S1, and the host's flags may be the guest's.
        routines.trap = self.here();
        self.emit.store(frame::trapped(), S1);
        let mut flags = Flags::NATIVE;
        self.emit.load(S1, frame::flags());
        self.emit.store(frame::scratch(6), S1);
        flags.put_aside(&mut self.emit, true);
        self.emit.load(S1, frame::flags());
        self.emit.store(frame::scratch(7), S1);
        self.emit.load(S1, frame::scratch(6));
        self.emit.store(frame::flags(), S1);
        self.emit.store32_imm(frame::leave(), Leave::Trap as i32);
        for join in joins {
            self.emit.bind_here(join);
        }
        emit_settle(&mut self.emit, routines.settle);
        self.store_registers();
        self.emit.store(frame::shadow(), RSP);
        self.put_vectors_away();
        let stored = self.here();
        self.emit.load(RSP, frame::host_rsp());
        self.emit.alu_imm(true, Alu::Add, RSP, 8);
        for register in CALLEE_SAVED.into_iter().rev() {
            self.pop(register);
        }
        self.emit.code.push(0xc3);
        stored
    }

    /// A call to a helper with all registers in the state.
    fn helper(&mut self, helper: u64, (stored, settle): (u64, u64), interprets: bool) -> u64 {
        self.align();
        let start = self.here();
        emit_settle(&mut self.emit, settle);
        self.store_registers();
        self.emit.store(frame::shadow(), RSP);
        self.put_vectors_away();
        if interprets {
            self.emit.mov(RSI, S1);
            self.emit.mov(RDX, S0);
        } else {
            self.emit.mov(RSI, S0);
            self.emit.mov(RDX, S1);
        }
        self.emit.load(RCX, Mem::at(RSP, 0));
        self.emit.load(RDI, frame::context());
        self.emit.load(RSP, frame::host_rsp());
        self.emit.mov_imm(RAX, helper);
        self.emit.op_reg(false, &[0xff], 2, RAX); // call rax
        self.emit.load(RSP, frame::shadow());
        self.emit.op_reg(true, &[0x85], RAX, RAX);
        let leave = self.emit.jcc(cc::E);
        self.emit.mov(S0, RAX);
        self.emit.alu_mem_imm32(Alu::Cmp, frame::vectors_live(), 0);
        let none = self.emit.jcc(cc::E);
        self.bring_vectors();
        self.emit.bind_here(none);
        self.load_registers();
        self.emit.code.push(0xc3);
        self.emit.bind_here(leave);
        self.emit.alu_imm(true, Alu::Add, RSP, 8);
        self.emit.store(frame::shadow(), RSP);
        self.emit.jmp_to(stored);
        start
    }

    /// Drops the entry that does not match, and looks the target up.
    fn return_miss(&mut self, routines: &mut Routines) {
        for supervisor in [false, true] {
            self.align();
            routines.return_miss[usize::from(!supervisor)] = self.here();
            self.emit.alu_mem(Alu::Cmp, RSP, frame::shadow_top());
            let bottom = self.emit.jcc(cc::AE);
            self.emit.lea(RSP, Mem::at(RSP, 8));
            self.emit.bind_here(bottom);
            self.look_up(supervisor, routines);
        }
        self.align();
        routines.return_bottom = self.here();
        self.emit.load(RSP, frame::shadow_top());
        self.look_up(true, routines);
    }

    fn look_up(&mut self, supervisor: bool, routines: &Routines) {
        for unknown in look_up(&mut self.emit, supervisor) {
            self.emit.bind_address(unknown, routines.leave_to_s0);
        }
    }

    /// Offset in the page of the address in `register` to S0, and its entry's place to
    /// S1; jumps away if there is no entry for it.
    fn find(&mut self, register: u8, table: i32) -> super::emit::Fixup {
        self.emit.mov32(S1, register);
        self.emit.shift_imm(false, 5, S1, 8);
        self.emit.alu_imm(false, Alu::And, S1, INDEX_MASK);
        self.emit.alu_mem(Alu::Add, S1, frame::bank());
        self.emit.mov(S0, register);
        self.emit.alu_mem(Alu::Sub, S0, Mem::at(S1, table));
        self.emit.alu_imm(true, Alu::Cmp, S0, 4096);
        self.emit.jcc(cc::AE)
    }

    /// REP MOVS or REP STOS upwards: pieces that stay in a page on both sides, until
    /// RCX is 0. Flags are lost. Gives up, between two elements, on what is not in the
    /// TLB, elements across pages, and when something wants attention.
    fn bulk(&mut self, log2: u8, moves: bool) -> u64 {
        self.align();
        let start = self.here();
        let mut give_up = Vec::new();
        // test dword gs:[rflags], DF
        self.emit.op_mem(false, &[0xf7], 0, frame::rflags());
        self.emit.bytes(&0x400u32.to_le_bytes());
        give_up.push(self.emit.jcc(cc::NE));
        let again = self.emit.here();
        self.emit.op_reg(true, &[0x85], RCX, RCX);
        let done = self.emit.jcc(cc::E);
        self.emit.alu_mem_imm32(Alu::Cmp, frame::attention(), 0);
        give_up.push(self.emit.jcc(cc::NE));
        // scratch 3: elements in this piece.
        self.emit.store(frame::scratch(3), RCX);
        if moves {
            give_up.push(self.find(RSI, TABLE_READ));
            self.limit_piece(log2, &mut give_up);
            self.emit.alu_mem(Alu::Add, S0, Mem::at(S1, TABLE_READ + ENTRY_HOST));
            self.emit.store(frame::scratch(4), S0);
        }
        give_up.push(self.find(RDI, TABLE_WRITE));
        self.limit_piece(log2, &mut give_up);
        self.emit.alu_mem(Alu::Add, S0, Mem::at(S1, TABLE_WRITE + ENTRY_HOST));
        // S0 is the host's destination. Put the guest's registers aside and go.
        self.emit.load(S1, frame::scratch(3));
        self.emit.alu_reg(Alu::Sub, RCX, S1);
        self.emit.store(frame::scratch(5), RCX);
        self.emit.mov(RCX, S1);
        self.emit.shift_imm(true, 4, S1, log2);
        if log2 == 0 {
            self.emit.mov(S1, RCX);
        }
        self.emit.alu_reg(Alu::Add, RDI, S1);
        self.emit.store(frame::scratch(6), RDI);
        self.emit.mov(RDI, S0);
        if moves {
            self.emit.alu_reg(Alu::Add, RSI, S1);
            self.emit.store(frame::scratch(7), RSI);
            self.emit.load(RSI, frame::scratch(4));
        }
        let opcode = if moves { 0xa4 } else { 0xaa } | (log2 != 0) as u8;
        let prefix: &[u8] = match log2 {
            1 => &[0x66, 0xf3],
            3 => &[0xf3, 0x48],
            _ => &[0xf3],
        };
        self.emit.bytes(prefix);
        self.emit.bytes(&[opcode]);
        self.emit.load(RDI, frame::scratch(6));
        if moves {
            self.emit.load(RSI, frame::scratch(7));
        }
        self.emit.load(RCX, frame::scratch(5));
        let back = self.emit.jmp();
        self.emit.bind(back, again);
        self.emit.bind_here(done);
        self.emit.mov_imm(S0, 0);
        self.emit.code.push(0xc3);
        for fixup in give_up {
            self.emit.bind_here(fixup);
        }
        self.emit.mov_imm(S0, 1);
        self.emit.code.push(0xc3);
        start
    }

    /// Lowers the piece in scratch 3 to what fits between offset S0 and the page's end;
    /// gives up if that is nothing. Keeps S0 and S1.
    fn limit_piece(&mut self, log2: u8, give_up: &mut Vec<super::emit::Fixup>) {
        self.emit.store(frame::scratch(5), S1);
        self.emit.mov_imm(S1, 4096);
        self.emit.alu_reg(Alu::Sub, S1, S0);
        if log2 != 0 {
            self.emit.shift_imm(true, 5, S1, log2);
        } else {
            self.emit.op_reg(true, &[0x85], S1, S1);
        }
        give_up.push(self.emit.jcc(cc::E));
        self.emit.alu_mem(Alu::Cmp, S1, frame::scratch(3));
        let enough = self.emit.jcc(cc::AE);
        self.emit.store(frame::scratch(3), S1);
        self.emit.bind_here(enough);
        self.emit.load(S1, frame::scratch(5));
    }
}

impl Routines {
    /// Generates them at the arena's front. None if they do not fit.
    pub fn generate(arena: &mut Arena, vectors: VectorLevel, helpers: Helpers) -> Option<Routines> {
        let emit = Emit::new(4096, arena.next());
        let mut builder = Builder { emit, vectors };
        let mut routines = Routines { enter: builder.enter(), ..Routines::default() };
        routines.settle = builder.here();
        emit_compute(&mut builder.emit, routines.enter);
        let ends = (builder.leave(&mut routines), routines.settle);
        routines.access = builder.helper(helpers.access, ends, false);
        routines.interpret = builder.helper(helpers.interpret, ends, true);
        routines.load_vectors = builder.load_vectors();
        for (routine, table) in
            [(&mut routines.fill_read, TABLE_READ), (&mut routines.fill_write, TABLE_WRITE)]
        {
            builder.align();
            *routine = builder.here();
            emit_fill(&mut builder.emit, table, arena.twin());
        }
        builder.return_miss(&mut routines);
        for log2 in 0..4 {
            routines.movs[log2 as usize] = builder.bulk(log2, true);
            routines.stos[log2 as usize] = builder.bulk(log2, false);
        }
        arena.place(&builder.emit.code)?;
        Some(routines)
    }
}

const _: () = assert!(STACK == 15 && S0 == 14 && S1 == 13, "encoded in this file and others");
