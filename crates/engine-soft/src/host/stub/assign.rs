//! What a stub loads, runs and stores: the instruction with host registers in place
//! of the guest's.

use iced_x86::OpCodeOperandKind;

use super::*;

/// The instruction in the form in which it runs, up to the names of registers: in
/// 64-bit encoding, with a bare memory operand.
pub(super) fn without_address(
    instruction: &Instruction,
    features: &Features,
) -> Result<Instruction, IcedError> {
    let bare = MemoryOperand::with_base(Register::RSI);
    let mut plain = match instruction.code() {
        Code::Xlat_m8 | Code::Mov_AL_moffs8 => {
            Instruction::with2(Code::Mov_r8_rm8, Register::AL, bare)?
        }
        Code::Mov_AX_moffs16 => Instruction::with2(Code::Mov_r16_rm16, Register::AX, bare)?,
        Code::Mov_EAX_moffs32 => Instruction::with2(Code::Mov_r32_rm32, Register::EAX, bare)?,
        Code::Mov_RAX_moffs64 => Instruction::with2(Code::Mov_r64_rm64, Register::RAX, bare)?,
        Code::Mov_moffs8_AL => Instruction::with2(Code::Mov_rm8_r8, bare, Register::AL)?,
        Code::Mov_moffs16_AX => Instruction::with2(Code::Mov_rm16_r16, bare, Register::AX)?,
        Code::Mov_moffs32_EAX => Instruction::with2(Code::Mov_rm32_r32, bare, Register::EAX)?,
        Code::Mov_moffs64_RAX => Instruction::with2(Code::Mov_rm64_r64, bare, Register::RAX)?,
        _ => *instruction,
    };
    let code = match classify::plain(plain.code(), features) {
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Add_rm8_imm8_82 => Code::Add_rm8_imm8,
        Code::Or_rm8_imm8_82 => Code::Or_rm8_imm8,
        Code::Adc_rm8_imm8_82 => Code::Adc_rm8_imm8,
        Code::Sbb_rm8_imm8_82 => Code::Sbb_rm8_imm8,
        Code::And_rm8_imm8_82 => Code::And_rm8_imm8,
        Code::Sub_rm8_imm8_82 => Code::Sub_rm8_imm8,
        Code::Xor_rm8_imm8_82 => Code::Xor_rm8_imm8,
        Code::Cmp_rm8_imm8_82 => Code::Cmp_rm8_imm8,
        other => other,
    };
    plain.set_code(code);
    plain.set_code_size(iced_x86::CodeSize::Code64);
    plain.set_len(0);
    plain.set_next_ip(0);
    plain.set_has_rep_prefix(false);
    plain.set_has_repne_prefix(false);
    plain.set_has_xacquire_prefix(false);
    plain.set_has_xrelease_prefix(false);
    plain.set_segment_prefix(Register::None);
    if has_memory(&plain) {
        plain.set_memory_base(Register::RSI);
        plain.set_memory_index(Register::None);
        plain.set_memory_index_scale(1);
        plain.set_memory_displacement64(0);
        plain.set_memory_displ_size(0);
    }
    Ok(plain)
}

fn has_memory(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory)
}

pub(super) fn has_vsib(instruction: &Instruction) -> bool {
    instruction.op_code().op_kinds().iter().any(|&kind| classify::is_vsib(kind))
}

