//! A random instruction of a given form, and registers that make it access the test's
//! memory.

use iced_x86::{
    Code, CpuidFeature, Encoder, Instruction, Mnemonic, OpCodeOperandKind, OpKind, Register,
    RoundingControl,
};

use guise_engine::extensions::Features;
use guise_engine_soft::host::classify::{Class, of_code};

use crate::machine::{MEMORY_SIZE, MIDDLE, Memory, State};
use crate::random::Random;

/// Forms whose result is not a function of registers and memory, or that 64-bit mode
/// does not have.
pub fn is_testable(code: Code) -> bool {
    let info = code.op_code();
    if of_code(code, &Features::host()) == Class::Core {
        return is_testable_core(code);
    }
    info.is_available_in_mode(64)
        // WAIT and another instruction.
        && !info.fwait()
        && info.long_mode()
        // Their operands address memory by themselves, far from the test's.
        && !matches!(code.mnemonic(), Mnemonic::Xlatb | Mnemonic::Umonitor)
        // Of bound registers, which guests do not have.
        && !code.cpuid_features().contains(&CpuidFeature::MPX)
        && !info.op_kinds().contains(&OpCodeOperandKind::mem_offs)
}

/// What the engine executes itself and the host's user mode has: strings, the stack,
/// addresses, the direction flag.
fn is_testable_core(code: Code) -> bool {
    use Mnemonic::*;
    code.op_code().is_available_in_mode(64)
        && matches!(
            code.mnemonic(),
            Movsb
                | Movsw
                | Movsd
                | Movsq
                | Cmpsb
                | Cmpsw
                | Cmpsd
                | Cmpsq
                | Scasb
                | Scasw
                | Scasd
                | Scasq
                | Lodsb
                | Lodsw
                | Lodsd
                | Lodsq
                | Stosb
                | Stosw
                | Stosd
                | Stosq
                | Push
                | Pop
                | Leave
                | Lea
                | Cld
                | Std
                | Pause
                | Bound
        )
        && !code.op_code().op_kinds().iter().any(|&kind| {
            use OpCodeOperandKind as K;
            matches!(kind, K::seg_reg | K::es | K::cs | K::ss | K::ds | K::fs | K::gs)
        })
}

fn is_string(code: Code) -> bool {
    code.is_string_instruction()
}

