//! Who may execute what.

use crate::machine::{
    DEVICE_MISSING, End, IF, Mode, PROTECTION, TSS, UNDEFINED, program, protection_of_vector,
};

/// For level 0 only: #GP(0) elsewhere.
const FOR_KERNELS: [(&str, &[u8]); 27] = [
    ("LGDT", &[0x0f, 0x01, 0x16]),
    ("LIDT", &[0x0f, 0x01, 0x1e]),
    ("LLDT", &[0x0f, 0x00, 0xd0]),
    ("LTR", &[0x0f, 0x00, 0xd8]),
    ("CLTS", &[0x0f, 0x06]),
    ("LMSW", &[0x0f, 0x01, 0xf0]),
    ("MOV CR0, RAX", &[0x0f, 0x22, 0xc0]),
    ("MOV CR2, RAX", &[0x0f, 0x22, 0xd0]),
    ("MOV CR3, RAX", &[0x0f, 0x22, 0xd8]),
    ("MOV CR4, RAX", &[0x0f, 0x22, 0xe0]),
    ("MOV RAX, CR0", &[0x0f, 0x20, 0xc0]),
    ("MOV RAX, CR2", &[0x0f, 0x20, 0xd0]),
    ("MOV RAX, CR3", &[0x0f, 0x20, 0xd8]),
    ("MOV RAX, CR4", &[0x0f, 0x20, 0xe0]),
    ("MOV DR0, RAX", &[0x0f, 0x23, 0xc0]),
    ("MOV DR7, RAX", &[0x0f, 0x23, 0xf8]),
    ("MOV RAX, DR6", &[0x0f, 0x21, 0xf0]),
    ("INVLPG", &[0x0f, 0x01, 0x3e]),
    ("WRMSR", &[0x0f, 0x30]),
    ("RDMSR", &[0x0f, 0x32]),
    ("HLT", &[0xf4]),
    ("INVD", &[0x0f, 0x08]),
    ("WBINVD", &[0x0f, 0x09]),
    ("SYSEXIT", &[0x0f, 0x35]),
    ("SYSRET", &[0x0f, 0x07]),
    ("MOV CR8, RAX", &[0x44, 0x0f, 0x22, 0xc0]),
    ("SWAPGS", &[0x0f, 0x01, 0xf8]),
];

#[test]
fn users_may_not() {
    for (name, code) in FOR_KERNELS {
        assert_eq!(program(Mode::User, code).run().end, PROTECTION, "{name}");
        // The last three are of 64-bit mode, the first of them on Intel's processors.
        if !["SYSRET", "MOV CR8, RAX", "SWAPGS"].contains(&name) {
            for mode in [Mode::Compatibility, Mode::ProtectedUser] {
                assert_eq!(program(mode, code).run().end, PROTECTION, "{name} in {mode:?}");
            }
        }
    }
}

#[test]
fn instructions_of_64_bit_mode_do_not_exist_elsewhere() {
    for (name, code) in [
        ("SWAPGS", &[0x0f_u8, 0x01, 0xf8] as &[u8]),
        ("SYSCALL", &[0x0f, 0x05]),
        ("SYSRET", &[0x0f, 0x07]),
        ("RDFSBASE EAX", &[0xf3, 0x0f, 0xae, 0xc0]),
    ] {
        for mode in [Mode::Compatibility, Mode::Protected] {
            assert_eq!(program(mode, code).run().end, UNDEFINED, "{name} in {mode:?}");
        }
    }
    for (name, code) in [
        ("ARPL's old place is MOVSXD, PUSHA's is none", &[0x60_u8] as &[u8]),
        ("PUSH ES", &[0x06]),
        ("POP DS", &[0x1f]),
        ("DAA", &[0x27]),
        ("AAM", &[0xd4, 0x0a]),
        ("INTO", &[0xce]),
        ("far JMP to an immediate", &[0xea, 0, 0, 0, 0, 8, 0]),
        ("LES", &[0xc4, 0x06]),
    ] {
        assert_eq!(program(Mode::Kernel, code).run().end, UNDEFINED, "{name}");
    }
}