/// A guest's general register (by number) in a host's.
#[derive(Clone, Copy, Debug)]
pub(super) struct GprUse {
    pub guest: usize,
    pub host: Register,
    pub writes: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct VectorUse {
    pub number: usize,
    /// What is loaded: a register of 16, 32 or 64 bytes, or nothing.
    pub load: Register,
    /// What is stored.
    pub store: Register,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct MaskUse {
    pub number: usize,
    pub writes: bool,
}

/// Everything that goes into a stub.
#[derive(Debug)]
pub(super) struct Plan {
    pub instruction: Instruction,
    pub unit: Unit,
    pub gprs: Vec<GprUse>,
    pub vectors: Vec<VectorUse>,
    pub masks: Vec<MaskUse>,
    pub loads_flags: bool,
    pub stores_flags: bool,
    pub mxcsr: bool,
    pub x87: bool,
    /// Masks the register that holds a bit's number down to the operand's size.
    pub bit_string: bool,
    pub memory_size: u8,
    pub reads_memory: bool,
    pub writes_memory: bool,
}

/// Host registers for guest registers that cannot keep their names, in order. None of
/// them is the host's to preserve; RAX and RCX are last because flags go through them.
const SPARE: [usize; 7] = [8, 9, 10, 11, 2, 1, 0];
/// As above, for instructions that cannot have a REX prefix.
const SPARE_LEGACY: [usize; 4] = [2, 1, 0, 3];
/// Status flags: CF, PF, AF, ZF, SF, OF.
pub(super) const STATUS_FLAGS: u32 = 0x8d5;

fn number(register: Register) -> usize {
    register.full_register() as usize - Register::RAX as usize
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// General register `number` with the size of another.
fn sized(number: usize, like: Register) -> Register {
    let first = match like.size() {
        8 => Register::RAX,
        4 => Register::EAX,
        2 => Register::AX,
        _ if number >= 4 => return Register::SPL + (number as u32 - 4),
        _ => Register::AL,
    };
    first + number as u32
}

/// Whether an operand of this kind may be any general register.
fn is_free(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind::*;
    matches!(
        kind,
        r8_or_mem
            | r16_or_mem
            | r32_or_mem
            | r64_or_mem
            | r8_reg
            | r8_opcode
            | r16_reg
            | r16_reg_mem
            | r16_rm
            | r16_opcode
            | r32_reg
            | r32_reg_mem
            | r32_rm
            | r32_opcode
            | r32_vvvv
            | r64_reg
            | r64_reg_mem
            | r64_rm
            | r64_opcode
            | r64_vvvv
    )
}

fn writes(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

fn reads(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

impl Plan {
    pub fn new(
        mut instruction: Instruction,
        unit: Unit,
        host: HostVectors,
        factory: &mut InstructionInfoFactory,
    ) -> Plan {
        let memory = has_memory(&instruction);
        // Without a base, what is listed as used are the guest's registers only.
        if memory {
            instruction.set_memory_base(Register::None);
            instruction.set_memory_displ_size(8);
        }
        let info = factory.info(&instruction);
        let (mut reads_memory, mut writes_memory) = (false, false);
        for used in info.used_memory() {
            reads_memory |= reads(used.access());
            writes_memory |= writes(used.access());
        }
        let legacy = instruction.op_code().encoding() == iced_x86::EncodingKind::Legacy;
        let mut guest = [None::<bool>; 16];
        let mut vectors = Vec::new();
        let mut masks: Vec<MaskUse> = Vec::new();
        for used in info.used_registers() {
            let (register, access) = (used.register(), used.access());
            if register.is_gpr() {
                let entry = &mut guest[number(register)];
                *entry = Some(entry.unwrap_or(false) | writes(access));
            } else if register.is_vector_register() {
                vectors.push(vector_use(register, access, legacy, host));
            } else if register.is_k() {
                let number = register as usize - Register::K0 as usize;
                masks.push(MaskUse { number, writes: writes(access) });
            }
        }
        merge_vectors(&mut vectors);
        let bit_string = memory
            && matches!(
                instruction.code(),
                Code::Bt_rm16_r16
                    | Code::Bt_rm32_r32
                    | Code::Bt_rm64_r64
                    | Code::Bts_rm16_r16
                    | Code::Bts_rm32_r32
                    | Code::Bts_rm64_r64
                    | Code::Btr_rm16_r16
                    | Code::Btr_rm32_r32
                    | Code::Btr_rm64_r64
                    | Code::Btc_rm16_r16
                    | Code::Btc_rm32_r32
                    | Code::Btc_rm64_r64
            );
        let gprs = assign(&mut instruction, &guest, bit_string);
        if memory {
            instruction.set_memory_base(Register::RSI);
            instruction.set_memory_displ_size(0);
        }
        let changed = rflags(instruction.rflags_modified());
        let kept = STATUS_FLAGS & !changed != 0 || keeps_flags_at_count_0(&instruction);
        let loads_flags = rflags(instruction.rflags_read()) != 0 || changed != 0 && kept;
        Plan {
            unit,
            gprs,
            vectors,
            masks,
            loads_flags,
            stores_flags: changed != 0,
            mxcsr: classify::uses_mxcsr(instruction.code()),
            x87: matches!(unit, Unit::X87 | Unit::Mmx | Unit::SseMmx),
            bit_string,
            memory_size: if memory { operand_size(&instruction) } else { 0 },
            reads_memory,
            writes_memory,
            instruction,
        }
    }
}

/// iced's flags as those of RFLAGS, status flags only.
fn rflags(bits: u32) -> u32 {
    use iced_x86::RflagsBits as B;
    [(B::CF, 0x1), (B::PF, 0x4), (B::AF, 0x10), (B::ZF, 0x40), (B::SF, 0x80), (B::OF, 0x800)]
        .into_iter()
        .filter(|&(flag, _)| bits & flag != 0)
        .fold(0, |sum, (_, flag)| sum | flag)
}

/// Shifts and rotations by nothing change no flag.
fn keeps_flags_at_count_0(instruction: &Instruction) -> bool {
    use iced_x86::Mnemonic::*;
    matches!(instruction.mnemonic(), Shl | Shr | Sar | Sal | Rol | Ror | Rcl | Rcr | Shld | Shrd)
}

fn operand_size(instruction: &Instruction) -> u8 {
    match instruction.code() {
        // iced does not give these a size.
        Code::Clflush_m8 | Code::Clflushopt_m8 | Code::Clwb_m8 => 1,
        _ => instruction.memory_size().size() as u8,
    }
}

fn vector_use(register: Register, access: OpAccess, legacy: bool, host: HostVectors) -> VectorUse {
    let number = register.number();
    let widest = if host.avx512 {
        Register::ZMM0
    } else if host.avx {
        Register::YMM0
    } else {
        Register::XMM0
    };
    // SSE's instructions leave what is above 16 bytes alone, all later ones zero what is
    // above their result.
    let zeroes = writes(access) && !legacy;
    let first = match register.size() {
        16 => Register::XMM0,
        32 => Register::YMM0,
        _ => widest,
    };
    VectorUse {
        number,
        load: if access == OpAccess::Write && zeroes {
            Register::None
        } else {
            first + number as u32
        },
        store: match (writes(access), zeroes) {
            (false, _) => Register::None,
            (true, true) => widest + number as u32,
            (true, false) => Register::XMM0 + number as u32,
        },
    }
}

/// One entry a register, with the widest of each.
fn merge_vectors(vectors: &mut Vec<VectorUse>) {
    let wider = |a: Register, b: Register| if a.size() >= b.size() { a } else { b };
    let mut merged: Vec<VectorUse> = Vec::with_capacity(vectors.len());
    for vector in vectors.drain(..) {
        match merged.iter_mut().find(|other| other.number == vector.number) {
            Some(other) => {
                other.load = wider(other.load, vector.load);
                other.store = wider(other.store, vector.store);
            }
            None => merged.push(vector),
        }
    }
    *vectors = merged;
}

/// Gives every guest register that is used a host register, and renames the operands.
fn assign(
    instruction: &mut Instruction,
    guest: &[Option<bool>; 16],
    bit_string: bool,
) -> Vec<GprUse> {
    let info = instruction.op_code();
    let operands = 0..instruction.op_count();
    let is_gpr = |i: &u32| {
        instruction.op_kind(*i) == OpKind::Register && instruction.op_register(*i).is_gpr()
    };
    let explicit: Vec<(u32, Register, bool)> = operands
        .filter(is_gpr)
        .map(|i| {
            let register = instruction.op_register(i);
            let free = is_free(info.op_kind(i)) && !is_high_byte(register);
            (i, register, free)
        })
        .collect();
    let legacy = explicit.iter().any(|&(_, register, _)| is_high_byte(register));
    let mut host = [None::<usize>; 16];
    let mut taken = [false; 16];
    let keep = |register: usize, host: &mut [Option<usize>; 16], taken: &mut [bool; 16]| {
        host[register] = Some(register);
        taken[register] = true;
    };
    // Registers that the instruction uses by itself keep their names.
    for register in (0..16).filter(|&register| guest[register].is_some()) {
        let mut named = explicit.iter().filter(|&&(_, other, _)| number(other) == register);
        let renameable = {
            let mut any = false;
            let all = named.all(|&(_, _, free)| {
                any = true;
                free
            });
            any && all && !is_implicit(instruction.code(), register)
        };
        if !renameable {
            keep(register, &mut host, &mut taken);
        }
    }
    // The others keep them where the host does not mind.
    let bit_register = bit_string.then(|| number(instruction.op1_register()));
    let easy: &[usize] = if legacy { &SPARE_LEGACY } else { &SPARE };
    for register in (0..16).filter(|&register| guest[register].is_some()) {
        if host[register].is_none() && easy.contains(&register) && Some(register) != bit_register {
            keep(register, &mut host, &mut taken);
        }
    }
    let mut uses = Vec::with_capacity(4);
    for register in 0..16 {
        let Some(writes) = guest[register] else { continue };
        let place = *host[register].get_or_insert_with(|| {
            let spare = easy.iter().copied().find(|&spare| !taken[spare]);
            let spare = spare.unwrap_or(register);
            taken[spare] = true;
            spare
        });
        uses.push(GprUse { guest: register, host: Register::RAX + place as u32, writes });
    }
    for (operand, register, free) in explicit {
        if free && let Some(place) = host[number(register)] {
            instruction.set_op_register(operand, sized(place, register));
        }
    }
    uses
}

/// Registers that an instruction uses besides those that its operands name, when an
/// operand may name them too.
fn is_implicit(code: Code, register: usize) -> bool {
    use iced_x86::Mnemonic::*;
    match code.mnemonic() {
        Mul | Imul | Div | Idiv => {
            // The two and three operand forms have no implicit ones.
            code.op_code().op_count() == 1 && matches!(register, 0 | 2)
        }
        Mulx => register == 2,
        Cmpxchg => register == 0,
        _ => false,
    }
}