/// Encodes an instruction of this form for address `ip`; none where the random operands
/// do not go together.
pub fn make(code: Code, random: &mut Random, ip: u64) -> Option<Vec<u8>> {
    use OpCodeOperandKind as K;
    let info = code.op_code();
    let mut instruction = Instruction::new();
    instruction.set_code(code);
    let mut immediates = 0;
    let mut memory = false;
    // Registers above 15 exist in EVEX only, high bytes without REX only.
    let vectors = if info.encoding() == iced_x86::EncodingKind::EVEX { 32 } else { 16 };
    for (operand, &kind) in info.op_kinds().iter().enumerate() {
        let i = operand as u32;
        let in_memory = random.one_in(2);
        let mut register = |first: Register, count: u64, random: &mut Random| {
            instruction.set_op_kind(i, OpKind::Register);
            instruction.set_op_register(i, first + random.below(count) as u32);
        };
        let byte = |random: &mut Random| {
            let number = random.below(20) as u32;
            (Register::AL + number, number)
        };
        match kind {
            K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
            | K::zmm_or_mem
            | K::k_or_mem
                if in_memory =>
            {
                memory = true;
                instruction.set_op_kind(i, OpKind::Memory);
            }
            K::mem => {
                memory = true;
                instruction.set_op_kind(i, OpKind::Memory);
            }
            K::mem_vsib32x
            | K::mem_vsib64x
            | K::mem_vsib32y
            | K::mem_vsib64y
            | K::mem_vsib32z
            | K::mem_vsib64z => {
                memory = true;
                instruction.set_op_kind(i, OpKind::Memory);
                let first = match kind {
                    K::mem_vsib32x | K::mem_vsib64x => Register::XMM0,
                    K::mem_vsib32y | K::mem_vsib64y => Register::YMM0,
                    _ => Register::ZMM0,
                };
                instruction.set_memory_index(first + random.below(vectors) as u32);
            }
            K::r8_or_mem | K::r8_reg | K::r8_opcode => {
                instruction.set_op_kind(i, OpKind::Register);
                instruction.set_op_register(i, byte(random).0);
            }
            K::r16_or_mem | K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => {
                register(Register::AX, 16, random)
            }
            K::r32_or_mem
            | K::r32_reg
            | K::r32_reg_mem
            | K::r32_rm
            | K::r32_opcode
            | K::r32_vvvv => register(Register::EAX, 16, random),
            K::r64_or_mem
            | K::r64_reg
            | K::r64_reg_mem
            | K::r64_rm
            | K::r64_opcode
            | K::r64_vvvv => register(Register::RAX, 16, random),
            K::k_or_mem | K::k_reg | K::kp1_reg | K::k_rm | K::k_vvvv => {
                register(Register::K0, 8, random)
            }
            K::mm_or_mem | K::mm_reg | K::mm_rm => register(Register::MM0, 8, random),
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 | K::xmm_is5 => {
                register(Register::XMM0, vectors, random)
            }
            K::ymm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_is5 => {
                register(Register::YMM0, vectors, random)
            }
            K::zmm_or_mem | K::zmm_reg | K::zmm_rm | K::zmm_vvvv => {
                register(Register::ZMM0, vectors, random)
            }
            K::sti_opcode => register(Register::ST0, 8, random),
            K::al => instruction.set_op_register(i, Register::AL),
            K::cl => instruction.set_op_register(i, Register::CL),
            K::ax => instruction.set_op_register(i, Register::AX),
            K::dx => instruction.set_op_register(i, Register::DX),
            K::eax => instruction.set_op_register(i, Register::EAX),
            K::rax => instruction.set_op_register(i, Register::RAX),
            K::st0 => instruction.set_op_register(i, Register::ST0),
            K::seg_rSI => instruction.set_op_kind(i, OpKind::MemorySegRSI),
            K::es_rDI => instruction.set_op_kind(i, OpKind::MemoryESRDI),
            K::imm16 if code.mnemonic() == Mnemonic::Push => {
                instruction.set_op_kind(i, OpKind::Immediate16);
                instruction.set_immediate16(random.integer() as u16);
            }
            K::seg_rDI => instruction.set_op_kind(i, OpKind::MemorySegRDI),
            K::imm8_const_1 => {
                instruction.set_op_kind(i, OpKind::Immediate8);
                instruction.set_immediate8(1);
            }
            K::imm8 | K::imm4_m2z => {
                immediates += 1;
                if immediates == 1 {
                    instruction.set_op_kind(i, OpKind::Immediate8);
                    instruction.set_immediate8(random.integer() as u8);
                } else {
                    instruction.set_op_kind(i, OpKind::Immediate8_2nd);
                    instruction.set_immediate8_2nd(random.integer() as u8);
                }
            }
            K::imm8sex16 => {
                instruction.set_op_kind(i, OpKind::Immediate8to16);
                instruction.set_immediate8to16(random.integer() as i8 as i16);
            }
            K::imm8sex32 => {
                instruction.set_op_kind(i, OpKind::Immediate8to32);
                instruction.set_immediate8to32(random.integer() as i8 as i32);
            }
            K::imm8sex64 => {
                instruction.set_op_kind(i, OpKind::Immediate8to64);
                instruction.set_immediate8to64(random.integer() as i8 as i64);
            }
            K::imm16 => {
                instruction.set_op_kind(i, OpKind::Immediate16);
                instruction.set_immediate16(random.integer() as u16);
            }
            K::imm32 => {
                instruction.set_op_kind(i, OpKind::Immediate32);
                instruction.set_immediate32(random.integer() as u32);
            }
            K::imm32sex64 => {
                instruction.set_op_kind(i, OpKind::Immediate32to64);
                instruction.set_immediate32to64(random.integer() as i32 as i64);
            }
            K::imm64 => {
                instruction.set_op_kind(i, OpKind::Immediate64);
                instruction.set_immediate64(random.integer());
            }
            _ => return None,
        }
    }
    if info.require_op_mask_register() || info.can_use_op_mask_register() && random.one_in(2) {
        instruction.set_op_mask(Register::K1 + random.below(7) as u32);
        if info.can_use_zeroing_masking() && random.one_in(2) && !writes_memory(&instruction) {
            instruction.set_zeroing_masking(true);
        }
    }
    if memory {
        address(&mut instruction, random);
        if info.can_broadcast() && random.one_in(2) {
            instruction.set_is_broadcast(true);
        }
        if info.can_use_lock_prefix() && writes_memory(&instruction) && random.one_in(3) {
            instruction.set_has_lock_prefix(true);
        }
    } else if info.can_use_rounding_control() && random.one_in(3) {
        instruction.set_rounding_control(random.pick(&[
            RoundingControl::RoundToNearest,
            RoundingControl::RoundDown,
            RoundingControl::RoundUp,
            RoundingControl::RoundTowardZero,
        ]));
    } else if info.can_suppress_all_exceptions() && random.one_in(3) {
        instruction.set_suppress_all_exceptions(true);
    }
    if is_string(code) && random.one_in(2) {
        if info.can_use_rep_prefix() && random.one_in(2) {
            instruction.set_has_rep_prefix(true);
        } else if info.can_use_repne_prefix() {
            instruction.set_has_repne_prefix(true);
        }
    }
    if info.requires_unique_reg_nums() && !has_unique_registers(&instruction) {
        return None;
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&instruction, ip).ok()?;
    Some(encoder.take_buffer())
}

