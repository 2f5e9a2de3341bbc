//! Descriptor tables, segment registers, and questions about descriptors.

use crate::machine::*;

const LTR: &[u8] = &[0x0f, 0x00, 0xd8];
const LLDT: &[u8] = &[0x0f, 0x00, 0xd0];
const MOV_DS: &[u8] = &[0x8e, 0xd8];
const MOV_FS: &[u8] = &[0x8e, 0xe0];
const MOV_SS: &[u8] = &[0x8e, 0xd0];
const MOV_CS: &[u8] = &[0x8e, 0xc8];
const ZF: u64 = 0x40;

#[test]
fn tables_of_descriptors() {
    let load = |code, base: u64| {
        let words = [0x1234 | base << 16, base >> 48];
        program(Mode::Kernel, code).data(&words).run()
    };
    let (lgdt, lidt): (&[u8], &[u8]) = (&[0x0f, 0x01, 0x16], &[0x0f, 0x01, 0x1e]);
    let after = load(lgdt, 0xffff_8000_1234_5678);
    let gdtr = after.state.system.gdtr;
    assert_eq!((after.end, gdtr.base, gdtr.limit), (End::Done, 0xffff_8000_1234_5678, 0x1234));
    assert_eq!(load(lidt, 0x7000).state.system.idtr.base, 0x7000);
    assert_eq!(load(lgdt, 1 << 60).end, PROTECTION);
    assert_eq!(load(lidt, 1 << 60).end, PROTECTION);
    // A register is no operand.
    assert_eq!(program(Mode::Protected, &[0x0f, 0x01, 0xd6]).run().end, UNDEFINED);
    // In 32-bit code the base has 32 bits, with an operand of 16 bits it has 24.
    let words = [0x1234 | 0x8765_4321 << 16];
    let wide = program(Mode::Protected, lgdt).data(&words).run();
    assert_eq!(wide.state.system.gdtr.base, 0x8765_4321);
    let narrow = program(Mode::Protected, &[0x66, 0x0f, 0x01, 0x16]).data(&words).run();
    assert_eq!(narrow.state.system.gdtr.base, 0x65_4321);
    let stored = program(Mode::Kernel, &[0x0f, 0x01, 0x06]).data(&[!0, !0]).run();
    assert_eq!(stored.word(DATA) >> 16, GDT);
    assert_eq!(stored.word(DATA + 8), !0 << 16, "ten bytes");
}

#[test]
fn task_register() {
    for (name, selector, end) in [
        ("null", 0, PROTECTION),
        ("null with a level", 3, PROTECTION),
        ("free", TSS_FREE, End::Done),
        ("busy", TSS_BUSY, protection(TSS_BUSY)),
        ("code", CODE_64, protection(CODE_64)),
        ("an LDT", LDT, protection(LDT)),
        ("absent", TSS_ABSENT, absent(TSS_ABSENT)),
        ("beyond the table", BEYOND, protection(BEYOND)),
        ("in the LDT", TSS_FREE | 4, protection(TSS_FREE | 4)),
        ("with a base that is not canonical", TSS_FAR, protection(TSS_FAR)),
    ] {
        let after = program(Mode::Kernel, LTR).rax(selector.into()).run();
        assert_eq!(after.end, end, "{name}");
        let busy = after.word(GDT + u64::from(TSS_FREE)) >> 41 & 1;
        assert_eq!(busy, u64::from(selector == TSS_FREE), "{name}");
    }
    let after = program(Mode::Kernel, LTR).rax(TSS_FREE.into()).run();
    let tr = after.state.system.tr;
    assert_eq!((tr.selector, tr.base, tr.limit), (TSS_FREE, TSS, 0x67));
}

#[test]
fn local_table() {
    for (name, selector, end) in [
        ("null", 0, End::Done),
        ("null with a level", 2, End::Done),
        ("an LDT", LDT, End::Done),
        ("a TSS", TSS_FREE, protection(TSS_FREE)),
        ("data", DATA_0, protection(DATA_0)),
        ("absent", LDT_ABSENT, absent(LDT_ABSENT)),
        ("beyond the table", BEYOND, protection(BEYOND)),
        ("in the LDT", LDT | 4, protection(LDT | 4)),
    ] {
        assert_eq!(program(Mode::Kernel, LLDT).rax(selector.into()).run().end, end, "{name}");
    }
}

