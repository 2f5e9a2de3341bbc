//! Protection keys: PKRU for user pages, IA32_PKRS for supervisor pages.

use crate::machine::*;

const WP: u64 = 1 << 16;
const OSXSAVE: u64 = 1 << 18;
const PKE: u64 = 1 << 22;
const PKS: u64 = 1 << 24;

/// Entry of the page directory for [`BEHIND_DEVICE`], which is mapped once more there.
const ENTRY: u64 = 0x3010;
const USER_PAGE: u64 = 0x87;
const SUPERVISOR_PAGE: u64 = 0x83;
const KEY_5: u64 = 5 << 59;

/// Bits of a key register that close key 5 to all accesses, and to writes.
const NO_ACCESS: u32 = 1 << 10;
const NO_WRITE: u32 = 2 << 10;

/// mov eax, VALUE; xor ecx, ecx; xor edx, edx; wrpkru
fn write_pkru(value: u32) -> Vec<u8> {
    let [a, b, c, d] = value.to_le_bytes();
    vec![0xb8, a, b, c, d, 0x31, 0xc9, 0x31, 0xd2, 0x0f, 0x01, 0xef]
}

/// mov ecx, 0x6e1; mov eax, VALUE; xor edx, edx; wrmsr
fn write_pkrs(value: u32) -> Vec<u8> {
    let [a, b, c, d] = value.to_le_bytes();
    vec![0xb9, 0xe1, 6, 0, 0, 0xb8, a, b, c, d, 0x31, 0xd2, 0x0f, 0x30]
}

const READ: &[u8] = &[0x8a, 0x1e];
const WRITE: &[u8] = &[0x88, 0x1e];

fn on_page(mode: Mode, entry: u64, cr4: u64, code: &[&[u8]]) -> After {
    let code = code.concat();
    let program = program(mode, &code).words(ENTRY, &[entry]);
    let program = program.system(|system| system.cr4 |= cr4);
    program.state(|state| state.registers.gpr[6] = BEHIND_DEVICE + 8).run()
}

#[test]
fn pkru_closes_user_pages() {
    let end = |mode, pkru, access| {
        let entry = USER_PAGE | KEY_5;
        // Both accesses before, so that the TLB knows the page.
        on_page(mode, entry, PKE, &[READ, WRITE, &write_pkru(pkru), access]).end
    };
    assert_eq!(end(Mode::Kernel, NO_ACCESS, READ), End::Fault(14, 0x21));
    assert_eq!(end(Mode::Kernel, NO_ACCESS, WRITE), End::Fault(14, 0x23));
    assert_eq!(end(Mode::User, NO_ACCESS, READ), End::Fault(14, 0x25));
    assert_eq!(end(Mode::User, NO_ACCESS, WRITE), End::Fault(14, 0x27));
    assert_eq!(end(Mode::User, NO_WRITE, READ), End::Done);
    assert_eq!(end(Mode::User, NO_WRITE, WRITE), End::Fault(14, 0x27));
    assert_eq!(end(Mode::Kernel, NO_WRITE, WRITE), End::Fault(14, 0x23));
    assert_eq!(end(Mode::User, !(NO_ACCESS | NO_WRITE) & !3, READ), End::Done, "other keys");
    // A page that is opened again, after it was found closed to writes.
    let (closed, open) = (write_pkru(NO_WRITE), write_pkru(0));
    let again = [&closed[..], READ, &open, WRITE];
    assert_eq!(on_page(Mode::User, USER_PAGE | KEY_5, PKE, &again).end, End::Done);
}

#[test]
fn a_supervisor_writes_where_only_pkru_forbids_it_without_wp() {
    let code = [&write_pkru(NO_WRITE)[..], WRITE].concat();
    let after = program(Mode::Kernel, &code)
        .words(ENTRY, &[USER_PAGE | KEY_5])
        .system(|system| (system.cr0, system.cr4) = (system.cr0 & !WP, system.cr4 | PKE))
        .state(|state| state.registers.gpr[6] = BEHIND_DEVICE)
        .run();
    assert_eq!(after.end, End::Done);
}

#[test]
fn pkrs_closes_supervisor_pages() {
    let end = |pkrs, access, page: u64| {
        let code = [READ, WRITE, &write_pkrs(pkrs), access];
        on_page(Mode::Kernel, page | KEY_5, PKS, &code).end
    };
    assert_eq!(end(NO_ACCESS, READ, SUPERVISOR_PAGE), End::Fault(14, 0x21));
    assert_eq!(end(NO_WRITE, WRITE, SUPERVISOR_PAGE), End::Fault(14, 0x23));
    assert_eq!(end(NO_WRITE, READ, SUPERVISOR_PAGE), End::Done);
    assert_eq!(end(NO_ACCESS, READ, USER_PAGE), End::Done, "PKRU's business");
    let high = program(Mode::Kernel, &[0x0f, 0x30]).rcx(0x6e1).rdx(1).run();
    assert_eq!(high.end, PROTECTION);
}

#[test]
fn keys_say_nothing_while_they_are_not_enabled() {
    let entry = USER_PAGE | KEY_5;
    let code = [&write_pkru(NO_ACCESS)[..], READ];
    assert_eq!(on_page(Mode::User, entry, 0, &code).end, UNDEFINED);
    let pkrs = [&write_pkrs(NO_ACCESS)[..], READ];
    assert_eq!(on_page(Mode::Kernel, SUPERVISOR_PAGE | KEY_5, 0, &pkrs).end, End::Done);
}

#[test]
fn rdpkru_and_wrpkru_mind_their_other_registers() {
    let run = |code: &[u8], rcx, rdx| {
        let program = program(Mode::User, code).rax(0x1234).rcx(rcx).rdx(rdx);
        program.system(|system| system.cr4 |= PKE).run()
    };
    assert_eq!(run(&[0x0f, 0x01, 0xef], 1, 0).end, PROTECTION);
    assert_eq!(run(&[0x0f, 0x01, 0xef], 0, 1).end, PROTECTION);
    assert_eq!(run(&[0x0f, 0x01, 0xee], 1, 0).end, PROTECTION);
    let both = run(&[0x0f, 0x01, 0xef, 0xb8, 0, 0, 0, 0, 0x0f, 0x01, 0xee], 0, 0);
    assert_eq!((both.end, both.gpr(0), both.gpr(2)), (End::Done, 0x1234, 0));
}

/// XRSTOR loads PKRU, whose page is in the TLB; the state's neutral form carries it.
#[test]
fn xrstor_loads_pkru() {
    // mov eax, 0x200; xor edx, edx; xrstor [rdi]; then the access.
    let code = [READ, &[0xb8, 0, 2, 0, 0, 0x31, 0xd2, 0x0f, 0xae, 0x2f], READ].concat();
    let after = program(Mode::Kernel, &code)
        .words(ENTRY, &[USER_PAGE | KEY_5])
        .words(DATA + 512, &[0x200])
        .words(DATA + 2688, &[u64::from(NO_ACCESS)])
        .state(|state| {
            state.system.cr4 |= PKE | OSXSAVE;
            state.system.xcr0 = 0x203;
            state.registers.gpr[6] = BEHIND_DEVICE;
        })
        .run();
    assert_eq!(after.end, End::Fault(14, 0x21));
    assert_eq!(after.state.xsave[2688..2692], NO_ACCESS.to_le_bytes());
}