fn writes_memory(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Memory
}

fn has_unique_registers(instruction: &Instruction) -> bool {
    let mut numbers: Vec<usize> = (0..instruction.op_count())
        .map(|i| instruction.op_register(i))
        .chain([instruction.memory_index()])
        .filter(|register| register.is_vector_register())
        .map(|register| register.number())
        .collect();
    numbers.sort_unstable();
    numbers.windows(2).all(|pair| pair[0] != pair[1])
}

/// Base, index, scale and displacement, with 64-bit and sometimes 32-bit registers.
fn address(instruction: &mut Instruction, random: &mut Random) {
    let vsib = instruction.memory_index().is_vector_register();
    let first = if random.one_in(6) { Register::EAX } else { Register::RAX };
    let base = random.below(16) as u32;
    instruction.set_memory_base(first + base);
    let scale = 1 << random.below(4);
    if vsib {
        instruction.set_memory_index_scale(scale);
    } else if random.one_in(2) {
        let index = random.below(16) as u32;
        if index != base && index != 4 {
            instruction.set_memory_index(first + index);
            instruction.set_memory_index_scale(scale);
        }
    }
    match random.below(3) {
        0 => {}
        1 => {
            instruction.set_memory_displ_size(1);
            // A multiple of what EVEX compresses displacements by.
            let displacement = random.below(3) as i64 * 64 - 64;
            instruction.set_memory_displacement64(displacement as u64);
        }
        _ => {
            instruction.set_memory_displ_size(8);
            let displacement = random.next() as i32 >> random.below(30);
            instruction.set_memory_displacement64(displacement as i64 as u64);
        }
    }
}

/// The largest operand, in bytes.
const MAX_OPERAND: usize = 64;