#[test]
fn segment_registers() {
    use Mode::{Kernel, Protected, ProtectedUser, User};
    for (name, code, mode, selector, end) in [
        ("null", MOV_DS, Kernel, 0, End::Done),
        ("null with a level", MOV_FS, User, 3, End::Done),
        ("data", MOV_DS, Kernel, DATA_0, End::Done),
        ("a user's data", MOV_DS, Kernel, DATA_3, End::Done),
        ("a kernel's data", MOV_DS, User, DATA_0, protection(DATA_0)),
        ("with a level below", MOV_DS, Kernel, DATA_0 | 3, protection(DATA_0)),
        ("absent data", MOV_DS, Kernel, ABSENT_DATA, absent(ABSENT_DATA)),
        ("readable code", MOV_DS, User, USER_32, End::Done),
        ("a kernel's code", MOV_DS, User, CODE_64, protection(CODE_64)),
        ("conforming code", MOV_DS, User, CONFORMING | 3, End::Done),
        ("code that cannot be read", MOV_DS, User, EXECUTE_ONLY, protection(EXECUTE_ONLY)),
        ("a system descriptor", MOV_DS, Kernel, TSS_FREE, protection(TSS_FREE)),
        ("beyond the table", MOV_DS, Kernel, BEYOND, protection(BEYOND)),
        ("without an LDT", MOV_DS, Kernel, DATA_0 | 4, protection(DATA_0 | 4)),
        ("null for a 64-bit kernel's stack", MOV_SS, Kernel, 0, End::Done),
        ("null with another level", MOV_SS, Kernel, 3, PROTECTION),
        ("null for a user's stack", MOV_SS, User, 3, PROTECTION),
        ("null for a 32-bit kernel's stack", MOV_SS, Protected, 0, PROTECTION),
        ("stack", MOV_SS, Kernel, DATA_0, End::Done),
        ("a stack of another level", MOV_SS, Kernel, DATA_3, protection(DATA_3)),
        ("a stack with another level", MOV_SS, User, DATA_3 & !3, protection(DATA_3)),
        ("a stack that is absent", MOV_SS, Kernel, ABSENT_DATA, End::Fault(12, 0x58)),
        ("a stack that is read-only", MOV_SS, User, READ_ONLY | 3, protection(READ_ONLY)),
        ("a stack that is code", MOV_SS, User, USER_32, protection(USER_32)),
        ("code segment", MOV_CS, Kernel, CODE_64, UNDEFINED),
        ("code segment", MOV_CS, ProtectedUser, USER_32, UNDEFINED),
    ] {
        let after = program(mode, code).rax(selector.into()).run();
        assert_eq!(after.end, end, "{name}: {code:x?} in {mode:?}");
    }
    // Loading marks the descriptor as accessed.
    let clean = 0x00cf_9200_0000_ffff;
    let after = program(Mode::Kernel, MOV_DS)
        .rax(DATA_0.into())
        .words(GDT + u64::from(DATA_0), &[clean])
        .run();
    assert_eq!(after.word(GDT + u64::from(DATA_0)), clean | 1 << 40);
}

/// What 32-bit code may do with a segment: all of this is gone in 64-bit mode.
#[test]
fn limits_and_rights_of_segments() {
    const STACK_FAULT: End = End::Fault(12, 0);
    let in_segment = |code: &'static [u8], selector: u16, offset: u64| {
        // mov ds, eax; then the access.
        let mut text = vec![0x8e, 0xd8];
        text.extend_from_slice(code);
        program(Mode::ProtectedUser, &text)
            .rax(selector.into())
            .state(move |state| state.registers.gpr[6] = offset)
            .run()
            .end
    };
    // mov cl, [esi]; mov [esi], cl; mov [esi], ecx.
    let (read, write, wide): (&[u8], &[u8], &[u8]) = (&[0x8a, 0x0e], &[0x88, 0x0e], &[0x89, 0x0e]);
    for (name, code, selector, offset, end) in [
        ("the last byte", write, SMALL | 3, 0xfff, End::Done),
        ("one more", write, SMALL | 3, 0x1000, PROTECTION),
        ("across the end", wide, SMALL | 3, 0xffd, PROTECTION),
        ("just before", wide, SMALL | 3, 0xffc, End::Done),
        ("reading data", read, READ_ONLY | 3, DATA, End::Done),
        ("writing read-only data", write, READ_ONLY | 3, DATA, PROTECTION),
        ("reading code", read, USER_32, DATA, End::Done),
        ("writing code", write, USER_32, DATA, PROTECTION),
        ("through null", read, 0, DATA, PROTECTION),
        ("through null", write, 3, DATA, PROTECTION),
    ] {
        assert_eq!(in_segment(code, selector, offset), end, "{name}");
    }
    // The stack segment's faults are #SS.
    let push = program(Mode::ProtectedUser, &[0x50])
        .system(|system| {
            system.ss.selector = SMALL | 3;
            (system.ss.base, system.ss.limit, system.ss.access) = (DATA, 0xfff, 0x40f3);
        })
        .state(|state| state.registers.gpr[4] = 0x1002);
    assert_eq!(push.run().end, STACK_FAULT);
    // Jumps past the limit of the code.
    let jump = program(Mode::ProtectedUser, &[0xff, 0xe0])
        .rax(0x5_0000)
        .system(|system| system.cs.limit = 0x4_ffff);
    assert_eq!(jump.run().end, PROTECTION);
    for (name, code, rax, data, end) in [
        ("BOUND inside", &[0x62_u8, 0x06] as &[u8], 5, 9 << 32 | 5, End::Done),
        ("BOUND outside", &[0x62, 0x06], 10, 9 << 32 | 5, End::Vector(5)),
        ("INTO without OF", &[0xce], 0, 0, End::Done),
        ("INTO with OF", &[0x3d, 1, 0, 0, 0, 0xce], 1 << 31, 0, End::Vector(4)),
    ] {
        let after = program(Mode::ProtectedUser, code).rax(rax).data(&[data]).run();
        assert_eq!(after.end, end, "{name}");
    }
}

