//! Accesses to memory that meet page tables, devices and code.

use crate::machine::*;

#[test]
fn page_faults() {
    const SMEP: u64 = 1 << 20;
    let (read, write): (&[u8], &[u8]) = (&[0x8a, 0x06], &[0x88, 0x06]);
    let at = |mode, code, address: u64| {
        program(mode, code).state(move |state| state.registers.gpr[6] = address).run()
    };
    let nothing = at(Mode::Kernel, read, UNMAPPED + 5);
    assert_eq!((nothing.end, nothing.state.system.cr2), (End::Fault(14, 0), UNMAPPED + 5));
    assert_eq!(at(Mode::Kernel, write, UNMAPPED).end, End::Fault(14, 2));
    assert_eq!(at(Mode::User, read, UNMAPPED).end, End::Fault(14, 4));
    assert_eq!(at(Mode::User, write, UNMAPPED).end, End::Fault(14, 6));
    assert_eq!(at(Mode::Kernel, read, 1 << 50).end, PROTECTION, "not canonical");
    // push rax without a stack: #SS, for which there is no stack, nor for what follows.
    let stack = program(Mode::Kernel, &[0x50]).state(|state| state.registers.gpr[4] = 1 << 50);
    assert_eq!(stack.run().end, End::Shutdown);
    // All of memory is the user's, so that with SMEP no kernel can go on, nor its handlers.
    let enable = program(Mode::Kernel, &[0x0f, 0x22, 0xe0]).rax(0x220 | SMEP).run().end;
    assert!(matches!(enable, End::Shutdown | PROTECTION), "{enable:?}");
}

#[test]
fn accesses_across_memory_and_a_device() {
    let run = |code, address: u64, data: u64| {
        program(Mode::Kernel, code)
            .rax(0x1122_3344_5566_7788)
            .words(0, &[data])
            .words(DEVICE - 8, &[data])
            .state(move |state| state.registers.gpr[6] = address)
            .run()
    };
    let data = 0x8070_6050_4030_2010;
    // mov rcx, [rsi].
    let load: &[u8] = &[0x48, 0x8b, 0x0e];
    assert_eq!(run(load, DEVICE - 3, data).gpr(1), 0xffff_ffff_ff80_7060);
    assert_eq!(run(load, BEHIND_DEVICE - 3, data).gpr(1), 0x5040_3020_10ff_ffff);
    // mov [rsi], rax.
    let store: &[u8] = &[0x48, 0x89, 0x06];
    assert_eq!(run(store, DEVICE - 3, 0).word(DEVICE - 8), 0x66_7788 << 40);
    assert_eq!(run(store, BEHIND_DEVICE - 3, 0).word(0), 0x11_2233_4455);
    // lock xadd [rsi], rax.
    let add: &[u8] = &[0xf0, 0x48, 0x0f, 0xc1, 0x06];
    let after = run(add, BEHIND_DEVICE - 3, 0);
    assert_eq!(after.gpr(0), 0xff_ffff);
    assert_eq!(after.word(0), 0x11_2233_4455 + 1, "with a carry out of the device's bytes");
    // movups xmm0, [rsi]; movq rcx, xmm0.
    let vector: &[u8] = &[0x0f, 0x10, 0x06, 0x66, 0x48, 0x0f, 0x7e, 0xc1];
    assert_eq!(run(vector, BEHIND_DEVICE - 3, data).gpr(1), 0x5040_3020_10ff_ffff);
    // mov rdi, rsi; add rdi, 3; mov ecx, 2; rep movsb, from the device into memory.
    let copy: &[u8] = &[0x48, 0x89, 0xf7, 0x48, 0x83, 0xc7, 3, 0xb9, 2, 0, 0, 0, 0xf3, 0xa4];
    assert_eq!(run(copy, BEHIND_DEVICE - 3, data).word(0), 0x8070_6050_4030_ffff);
}

/// A page that is both a page table and code: the walk for an operand marks an entry as
/// accessed, and the next round executes the marked byte.
#[test]
fn a_walk_that_marks_code_is_a_write_to_code() {
    const TABLE: u64 = 0x5_0000;
    let words = [
        // Seven NOPs and the first byte of `add al, imm8`.
        [0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x04],
        // The entry for 0x49000: its attributes are the immediate. Its other bytes are
        // `nop`, `add al, 0` and twice `add [rax], al`.
        [0x07, 0x90, 0x04, 0x00, 0x00, 0x00, 0x00, 0x00],
        // mov cl, [rsi]; dec ebx; jnz to the beginning; out 0xf0, al.
        [0x8a, 0x0e, 0xff, 0xcb, 0x75, 0xea, 0xe6, 0xf0],
    ]
    .map(u64::from_le_bytes);
    // jmp rdx.
    let after = program(Mode::Kernel, &[0xff, 0xe2])
        .words(0x3000 + 2 * 8, &[TABLE | 7])
        .words(TABLE, &words)
        .rdx(TABLE)
        .state(|state| {
            state.registers.gpr[0] = 0x6_0000;
            state.registers.gpr[3] = 2;
            state.registers.gpr[6] = BEHIND_DEVICE + 0x1000;
        })
        .run();
    assert_eq!(after.end, End::Done);
    assert_eq!(after.word(TABLE + 8) & 0xff, 0x27, "accessed");
    assert_eq!(after.gpr(0), 0x6_0000 + 0x07 + 0x27);
}
