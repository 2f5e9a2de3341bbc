//! Stubs compute what the instruction means and leave the rest alone.

use iced_x86::{Decoder, DecoderOptions};

use super::*;

fn state() -> Box<CpuState> {
    // SAFETY: all fields of the state are plain numbers and one pointer that is not
    // followed here, for which zeros are values.
    let mut state: Box<CpuState> = unsafe { Box::new_zeroed().assume_init() };
    state.mxcsr = 0x1f80;
    state.rflags = 2;
    state.cr4 = 1 << 10;
    state.x87.0[..4].copy_from_slice(&[0x7f, 3, 0, 0]);
    state.x87.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    state
}

fn decode(bits: u32, bytes: &[u8]) -> Instruction {
    Decoder::new(bits, bytes, DecoderOptions::NONE).decode()
}

struct Bench {
    stubs: Stubs,
    state: Box<CpuState>,
    memory: [u8; 64],
}

impl Bench {
    fn new() -> Bench {
        traps::prepare_thread().unwrap();
        let stubs = Stubs::new(Features::host(), 1 << 20).unwrap();
        Bench { stubs, state: state(), memory: [0; 64] }
    }

    fn run(&mut self, bits: u32, bytes: &[u8]) -> Result<(), Exception> {
        let instruction = decode(bits, bytes);
        let stub = self.stubs.compile(&instruction).unwrap();
        // SAFETY: compiled just now; the buffer is as long as any operand.
        unsafe { stub.run(&mut *self.state, self.memory.as_mut_ptr()) }
    }
}

#[test]
fn registers_and_flags_go_in_and_out() {
    let mut bench = Bench::new();
    bench.state.gpr[4] = 0xffff_ffff;
    bench.state.gpr[7] = 1;
    bench.state.rflags = 0x202;
    // add esp, edi
    bench.run(64, &[0x01, 0xfc]).unwrap();
    assert_eq!(bench.state.gpr[4], 0);
    assert_eq!(bench.state.gpr[7], 1);
    assert_eq!(bench.state.rflags, 0x202 | 0x55);
    // adc [..], rsi
    bench.state.gpr[6] = 4;
    bench.memory[0] = 6;
    bench.run(64, &[0x48, 0x11, 0x75, 0x10]).unwrap();
    assert_eq!(bench.memory[0], 11);
    // mov ah, bl ; xchg [..], ah
    bench.state.gpr[3] = 0x55;
    bench.run(64, &[0x88, 0xdc]).unwrap();
    assert_eq!(bench.state.gpr[0], 0x5500);
    bench.run(64, &[0x86, 0x23]).unwrap();
    assert_eq!((bench.state.gpr[0], bench.memory[0]), (0x0b00, 0x55));
    // inc eax, as 16- and 32-bit code writes it
    bench.run(32, &[0x40]).unwrap();
    assert_eq!(bench.state.gpr[0], 0x0b01);
}

#[test]
fn the_overflow_flag_survives() {
    let mut bench = Bench::new();
    for flags in [0x2u64, 0x802, 0x803, 0x8d7, 0xd7, 0xad7] {
        bench.state.rflags = flags;
        bench.state.gpr[1] = 0;
        // shl eax, cl: by nothing
        bench.run(64, &[0xd3, 0xe0]).unwrap();
        assert_eq!(bench.state.rflags, flags);
        // cmc
        bench.run(64, &[0xf5]).unwrap();
        assert_eq!(bench.state.rflags, flags ^ 1);
    }
}

#[test]
fn a_division_by_zero_is_an_exception_and_changes_nothing() {
    let mut bench = Bench::new();
    bench.state.gpr = std::array::from_fn(|i| i as u64);
    let before = bench.state.gpr;
    // div qword [..]
    let exception = bench.run(64, &[0x48, 0xf7, 0x33]).unwrap_err();
    assert_eq!(exception, Exception::plain(exception::DIVIDE_ERROR));
    assert_eq!(bench.state.gpr, before);
}

#[test]
fn a_misaligned_vector_is_a_protection_fault() {
    let mut bench = Bench::new();
    #[repr(align(64))]
    struct Aligned([u8; 64]);
    let mut memory = Aligned([1; 64]);
    let stub = bench.stubs.compile(&decode(64, &[0x0f, 0x28, 0x03])).unwrap();
    let here = memory.0.as_mut_ptr();
    // SAFETY: 16 bytes of the buffer, whichever of these addresses.
    unsafe {
        assert_eq!(stub.run(&mut *bench.state, here), Ok(()));
        let exception = stub.run(&mut *bench.state, here.add(1)).unwrap_err();
        assert_eq!(exception, Exception::general_protection(0));
    }
    assert_eq!(bench.state.vector[0].0[15], 1);
    assert_eq!(bench.state.vector[0].0[16], 0);
}

