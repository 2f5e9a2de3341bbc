//! Transfers of control: gates, far calls and returns, IRET, fast system calls,
//! interrupts.

use crate::machine::*;

const NT: u64 = 1 << 14;
const TF: u64 = 1 << 8;
const IRETQ: &[u8] = &[0x48, 0xcf];
/// Through DATA, with an operand of 32 bits.
const FAR_CALL: &[u8] = &[0xff, 0x1e];
const FAR_JUMP: &[u8] = &[0xff, 0x2e];
/// With one of 64.
const FAR_RETURN: &[u8] = &[0x48, 0xcb];
const SYSCALL: &[u8] = &[0x0f, 0x05];
const SYSENTER: &[u8] = &[0x0f, 0x34];

#[test]
fn gates_of_the_interrupt_table() {
    for (name, vector, end) in [
        ("an interrupt gate", USER_GATE, End::Vector(USER_GATE)),
        ("an absent gate", ABSENT_GATE, End::Fault(11, u32::from(ABSENT_GATE) * 8 + 2)),
        ("a task gate", TASK_GATE, protection_of_vector(TASK_GATE)),
        ("a null selector", NULL_GATE, PROTECTION),
        ("a data segment", DATA_GATE, protection(DATA_0)),
        ("32-bit code", WRONG_SIZE_GATE, protection(CODE_32)),
        ("an address that is not canonical", FAR_GATE, PROTECTION),
        ("a call gate", NO_GATE, protection_of_vector(NO_GATE)),
        ("beyond the table", 0x80, protection_of_vector(0x80)),
    ] {
        for mode in [Mode::Kernel, Mode::User, Mode::Compatibility] {
            let after = program(mode, &[0xcd, vector]).run();
            assert_eq!(after.end, end, "{name} in {mode:?}");
        }
    }
}

#[test]
fn frames_of_interrupts() {
    let flags = 0x3202;
    let user = program(Mode::User, &[0xcd, USER_GATE]).flags(flags).run();
    let frame = |after: &After| [0, 8, 16, 24, 32].map(|at| after.word(after.gpr(4) + at));
    let expected = [CODE + 2, USER_64.into(), flags, STACK, DATA_3.into()];
    assert_eq!(frame(&user), expected);
    assert_eq!(user.gpr(4), STACK_0 - 40);
    assert!(!user.has_flag(IF), "an interrupt gate");
    assert_eq!(user.state.system.ss.selector, 0, "null, of the new level");
    let trap = program(Mode::User, &[0xcd, TRAP_GATE]).flags(flags).run();
    assert!(trap.has_flag(IF), "a trap gate");
    let own = program(Mode::Kernel, &[0xcd, IST_GATE]).run();
    assert_eq!(own.gpr(4), STACK_IST - 40);
    // A stack that is not aligned gets aligned.
    let same = program(Mode::Kernel, &[0xcd, USER_GATE])
        .state(|state| state.registers.gpr[4] = STACK - 3)
        .run();
    assert_eq!((same.gpr(4), same.word(STACK - 16 - 16)), (STACK - 16 - 40, STACK - 3));
    // 32-bit: five double words from a user, three from the kernel.
    let from_user = program(Mode::ProtectedUser, &[0xcd, USER_GATE]).run();
    assert_eq!((from_user.end, from_user.gpr(4)), (End::Vector(USER_GATE), STACK_0 - 20));
    let from_kernel = program(Mode::Protected, &[0xcd, USER_GATE]).run();
    assert_eq!(from_kernel.gpr(4), STACK - 12);
}

