use iced_x86::{Code, Instruction};

use super::*;

/// Reading a system register runs on the host without a fault, and reads the host's.
#[test]
fn system_instructions_are_not_translated() {
    use Code as C;
    let forms = [
        C::Sgdt_m1664,
        C::Sidt_m1664,
        C::Sldt_r32m16,
        C::Str_r64m16,
        C::Smsw_r64m16,
        C::Lar_r32_r32m16,
        C::Lsl_r64_r64m16,
        C::Verr_r32m16,
        C::Verw_r32m16,
        C::Lss_r32_m1632,
        C::Lfs_r64_m1664,
        C::Rdpid_r64,
        C::Rdfsbase_r64,
        C::Wrgsbase_r64,
        C::Xgetbv,
        C::Rdpkru,
        C::Cpuid,
        C::Popfq,
        C::Syscall,
        C::Mov_Sreg_rm16,
        C::Retfq,
    ];
    for code in forms {
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        if code == C::Mov_Sreg_rm16 {
            instruction.set_op0_register(Register::DS);
        }
        assert_eq!(required_level(&instruction), None, "{code:?}");
    }
}

#[test]
fn what_the_interpreter_does_itself_is_translated_by_name_only() {
    let emitted = Code::values().filter(|&code| {
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        let by_itself = classify::is_core(code) && code.op_code().mode64();
        by_itself && !code.is_jcc_short_or_near() && required_level(&instruction).is_some()
    });
    for code in emitted {
        assert!(has_emitter(code.mnemonic()), "{code:?}");
    }
}