#[test]
fn an_unmasked_simd_exception_sets_its_flag_and_no_result() {
    let mut bench = Bench::new();
    bench.state.mxcsr = 0x1d80;
    bench.state.vector[0].0[..4].copy_from_slice(&1f32.to_le_bytes());
    let before = bench.state.vector[0];
    // divss xmm0, xmm1
    let exception = bench.run(64, &[0xf3, 0x0f, 0x5e, 0xc1]).unwrap_err();
    assert_eq!(exception, Exception::plain(exception::SIMD_FLOATING_POINT));
    assert_eq!(bench.state.vector[0], before);
    assert_eq!(bench.state.mxcsr, 0x1d84);
    // An operating system that knows nothing of such exceptions gets another one.
    bench.state.cr4 = 0;
    let exception = bench.run(64, &[0xf3, 0x0f, 0x5e, 0xc1]).unwrap_err();
    assert_eq!(exception, Exception::invalid_opcode());
    // Masked, it gives an infinity.
    bench.state.mxcsr = 0x1f80;
    bench.run(64, &[0xf3, 0x0f, 0x5e, 0xc1]).unwrap();
    assert_eq!(bench.state.vector[0].0[..4], f32::INFINITY.to_le_bytes());
    assert_eq!(bench.state.mxcsr, 0x1f84);
}

#[test]
fn x87_state_lives_in_its_image() {
    let mut bench = Bench::new();
    // fld1; fldpi; faddp; fstp qword [..]
    for code in [&[0xd9, 0xe8][..], &[0xd9, 0xeb], &[0xde, 0xc1], &[0xdd, 0x1b]] {
        bench.run(64, code).unwrap();
    }
    let sum = f64::from_le_bytes(bench.memory[..8].try_into().unwrap());
    assert_eq!(sum, 1.0 + std::f64::consts::PI);
    // fld1 with its pointers
    let stub = bench.stubs.compile(&decode(64, &[0xd9, 0xe8])).unwrap();
    assert!(stub.is_x87());
    // SAFETY: no memory operand.
    unsafe { stub.run(&mut *bench.state, std::ptr::null_mut()) }.unwrap();
    stub.set_x87_pointers(&mut bench.state, std::ptr::null_mut(), 0x1234, 0);
    // AMD's processors save them for exceptions only.
    let expected = if host_saves_x87_pointers() { 0x1234 } else { 0u64 };
    assert_eq!(bench.state.x87.0[8..16], expected.to_le_bytes());
}

fn host_saves_x87_pointers() -> bool {
    #[repr(align(16))]
    struct Image([u8; 512]);
    let mut image = Image([0; 512]);
    // SAFETY: the image is aligned and long enough; the x87 unit is left empty.
    unsafe {
        std::arch::asm!(
            "fninit", "fld1", "fxsave64 [{image}]", "fninit",
            image = in(reg) image.0.as_mut_ptr(),
            clobber_abi("sysv64"),
        );
    }
    image.0[8..16] != [0; 8]
}

#[test]
fn instructions_that_differ_in_address_share_a_stub() {
    let mut bench = Bench::new();
    bench.stubs.compile(&decode(64, &[0x48, 0x8b, 0x43, 0x08])).unwrap();
    let used = bench.stubs.used();
    bench.stubs.compile(&decode(64, &[0x48, 0x8b, 0x41, 0x10])).unwrap();
    assert_eq!(bench.stubs.used(), used);
    bench.stubs.clear();
    assert!(bench.stubs.used() < used);
    bench.state.gpr[0] = 0;
    bench.memory[0] = 9;
    bench.run(64, &[0x48, 0x8b, 0x41, 0x10]).unwrap();
    assert_eq!(bench.state.gpr[0], 9);
}

#[test]
fn what_does_not_run_on_the_host_is_refused() {
    let mut bench = Bench::new();
    for bytes in [&[0x50][..], &[0xf4], &[0xa4], &[0x0f, 0x31], &[0x8d, 0x00]] {
        let refusal = bench.stubs.compile(&decode(64, bytes)).unwrap_err();
        assert!(matches!(refusal, Refusal::NotAStub(Class::Core)), "{refusal}");
    }
    // vmlaunch
    let refusal = bench.stubs.compile(&decode(64, &[0x0f, 0x01, 0xc2])).unwrap_err();
    assert!(matches!(refusal, Refusal::Invalid), "{refusal}");
}

