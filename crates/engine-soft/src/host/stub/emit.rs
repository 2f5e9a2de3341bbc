//! Writes a stub's bytes, with iced's encoder.

use std::ops::Range;

use super::assign::{Plan, STATUS_FLAGS, VectorUse};
use super::*;
use crate::state::Vector;

/// Encodes one stub after the other into the same buffer.
pub(super) struct Emitter {
    encoder: Encoder,
    buffer: Vec<u8>,
}

/// A field of the state.
fn field(offset: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(Register::RDI, offset as i64)
}

fn gpr_field(number: usize) -> MemoryOperand {
    field(offset_of!(CpuState, gpr) + number * 8)
}

fn vector_field(number: usize, byte: usize) -> MemoryOperand {
    field(offset_of!(CpuState, vector) + number * size_of::<Vector>() + byte)
}

const RFLAGS: usize = offset_of!(CpuState, rflags);

impl Emitter {
    pub fn new() -> Emitter {
        Emitter { encoder: Encoder::new(64), buffer: Vec::with_capacity(1024) }
    }

    /// The bytes of the last stub.
    pub fn code(&self) -> &[u8] {
        &self.buffer
    }

    fn put(&mut self, instruction: Instruction) -> Result<(), IcedError> {
        self.encoder.encode(&instruction, 0)?;
        Ok(())
    }