/// Gives the base register a value with which the operand lies in the middle of the
/// memory; false where registers get in each other's way.
pub fn aim(
    instruction: &Instruction,
    state: &mut State,
    random: &mut Random,
    memory: &Memory,
) -> bool {
    if matches!(
        instruction.mnemonic(),
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu
    ) {
        state.gpr[7] = memory.address() + (MIDDLE as u64) + random.below(32);
        return true;
    }
    if is_string(instruction.code()) {
        let place = |random: &mut Random| memory.address() + MIDDLE as u64 + random.below(64);
        state.gpr[6] = place(random);
        state.gpr[7] = place(random);
        state.gpr[1] = random.below(12);
        state.rflags |= random.next() & 0x400;
        return true;
    }
    if instruction.is_stack_instruction() {
        let place = memory.address() + MIDDLE as u64 + random.below(64);
        // LEAVE takes its stack pointer from RBP.
        let register = if instruction.mnemonic() == Mnemonic::Leave { 5 } else { 4 };
        state.gpr[register] = place;
        let uses_rsp = |register: Register| register.full_register() == Register::RSP;
        if uses_rsp(instruction.memory_base()) || uses_rsp(instruction.memory_index()) {
            return false;
        }
    }
    if !(0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory) {
        return true;
    }
    let number = |register: Register| register.full_register() as usize - Register::RAX as usize;
    let base = number(instruction.memory_base());
    let index = instruction.memory_index();
    let mut target = memory.address() + MIDDLE as u64 + random.below(MAX_OPERAND as u64);
    if !random.one_in(4) {
        target &= !63;
    }
    let mut offset = instruction.memory_displacement64();
    if index.is_vector_register() {
        small_indices(&mut state.vector[index.number()], instruction.is_vsib64(), random);
    } else if index != Register::None {
        let value = if index.is_gpr32() {
            state.gpr[number(index)] & 0xffff_ffff
        } else {
            state.gpr[number(index)]
        };
        offset = offset.wrapping_add(value.wrapping_mul(instruction.memory_index_scale().into()));
    }
    if is_bit_string(instruction) {
        let register = instruction.op1_register();
        let bits = random.below(16384) as i64 - 8192;
        if number(register) == base || index != Register::None && number(register) == number(index)
        {
            return false;
        }
        // What is above the operand's size does not count.
        state.gpr[number(register)] = match register.size() {
            2 => random.next() & !0xffff | bits as u64 & 0xffff,
            4 => random.next() << 32 | bits as u64 & 0xffff_ffff,
            _ => bits as u64,
        };
    }
    state.gpr[base] = target.wrapping_sub(offset);
    if instruction.memory_base().is_gpr32() {
        state.gpr[base] = state.gpr[base] & 0xffff_ffff | random.next() << 32;
    }
    true
}

fn is_bit_string(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && instruction.op1_kind() == OpKind::Register
}

/// Indices that lead nowhere outside of the memory, whatever the scale.
fn small_indices(vector: &mut [u8; 64], wide: bool, random: &mut Random) {
    let size = if wide { 8 } else { 4 };
    for lane in vector.chunks_exact_mut(size) {
        let index = random.below(400) as i64 - 200;
        lane.copy_from_slice(&index.to_le_bytes()[..size]);
    }
}

/// The operand's effective address (for a gather, that of index 0).
pub fn effective_address(instruction: &Instruction, state: &State) -> (u64, u64) {
    if matches!(
        instruction.mnemonic(),
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu
    ) {
        return (state.gpr[7], !0);
    }
    let value = |register: Register| match register {
        Register::None => 0,
        vector if vector.is_vector_register() => 0,
        other => state.gpr[other.full_register() as usize - Register::RAX as usize],
    };
    let index =
        value(instruction.memory_index()).wrapping_mul(instruction.memory_index_scale().into());
    let sum = value(instruction.memory_base())
        .wrapping_add(index)
        .wrapping_add(instruction.memory_displacement64());
    let mask = if instruction.memory_base().is_gpr32() { 0xffff_ffff } else { !0 };
    (sum & mask, mask)
}

const _: () = assert!(MIDDLE + 4 * MAX_OPERAND + 200 * 8 < MEMORY_SIZE);