#[test]
fn questions_about_descriptors() {
    // lar ecx, eax; lsl ecx, eax; verr ax; verw ax.
    let (lar, lsl): (&[u8], &[u8]) = (&[0x0f, 0x02, 0xc8], &[0x0f, 0x03, 0xc8]);
    let (verr, verw): (&[u8], &[u8]) = (&[0x0f, 0x00, 0xe0], &[0x0f, 0x00, 0xe8]);
    use Mode::{Kernel, Protected, User};
    for (name, code, mode, selector, answer) in [
        ("rights of code", lar, Kernel, CODE_64, Some(0xa0_9b00)),
        ("rights of a user's data", lar, User, DATA_3, Some(0xc0_f300)),
        ("rights of a kernel's data", lar, User, DATA_0, None),
        ("rights of null", lar, Kernel, 0, None),
        ("rights beyond the table", lar, Kernel, BEYOND, None),
        ("rights of conforming code", lar, User, CONFORMING | 3, Some(0xa0_9f00)),
        ("rights of an absent segment", lar, Kernel, ABSENT_DATA, Some(0xc0_1300)),
        ("rights of a TSS", lar, Kernel, TSS_FREE, Some(0x8900)),
        ("rights of a call gate", lar, User, CALL_GATE | 3, Some(0xec00)),
        ("limit of flat data", lsl, Kernel, DATA_0, Some(0xffff_ffff)),
        ("limit of small data", lsl, User, SMALL | 3, Some(0xfff)),
        ("limit of a TSS", lsl, Kernel, TSS_FREE, Some(0x67)),
        ("limit of a TSS, asked with a level", lsl, Kernel, TSS_FREE | 3, None),
        ("limit of an LDT", lsl, Protected, LDT, Some(0xff)),
        ("limit of a call gate", lsl, Kernel, CALL_GATE, None),
        ("reading data", verr, User, DATA_3, Some(0)),
        ("reading a kernel's data", verr, User, DATA_0, None),
        ("reading code", verr, User, USER_64, Some(0)),
        ("reading conforming code", verr, User, CONFORMING | 3, Some(0)),
        ("reading code to execute only", verr, User, EXECUTE_ONLY | 3, None),
        ("reading a TSS", verr, Kernel, TSS_FREE, None),
        ("writing data", verw, User, DATA_3, Some(0)),
        ("writing read-only data", verw, User, READ_ONLY | 3, None),
        ("writing code", verw, Kernel, CODE_64, None),
        ("writing null", verw, Kernel, 0, None),
    ] {
        let after = program(mode, code).rax(selector.into()).rcx(0x77).run();
        assert_eq!(after.end, End::Done, "{name}");
        assert_eq!(after.has_flag(ZF), answer.is_some(), "{name}");
        let is_question = [verr, verw].contains(&code);
        let expected = if is_question { 0x77 } else { answer.unwrap_or(0x77) };
        assert_eq!(after.gpr(1), expected, "{name}");
    }
}

#[test]
fn adjusting_a_level() {
    // arpl ax, cx.
    for (of, to, result, adjusted) in
        [(0x10, 3, 0x13, true), (0x12, 1, 0x12, false), (0x11, 1, 0x11, false), (0, 2, 2, true)]
    {
        let after = program(Mode::ProtectedUser, &[0x63, 0xc8]).rax(of).rcx(to).run();
        assert_eq!((after.end, after.gpr(0)), (End::Done, result));
        assert_eq!(after.has_flag(ZF), adjusted);
    }
}