#[test]
fn faults_that_lead_to_others() {
    // No gate for #UD, and none for #GP: a double fault. None for that: the end.
    let short = |vectors: u16| {
        program(Mode::Kernel, &[0x0f, 0x0b]).system(move |s| s.idtr.limit = vectors * 16 - 1).run()
    };
    assert_eq!(short(7).end, End::Vector(6));
    assert_eq!(short(0x30).end, End::Vector(6));
    assert_eq!(short(6).end, End::Shutdown);
    let no_undefined = program(Mode::Kernel, &[0x0f, 0x0b]).words(0x1_0000 + 6 * 16, &[0, 0]).run();
    // EXT: the exception was not the program's request.
    assert_eq!(no_undefined.end, End::Fault(13, 6 * 8 + 2 + 1));
    let no_protection =
        program(Mode::Kernel, &[0xcd, 0x80]).words(0x1_0000 + 13 * 16, &[0, 0]).run();
    assert_eq!(no_protection.end, End::Fault(8, 0));
    // #DE and #NP are contributory: together a double fault.
    let absent_divide = program(Mode::Kernel, &[0xf7, 0xf1]).words(0x1_0000, &[0x0e00 << 32, 0]);
    assert_eq!(absent_divide.run().end, End::Fault(8, 0));
}

/// RIP, CS, RFLAGS, RSP, SS.
fn frame(rip: u64, cs: u16, flags: u64, ss: u16) -> [u64; 5] {
    [rip, cs.into(), flags, STACK_IST, ss.into()]
}

#[test]
fn returns_from_interrupts() {
    use Mode::{Kernel, User};
    let far = 1 << 60;
    for (name, mode, words, end) in [
        ("to the kernel", Kernel, frame(TARGET, CODE_64, 2, DATA_0), End::Target),
        ("to the kernel without a stack", Kernel, frame(TARGET, CODE_64, 2, 0), End::Target),
        ("to a user", Kernel, frame(TARGET, USER_64, 0x3002, DATA_3), End::Target),
        ("to a 32-bit user", Kernel, frame(TARGET, USER_32, 0x3002, DATA_3), End::Target),
        ("to a user without a stack", Kernel, frame(TARGET, USER_64, 2, 0), PROTECTION),
        ("to null", Kernel, frame(TARGET, 0, 2, DATA_0), PROTECTION),
        ("to data", Kernel, frame(TARGET, DATA_0, 2, DATA_0), protection(DATA_0)),
        ("beyond the table", Kernel, frame(TARGET, BEYOND, 2, DATA_0), protection(BEYOND)),
        ("to absent code", Kernel, frame(TARGET, ABSENT_CODE, 2, DATA_0), absent(ABSENT_CODE)),
        ("to a lower level", User, frame(TARGET, CODE_64, 2, DATA_0), protection(CODE_64)),
        (
            "to a stack of another level",
            Kernel,
            frame(TARGET, USER_64, 2, DATA_0),
            protection(DATA_0),
        ),
        (
            "to a read-only stack",
            Kernel,
            frame(TARGET, USER_64, 2, READ_ONLY | 3),
            protection(READ_ONLY),
        ),
        (
            "to an absent stack",
            Kernel,
            frame(TARGET, CODE_64, 2, ABSENT_DATA),
            End::Fault(12, 0x58),
        ),
        ("to nowhere", Kernel, frame(far, CODE_64, 2, DATA_0), PROTECTION),
        (
            "with the wrong level",
            Kernel,
            frame(TARGET, USER_64 & !3, 2, DATA_0),
            protection(USER_64),
        ),
    ] {
        assert_eq!(program(mode, IRETQ).stack(&words).run().end, end, "{name}");
    }
    let nested = program(Kernel, IRETQ).flags(NT).stack(&frame(TARGET, CODE_64, 2, DATA_0)).run();
    assert_eq!(nested.end, PROTECTION, "a nested task in long mode");
    let user = program(Kernel, IRETQ).stack(&frame(TARGET, USER_64, 0x3202, DATA_3)).run();
    assert_eq!((user.gpr(4), user.state.system.cs.selector), (STACK_IST, USER_64));
    // What is of the kernel's level does not stay in the data segments.
    assert_eq!(user.state.system.ds.selector, 0);
    // A user's IRET changes neither IOPL nor, below it, IF.
    let flags = program(User, &[0x48, 0xcf]).flags(0x202);
    let flags = flags.stack(&frame(CODE, USER_64, 0x3000, DATA_3)).words(CODE, &[0x20cd_cf48]);
    assert_eq!(flags.stack(&frame(CODE + 2, USER_64, 0x3000, DATA_3)).run().end, End::Vector(0x20));
}