/// CLI, STI and ports are IOPL's matter.
#[test]
fn input_output_privilege() {
    for code in [&[0xfa_u8] as &[u8], &[0xfb], &[0xe4, 0x80], &[0xe6, 0x80], &[0x6c], &[0x6e]] {
        for mode in [Mode::User, Mode::Compatibility, Mode::ProtectedUser] {
            assert_eq!(program(mode, code).flags(0).run().end, PROTECTION, "{code:x?} {mode:?}");
            // With level 1's IOPL too.
            assert_eq!(program(mode, code).flags(0x1000).run().end, PROTECTION, "{code:x?}");
        }
    }
    // Ports 0x70 to 0x77 are at 0x76 in the TSS, one bit each.
    let allowed = |bits: u64, limit: u32| {
        program(Mode::User, &[0xe4, 0x71, 0xcd, 0x20])
            .flags(0)
            .words(TSS + 0x76, &[bits])
            .system(move |system| system.tr.limit = limit)
            .run()
            .end
    };
    assert_eq!(allowed(0, 0x77), End::Vector(0x20));
    assert_eq!(allowed(1 << 0, 0x77), End::Vector(0x20), "another port's bit");
    assert_eq!(allowed(1 << 1, 0x77), PROTECTION);
    assert_eq!(allowed(0, 0x76), PROTECTION, "a second byte is always read");
    // STI with IOPL 3 works; POPF without it leaves IF alone and is no fault.
    assert!(program(Mode::User, &[0xfb]).run().has_flag(IF));
    let popf = program(Mode::User, &[0x9d, 0xcd, 0x20]).flags(IF).stack(&[0x3000]).run();
    assert_eq!(popf.end, End::Vector(0x20));
    assert_eq!(popf.word(popf.gpr(4) + 16) & 0x3200, IF, "the flags in the frame");
}

#[test]
fn umip_hides_system_state_from_users() {
    for (name, code) in [
        ("SGDT", &[0x0f_u8, 0x01, 0x06] as &[u8]),
        ("SIDT", &[0x0f, 0x01, 0x0e]),
        ("SLDT", &[0x0f, 0x00, 0xc0]),
        ("STR", &[0x0f, 0x00, 0xc8]),
        ("SMSW", &[0x0f, 0x01, 0xe0]),
    ] {
        const UMIP: u64 = 1 << 11;
        assert_eq!(program(Mode::User, code).run().end, End::Done, "{name}");
        let hidden = |mode| program(mode, code).system(|system| system.cr4 |= UMIP).run().end;
        assert_eq!(hidden(Mode::User), PROTECTION, "{name}");
        assert_eq!(hidden(Mode::Compatibility), PROTECTION, "{name}");
        assert_eq!(hidden(Mode::Kernel), End::Done, "{name}");
    }
}

#[test]
fn floating_point_and_vectors_are_there_when_the_control_registers_say_so() {
    const TS: u64 = 1 << 3;
    const EM: u64 = 1 << 2;
    const MP: u64 = 1 << 1;
    const OSFXSR: u64 = 1 << 9;
    let fld1: &[u8] = &[0xd9, 0xe8];
    let fwait: &[u8] = &[0x9b];
    let movaps: &[u8] = &[0x0f, 0x28, 0xc1];
    let vmovaps: &[u8] = &[0xc5, 0xf8, 0x28, 0xc1];
    let emms: &[u8] = &[0x0f, 0x77];
    for (code, cr0, cr4, end) in [
        (fld1, 0, OSFXSR, End::Done),
        (fld1, TS, OSFXSR, DEVICE_MISSING),
        (fld1, EM, OSFXSR, DEVICE_MISSING),
        (fwait, TS, OSFXSR, End::Done),
        (fwait, TS | MP, OSFXSR, DEVICE_MISSING),
        (movaps, 0, OSFXSR, End::Done),
        (movaps, TS, OSFXSR, DEVICE_MISSING),
        (movaps, EM, OSFXSR, UNDEFINED),
        (movaps, 0, 0, UNDEFINED),
        (emms, 0, OSFXSR, End::Done),
        (emms, EM, OSFXSR, UNDEFINED),
        (emms, TS, OSFXSR, DEVICE_MISSING),
        // OSXSAVE is off.
        (vmovaps, 0, OSFXSR, UNDEFINED),
    ] {
        let change = |system: &mut guise_engine::state::SystemState| {
            system.cr0 |= cr0;
            system.cr4 = system.cr4 & !OSFXSR | cr4;
        };
        let ended = program(Mode::User, code).system(change).run().end;
        assert_eq!(ended, end, "{code:x?} with CR0 {cr0:#x} and CR4 {cr4:#x}");
    }
}

#[test]
fn software_interrupts_need_the_gate_s_level() {
    for mode in [Mode::User, Mode::Compatibility, Mode::ProtectedUser] {
        assert_eq!(program(mode, &[0xcd, 0x2a]).run().end, protection_of_vector(0x2a));
        assert_eq!(program(mode, &[0xcd, 13]).run().end, protection_of_vector(13));
        assert_eq!(program(mode, &[0xcd, 0x20]).run().end, End::Vector(0x20));
        assert_eq!(program(mode, &[0xcc]).run().end, End::Vector(3));
        // INT1 asks for no privilege.
        assert_eq!(program(mode, &[0xf1]).run().end, End::Vector(1));
    }
    assert_eq!(program(Mode::Kernel, &[0xcd, 0x2a]).run().end, End::Vector(0x2a));
}