#[test]
fn every_form_of_class_stub_encodes() {
    let mut bench = Bench::new();
    let mut failed = Vec::new();
    let mut compiled = 0;
    for code in iced_x86::Code::values() {
        if classify::of_code(code, &Features::host()) != Class::Stub {
            continue;
        }
        let Some(instruction) = example(code) else {
            failed.push(format!("{code:?}: no example"));
            continue;
        };
        match bench.stubs.compile(&instruction) {
            Ok(_) => compiled += 1,
            Err(error) => failed.push(format!("{code:?}: {error}")),
        }
        if bench.stubs.used() > 900_000 {
            bench.stubs.clear();
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(compiled > 1000);
}

/// An instruction of this form, with memory where it may have memory.
fn example(code: Code) -> Option<Instruction> {
    use iced_x86::OpCodeOperandKind::*;
    let mut instruction = Instruction::new();
    instruction.set_code(code);
    let info = code.op_code();
    for (operand, &kind) in info.op_kinds().iter().enumerate() {
        let operand = operand as u32;
        let next = operand + 1;
        let memory = |instruction: &mut Instruction| {
            instruction.set_op_kind(operand, OpKind::Memory);
            instruction.set_memory_base(Register::RBX);
        };
        let mut register = |first: Register| {
            instruction.set_op_kind(operand, OpKind::Register);
            instruction.set_op_register(operand, first + next);
        };
        match kind {
            mem | mem_offs | seg_rBX_al | r8_or_mem | r16_or_mem | r32_or_mem | r64_or_mem
            | mm_or_mem | xmm_or_mem | ymm_or_mem | zmm_or_mem | k_or_mem => {
                memory(&mut instruction)
            }
            r8_reg | r8_opcode => register(Register::AL),
            r16_reg | r16_reg_mem | r16_rm | r16_opcode => register(Register::AX),
            r32_reg | r32_reg_mem | r32_rm | r32_opcode | r32_vvvv => register(Register::EAX),
            r64_reg | r64_reg_mem | r64_rm | r64_opcode | r64_vvvv => register(Register::RAX),
            k_reg | kp1_reg | k_rm | k_vvvv => register(Register::K0),
            mm_reg | mm_rm => register(Register::MM0),
            xmm_reg | xmm_rm | xmm_vvvv | xmmp3_vvvv | xmm_is4 | xmm_is5 => {
                register(Register::XMM0)
            }
            ymm_reg | ymm_rm | ymm_vvvv | ymm_is4 | ymm_is5 => register(Register::YMM0),
            zmm_reg | zmm_rm | zmm_vvvv | zmmp3_vvvv => register(Register::ZMM0),
            sti_opcode => register(Register::ST0),
            al => instruction.set_op_register(operand, Register::AL),
            cl => instruction.set_op_register(operand, Register::CL),
            ax => instruction.set_op_register(operand, Register::AX),
            dx => instruction.set_op_register(operand, Register::DX),
            eax => instruction.set_op_register(operand, Register::EAX),
            rax => instruction.set_op_register(operand, Register::RAX),
            st0 => instruction.set_op_register(operand, Register::ST0),
            imm8 | imm8_const_1 | imm4_m2z => {
                // A second immediate has a kind of its own.
                let second =
                    (0..operand).any(|other| instruction.op_kind(other) == OpKind::Immediate8);
                let immediate = if second { OpKind::Immediate8_2nd } else { OpKind::Immediate8 };
                instruction.set_op_kind(operand, immediate);
                instruction.set_immediate8(1);
            }
            imm8sex16 => instruction.set_op_kind(operand, OpKind::Immediate8to16),
            imm8sex32 => instruction.set_op_kind(operand, OpKind::Immediate8to32),
            imm8sex64 => instruction.set_op_kind(operand, OpKind::Immediate8to64),
            imm16 => instruction.set_op_kind(operand, OpKind::Immediate16),
            imm32 => instruction.set_op_kind(operand, OpKind::Immediate32),
            imm32sex64 => instruction.set_op_kind(operand, OpKind::Immediate32to64),
            imm64 => instruction.set_op_kind(operand, OpKind::Immediate64),
            _ => return Option::None,
        }
    }
    Some(instruction)
}