#[test]
fn far_calls_and_jumps() {
    use Mode::{Kernel, Protected, User};
    for (name, mode, selector, end) in [
        ("to code", Kernel, CODE_64, End::Target),
        ("to code", Protected, CODE_32, End::Target),
        ("to conforming code from a user", User, CONFORMING, End::Fault(13, 0)),
        ("to null", Kernel, 0, PROTECTION),
        ("to data", Kernel, DATA_0, protection(DATA_0)),
        ("to a user's code", Kernel, USER_64 & !3, protection(USER_64)),
        ("to a kernel's code", User, CODE_64, protection(CODE_64)),
        ("to absent code", Kernel, ABSENT_CODE, absent(ABSENT_CODE)),
        ("beyond the table", Kernel, BEYOND, protection(BEYOND)),
        ("to a TSS in long mode", Kernel, TSS_FREE, protection(TSS_FREE)),
        ("to an LDT", Kernel, LDT, protection(LDT)),
        ("through a call gate", Kernel, CALL_GATE, End::Target),
        ("through a call gate", Protected, CALL_GATE, End::Target),
        ("through an absent gate", Kernel, GATE_ABSENT, absent(GATE_ABSENT)),
    ] {
        for code in [FAR_CALL, FAR_JUMP] {
            let words = [TARGET | u64::from(selector) << 32];
            let after = program(mode, code).data(&words).run();
            // A user who got to the target of conforming code may not tell it by a port.
            let end = if selector == CONFORMING { End::Target } else { end };
            assert_eq!(after.end, end, "{name}: {code:x?} in {mode:?}");
        }
    }
    let jump = program(Kernel, FAR_JUMP).data(&[0x8000_0000 | 8 << 32]).run();
    assert_eq!(jump.end, End::Fault(14, 0x10), "an address without memory is the target's fault");
}

#[test]
fn call_gates_change_the_level() {
    let words = [u64::from(CALL_GATE | 3) << 32];
    let call = program(Mode::User, FAR_CALL).data(&words).run();
    assert_eq!((call.end, call.state.system.cs.selector), (End::Target, CODE_64));
    let frame = [0, 8, 16, 24].map(|at| call.word(STACK_0 - 32 + at));
    assert_eq!(frame, [CODE + 2, USER_64.into(), STACK, DATA_3.into()]);
    assert_eq!(call.gpr(4), STACK_0 - 32);
    // A jump may not.
    assert_eq!(program(Mode::User, FAR_JUMP).data(&words).run().end, protection(CODE_64));
    // And back.
    let back = program(Mode::Kernel, FAR_RETURN)
        .flags(0x3002)
        .stack(&[TARGET, USER_64.into(), STACK_IST, DATA_3.into()])
        .run();
    assert_eq!((back.end, back.gpr(4)), (End::Target, STACK_IST));
    let inward = program(Mode::User, FAR_RETURN).stack(&[TARGET, CODE_64.into()]).run();
    assert_eq!(inward.end, protection(CODE_64));
    let nowhere = program(Mode::Kernel, FAR_RETURN).stack(&[1 << 60, CODE_64.into()]).run();
    assert_eq!(nowhere.end, PROTECTION);
}

#[test]
fn fast_system_calls() {
    let call = program(Mode::User, SYSCALL).flags(0x3246).msr(0xc000_0084, 0x3200 | TF).run();
    assert_eq!(call.end, End::Target);
    assert_eq!((call.gpr(1), call.gpr(11)), (CODE + 2, 0x3246));
    assert_eq!(call.state.registers.rflags, 0x46, "SFMASK's bits are gone");
    let (cs, ss) = (call.state.system.cs, call.state.system.ss);
    assert_eq!((cs.selector, ss.selector, call.gpr(4)), (CODE_64, CODE_64 + 8, STACK));
    let disabled =
        program(Mode::User, SYSCALL).system(|system| system.efer &= !1).msr(0xc000_0080, 0xd00);
    assert_eq!(disabled.run().end, UNDEFINED);
    // From compatibility mode only where the kernel gave an address.
    assert_eq!(program(Mode::Compatibility, SYSCALL).run().end, UNDEFINED);
    let given = program(Mode::Compatibility, SYSCALL).msr(0xc000_0083, TARGET).run();
    assert_eq!((given.end, given.gpr(1)), (End::Target, CODE + 2));
    // SYSRET: to 64-bit code with REX.W, to 32-bit code without.
    for (code, selector) in [(&[0x48_u8, 0x0f, 0x07] as &[u8], USER_64), (&[0x0f, 0x07], 0x13)] {
        let back = program(Mode::Kernel, code).rcx(TARGET);
        let back = back.state(|state| state.registers.gpr[11] = 0x3002).run();
        assert_eq!((back.end, back.state.system.cs.selector), (End::Target, selector));
        assert_eq!(back.state.system.ss.selector, 0x1b);
    }
    let nowhere = program(Mode::Kernel, &[0x48, 0x0f, 0x07]).rcx(1 << 60).run();
    assert_eq!(nowhere.end, PROTECTION, "in the kernel, as on Intel's processors");
}