    /// Encodes a stub. Returns where its instruction is if that is an x87 one.
    pub fn stub(&mut self, plan: &Plan, host: HostVectors) -> Result<u16, IcedError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        self.encoder.set_buffer(buffer);
        let result = self.sequence(plan, host);
        self.buffer = self.encoder.take_buffer();
        let place = result?;
        Ok(if plan.unit == Unit::X87 { place } else { 0 })
    }

    fn sequence(&mut self, plan: &Plan, host: HostVectors) -> Result<u16, IcedError> {
        match plan.instruction.code() {
            Code::VEX_Vzeroupper => self.clear_vectors(16..64)?,
            Code::VEX_Vzeroall => self.clear_vectors(0..64)?,
            _ => {
                self.load(plan, host)?;
                let before = self.length();
                self.put(plan.instruction)?;
                self.store(plan, host)?;
                self.finish()?;
                return Ok(before);
            }
        }
        self.finish()?;
        Ok(0)
    }

    fn length(&mut self) -> u16 {
        let buffer = self.encoder.take_buffer();
        let length = buffer.len() as u16;
        self.encoder.set_buffer(buffer);
        length
    }

    fn finish(&mut self) -> Result<(), IcedError> {
        self.put(Instruction::with2(Code::Xor_r32_rm32, Register::EAX, Register::EAX)?)?;
        self.put(Instruction::with(Code::Retnq))
    }

    fn load(&mut self, plan: &Plan, host: HostVectors) -> Result<(), IcedError> {
        if plan.x87 {
            let image = field(offset_of!(CpuState, x87));
            self.put(Instruction::with1(Code::Fxrstor64_m512byte, image)?)?;
        }
        // A bit's number is reduced first, because that changes flags.
        if plan.bit_string {
            self.load_gprs(plan)?;
            let register = plan.instruction.op1_register().full_register();
            let mask = plan.memory_size as i32 * 8 - 1;
            self.put(Instruction::with2(Code::And_rm64_imm8, register, mask)?)?;
        }
        if plan.loads_flags {
            self.load_flags()?;
        }
        if !plan.bit_string {
            self.load_gprs(plan)?;
        }
        for vector in plan.vectors.iter().filter(|vector| vector.load != Register::None) {
            self.load_vector(plan.unit, vector)?;
        }
        for mask in &plan.masks {
            let code =
                if host.wide_masks { Code::VEX_Kmovq_kr_km64 } else { Code::VEX_Kmovw_kr_km16 };
            let place = field(offset_of!(CpuState, opmask) + mask.number * 8);
            self.put(Instruction::with2(code, Register::K0 + mask.number as u32, place)?)?;
        }
        if plan.mxcsr {
            let place = field(offset_of!(CpuState, mxcsr));
            self.put(Instruction::with1(Code::Ldmxcsr_m32, place)?)?;
        }
        Ok(())
    }

    fn load_gprs(&mut self, plan: &Plan) -> Result<(), IcedError> {
        for gpr in &plan.gprs {
            let place = gpr_field(gpr.guest);
            self.put(Instruction::with2(Code::Mov_r64_rm64, gpr.host, place)?)?;
        }
        Ok(())
    }

    fn load_vector(&mut self, unit: Unit, vector: &VectorUse) -> Result<(), IcedError> {
        let number = vector.number as u32;
        let place = vector_field(vector.number, 0);
        let (code, first) = if vector.load.is_zmm() || unit == Unit::Avx512 {
            (Code::EVEX_Vmovups_zmm_k1z_zmmm512, Register::ZMM0)
        } else if vector.load.is_ymm() {
            (Code::VEX_Vmovups_ymm_ymmm256, Register::YMM0)
        } else if unit == Unit::Avx {
            (Code::VEX_Vmovups_xmm_xmmm128, Register::XMM0)
        } else {
            (Code::Movups_xmm_xmmm128, Register::XMM0)
        };
        self.put(Instruction::with2(code, first + number, place)?)
    }

    fn store(&mut self, plan: &Plan, host: HostVectors) -> Result<(), IcedError> {
        for gpr in plan.gprs.iter().filter(|gpr| gpr.writes) {
            let place = gpr_field(gpr.guest);
            self.put(Instruction::with2(Code::Mov_rm64_r64, place, gpr.host)?)?;
        }
        for vector in plan.vectors.iter().filter(|vector| vector.store != Register::None) {
            let code = if vector.store.is_zmm() {
                Code::EVEX_Vmovups_zmmm512_k1z_zmm
            } else if vector.store.is_ymm() {
                Code::VEX_Vmovups_ymmm256_ymm
            } else {
                Code::Movups_xmmm128_xmm
            };
            let place = vector_field(vector.number, 0);
            self.put(Instruction::with2(code, place, vector.store)?)?;
        }
        for mask in plan.masks.iter().filter(|mask| mask.writes) {
            let code =
                if host.wide_masks { Code::VEX_Kmovq_m64_kr } else { Code::VEX_Kmovw_m16_kr };
            let place = field(offset_of!(CpuState, opmask) + mask.number * 8);
            self.put(Instruction::with2(code, place, Register::K0 + mask.number as u32)?)?;
        }
        if plan.mxcsr {
            let host_mxcsr = field(offset_of!(CpuState, host_mxcsr));
            let place = field(offset_of!(CpuState, mxcsr));
            self.put(Instruction::with1(Code::Stmxcsr_m32, place)?)?;
            self.put(Instruction::with2(Code::Mov_rm32_imm32, host_mxcsr, HOST_MXCSR)?)?;
            self.put(Instruction::with1(Code::Ldmxcsr_m32, host_mxcsr)?)?;
        }
        if plan.x87 {
            let image = field(offset_of!(CpuState, x87));
            self.put(Instruction::with1(Code::Fxsave64_m512byte, image)?)?;
        }
        if plan.stores_flags {
            self.store_flags()?;
        }
        if plan.x87 {
            self.put(Instruction::with(Code::Fninit))?;
        }
        if matches!(plan.unit, Unit::Avx | Unit::Avx512) {
            self.put(Instruction::with(Code::VEX_Vzeroupper))?;
        }
        Ok(())
    }

    /// SAHF brings all status flags but OF, for which an addition overflows.
    fn load_flags(&mut self) -> Result<(), IcedError> {
        use Register::{AH, AL, CL, EAX, ECX};
        self.put(Instruction::with2(Code::Mov_r32_rm32, EAX, field(RFLAGS))?)?;
        self.put(Instruction::with2(Code::Mov_r32_rm32, ECX, EAX)?)?;
        self.put(Instruction::with2(Code::Shr_rm32_imm8, ECX, 11)?)?;
        self.put(Instruction::with2(Code::And_rm32_imm8, ECX, 1)?)?;
        self.put(Instruction::with2(Code::Mov_r8_rm8, AH, AL)?)?;
        self.put(Instruction::with2(Code::Mov_r8_rm8, AL, CL)?)?;
        self.put(Instruction::with2(Code::Add_AL_imm8, AL, 0x7f)?)?;
        self.put(Instruction::with(Code::Sahf))
    }

    fn store_flags(&mut self) -> Result<(), IcedError> {
        use Register::{EAX, RAX, RCX};
        self.put(Instruction::with(Code::Pushfq))?;
        self.put(Instruction::with1(Code::Pop_r64, RAX)?)?;
        self.put(Instruction::with2(Code::And_EAX_imm32, EAX, STATUS_FLAGS)?)?;
        self.put(Instruction::with2(Code::Mov_r64_rm64, RCX, field(RFLAGS))?)?;
        self.put(Instruction::with2(Code::And_rm64_imm32, RCX, !STATUS_FLAGS as i32)?)?;
        self.put(Instruction::with2(Code::Or_r64_rm64, RAX, RCX)?)?;
        self.put(Instruction::with2(Code::Mov_rm64_r64, field(RFLAGS), RAX)?)
    }

    /// Zeroes these bytes of the sixteen vectors that VEX can name.
    fn clear_vectors(&mut self, bytes: Range<usize>) -> Result<(), IcedError> {
        let zero = Register::XMM0;
        self.put(Instruction::with2(Code::Xorps_xmm_xmmm128, zero, zero)?)?;
        for number in 0..16 {
            for byte in bytes.clone().step_by(16) {
                let place = vector_field(number, byte);
                self.put(Instruction::with2(Code::Movups_xmmm128_xmm, place, zero)?)?;
            }
        }
        Ok(())
    }
}