#[test]
fn sysenter_and_sysexit() {
    for mode in [Mode::User, Mode::Compatibility, Mode::ProtectedUser] {
        let enter = program(mode, SYSENTER).flags(0x3202).run();
        assert_eq!((enter.end, enter.gpr(4)), (End::Target, STACK_0), "{mode:?}");
        assert!(!enter.has_flag(IF));
        let code = if mode.is_long() { CODE_64 } else { CODE_32 };
        let system = enter.state.system;
        assert_eq!((system.cs.selector, system.ss.selector), (code, code + 8), "{mode:?}");
        assert_eq!(program(mode, SYSENTER).msr(0x174, 0).run().end, PROTECTION, "{mode:?}");
    }
    let exit = |code| {
        let exit = program(Mode::Kernel, code).flags(0x3002).rcx(STACK_IST).rdx(TARGET);
        exit.run()
    };
    let long = exit(&[0x48, 0x0f, 0x35]);
    assert_eq!((long.end, long.gpr(4)), (End::Target, STACK_IST));
    assert_eq!(long.state.system.cs.selector, CODE_64 + 32 + 3);
    assert_eq!(exit(&[0x0f, 0x35]).state.system.cs.selector, CODE_64 + 16 + 3);
    let none = program(Mode::Kernel, &[0x48, 0x0f, 0x35]).msr(0x174, 0).run();
    assert_eq!(none.end, PROTECTION);
    let nowhere = program(Mode::Kernel, &[0x48, 0x0f, 0x35]).rdx(1 << 60).run();
    assert_eq!(nowhere.end, PROTECTION);
}

/// A message to the local APIC: it comes after the instruction behind STI, and HLT
/// waits for nothing when it has come.
#[test]
fn message_signalled_interrupts() {
    let waits = |code| program(Mode::Kernel, code).state(enable_apic).msi(0xfee0_0000, 0x2b).run();
    let halted = waits(&[0xfb, 0xf4]);
    assert_eq!(halted.end, End::Vector(0x2b));
    assert_eq!(halted.word(halted.gpr(4)), CODE + 2, "behind HLT");
    let shadowed = waits(&[0xfb, 0x90, 0x90]);
    assert_eq!(shadowed.word(shadowed.gpr(4)), CODE + 2, "one instruction after STI");
    assert_eq!(waits(&[0x90]).end, End::Done, "with interrupts disabled");
    // To another APIC, and with a vector that no interrupt has.
    for (address, data) in [(0xfee0_1000, 0x2b), (0xfee0_0000, 0x0b)] {
        let after =
            program(Mode::Kernel, &[0xfb, 0x90]).state(enable_apic).msi(address, data).run();
        assert_eq!(after.end, End::Done);
    }
    // An NMI asks nobody.
    let nmi = program(Mode::Kernel, &[0x90]).state(enable_apic).msi(0xfee0_0000, 0x400).run();
    assert_eq!(nmi.end, End::Vector(2));
}

/// The spurious-interrupt vector register enables the local APIC.
fn enable_apic(state: &mut guise_engine::VcpuState) {
    state.lapic[0xf0..0xf4].copy_from_slice(&0x1ffu32.to_le_bytes());
}
