//! Control registers, debug registers, model-specific registers.

use crate::machine::{End, Mode, PROTECTION, UNDEFINED, program};

const MOV_CR0: &[u8] = &[0x0f, 0x22, 0xc0];
const MOV_CR3: &[u8] = &[0x0f, 0x22, 0xd8];
const MOV_CR4: &[u8] = &[0x0f, 0x22, 0xe0];
const MOV_CR8: &[u8] = &[0x44, 0x0f, 0x22, 0xc0];
const WRMSR: &[u8] = &[0x0f, 0x30];
const RDMSR: &[u8] = &[0x0f, 0x32];

const PE: u64 = 1;
const TS: u64 = 1 << 3;
const NE: u64 = 1 << 5;
const NW: u64 = 1 << 29;
const CD: u64 = 1 << 30;
const PG: u64 = 1 << 31;
/// As the kernel has it: with ET and WP.
const CR0: u64 = PG | 1 << 16 | NE | 1 << 4 | PE;
const CR4: u64 = 0x220;

#[test]
fn writes_of_control_registers() {
    for (name, code, value, end) in [
        ("CR0 as it is", MOV_CR0, CR0, End::Done),
        ("CR0 without WP", MOV_CR0, CR0 & !(1 << 16), End::Done),
        ("PG without PE", MOV_CR0, CR0 & !PE, PROTECTION),
        ("NW without CD", MOV_CR0, CR0 | NW, PROTECTION),
        ("NW with CD", MOV_CR0, CR0 | NW | CD, End::Done),
        ("no paging in 64-bit mode", MOV_CR0, CR0 & !PG, PROTECTION),
        ("the upper half of CR0", MOV_CR0, CR0 | 1 << 32, PROTECTION),
        ("CR4 as it is", MOV_CR4, CR4, End::Done),
        ("CR4 without PAE in long mode", MOV_CR4, CR4 & !0x20, PROTECTION),
        ("a reserved bit of CR4", MOV_CR4, CR4 | 1 << 15, PROTECTION),
        ("the upper half of CR4", MOV_CR4, CR4 | 1 << 40, PROTECTION),
        ("VMX, which is not there", MOV_CR4, CR4 | 1 << 13, PROTECTION),
        ("57-bit addresses, which are not there", MOV_CR4, CR4 | 1 << 12, PROTECTION),
        ("CR3 as it is", MOV_CR3, 0x1000, End::Done),
        ("CR3 beyond physical addresses", MOV_CR3, 0x1000 | 1 << 51, PROTECTION),
        ("CR8 15", MOV_CR8, 15, End::Done),
        ("CR8 16", MOV_CR8, 16, PROTECTION),
        ("CR1", &[0x0f, 0x22, 0xc8], 0, UNDEFINED),
        ("CR5", &[0x0f, 0x22, 0xe8], 0, UNDEFINED),
        ("CR7", &[0x0f, 0x20, 0xf8], 0, UNDEFINED),
        ("CR9", &[0x44, 0x0f, 0x22, 0xc8], 0, UNDEFINED),
    ] {
        let after = program(Mode::Kernel, code).rax(value).run();
        assert_eq!(after.end, end, "{name}");
        if code == MOV_CR8 && end == End::Done {
            assert_eq!(after.state.system.cr8, value);
        }
    }
}

#[test]
fn pcid_wants_a_clean_cr3_and_long_mode() {
    const PCIDE: u64 = 1 << 17;
    let enable = |cr3: u64| {
        program(Mode::Kernel, MOV_CR4).rax(CR4 | PCIDE).system(move |s| s.cr3 |= cr3).run().end
    };
    let with_pcid = enable(0);
    // A host without it gives a model without it.
    if with_pcid == End::Done {
        assert_eq!(enable(8), PROTECTION);
        assert_eq!(program(Mode::Protected, MOV_CR4).rax(CR4 | PCIDE).run().end, PROTECTION);
        let disable_paging =
            program(Mode::Kernel, MOV_CR0).rax(CR0 & !PG).system(|s| s.cr4 |= PCIDE).run().end;
        assert_eq!(disable_paging, PROTECTION);
    } else {
        assert_eq!(with_pcid, PROTECTION);
    }
}

#[test]
fn machine_status_word() {
    let lmsw = |value| program(Mode::Kernel, &[0x0f, 0x01, 0xf0]).rax(value).run();
    let after = lmsw(0);
    assert_eq!((after.end, after.state.system.cr0), (End::Done, CR0), "PE cannot be cleared");
    assert_eq!(lmsw(TS | PE).state.system.cr0, CR0 | TS);
    assert_eq!(lmsw(0xffff).state.system.cr0, CR0 | 0xf, "four bits and no more");
    let clts = program(Mode::Kernel, &[0x0f, 0x06]).system(|s| s.cr0 |= TS).run();
    assert_eq!((clts.end, clts.state.system.cr0), (End::Done, CR0));
    // SMSW EAX gives all of CR0, SMSW to memory 16 bits.
    assert_eq!(program(Mode::Kernel, &[0x0f, 0x01, 0xe0]).run().gpr(0), CR0 & 0xffff_ffff);
    let memory = program(Mode::Kernel, &[0x0f, 0x01, 0x26]).data(&[!0]).run();
    assert_eq!(memory.word(crate::machine::DATA), !0xffff | CR0 & 0xffff);
}

#[test]
fn debug_registers() {
    const DE: u64 = 1 << 3;
    const GD: u64 = 1 << 13;
    const BD: u64 = 1 << 13;
    for (name, code, value, cr4, end) in [
        ("DR6", &[0x0f, 0x23, 0xf0], 0, 0, End::Done),
        ("the upper half of DR6", &[0x0f, 0x23, 0xf0], 1 << 32, 0, PROTECTION),
        ("the upper half of DR7", &[0x0f, 0x23, 0xf8], 1 << 32, 0, PROTECTION),
        ("DR4 is DR6", &[0x0f, 0x23, 0xe0], 0, 0, End::Done),
        ("DR4 with DE", &[0x0f, 0x23, 0xe0], 0, DE, UNDEFINED),
        ("DR5 with DE", &[0x0f, 0x21, 0xe8], 0, DE, UNDEFINED),
    ] {
        let after = program(Mode::Kernel, code).rax(value).system(|s| s.cr4 |= cr4).run();
        assert_eq!(after.end, end, "{name}");
    }
    let after = program(Mode::Kernel, &[0x0f, 0x21, 0xc0]).system(|s| s.dr7 = 0x400 | GD).run();
    assert_eq!(after.end, End::Vector(1), "general detect");
    assert_eq!(after.state.system.dr7 & GD, 0);
    assert_eq!(after.state.system.dr6 & BD, BD);
    let after = program(Mode::Kernel, &[0x0f, 0x23, 0xf8]).rax(0xffff_ffff & !GD).run();
    assert_eq!(after.state.system.dr7, 0xffff_0fff | 0x400, "bits that are always 0 or 1");
}

#[test]
fn instruction_breakpoints_and_the_resume_flag() {
    const RF: u64 = 1 << 16;
    let nop = crate::machine::CODE;
    let with = |flags: u64| {
        program(Mode::Kernel, &[0x90, 0x90])
            .flags(flags)
            .system(move |system| {
                system.dr[0] = nop;
                system.dr7 = 0x402;
            })
            .run()
    };
    let hit = with(0);
    assert_eq!((hit.end, hit.word(hit.gpr(4))), (End::Vector(1), nop), "before the instruction");
    assert_eq!(hit.word(hit.gpr(4) + 16) & RF, 0, "it is the handler's to set it");
    assert_eq!(hit.state.system.dr6 & 0xf, 1);
    assert_eq!(with(RF).end, End::Done);
}

#[test]
fn model_specific_registers() {
    const EFER: u64 = 0xc000_0080;
    const LSTAR: u64 = 0xc000_0082;
    for (name, number, value, end) in [
        ("a register that is not there", 0x1234_5678, 0, PROTECTION),
        ("EFER as it is", EFER, 0xd01, End::Done),
        ("EFER without SCE and NXE", EFER, 0x500, End::Done),
        ("EFER without LME, paging", EFER, 0xc01, PROTECTION),
        ("EFER's reserved bits", EFER, 0xd03, PROTECTION),
        ("EFER's upper half", EFER, 0xd01 | 1 << 32, PROTECTION),
        ("SVM, which is not there", EFER, 0xd01 | 1 << 12, PROTECTION),
        ("LSTAR in the lower half", LSTAR, 0x7fff_ffff_ffff, End::Done),
        ("LSTAR that is not canonical", LSTAR, 0x8000_0000_0000, PROTECTION),
        ("LSTAR in the upper half", LSTAR, 0xffff_8000_0000_0000, End::Done),
        ("CSTAR that is not canonical", 0xc000_0083, 1 << 60, PROTECTION),
        ("FS base that is not canonical", 0xc000_0100, 1 << 60, PROTECTION),
        ("kernel GS base that is not canonical", 0xc000_0102, 1 << 60, PROTECTION),
        ("SYSENTER_EIP that is not canonical", 0x176, 1 << 60, PROTECTION),
        ("a page attribute that does not exist", 0x277, 2, PROTECTION),
        ("UC- as a page attribute", 0x277, 7, End::Done),
        ("TSC_AUX's upper half", 0xc000_0103, 1 << 32, PROTECTION),
        ("a reserved bit of the APIC base", 0x1b, 0xfee0_0901, PROTECTION),
        ("x2APIC without the APIC", 0x1b, 0xfee0_0500, PROTECTION),
        ("a default memory type that does not exist", 0x2ff, 2, PROTECTION),
        ("a constant", 0xfe, 0, PROTECTION),
    ] {
        let wrmsr = program(Mode::Kernel, WRMSR).rcx(number).rax(value & 0xffff_ffff);
        assert_eq!(wrmsr.rdx(value >> 32).run().end, end, "{name}");
    }
    assert_eq!(program(Mode::Kernel, RDMSR).rcx(0x1234_5678).run().end, PROTECTION);
    // A command has nothing to read.
    assert_eq!(program(Mode::Kernel, RDMSR).rcx(0x49).run().end, PROTECTION);
    let efer = program(Mode::Kernel, RDMSR).rcx(EFER).rax(!0).rdx(!0).run();
    assert_eq!((efer.gpr(0), efer.gpr(2)), (0xd01, 0), "halves, extended by zeros");
    // The upper halves of RAX, RCX and RDX do not count.
    let upper = 0x5555_5555 << 32;
    let write = program(Mode::Kernel, WRMSR).rcx(LSTAR | upper).rax(0x1000 | upper).rdx(upper);
    assert_eq!(write.run().msr(LSTAR as u32), 0x1000);
}

#[test]
fn extended_control_register() {
    const OSXSAVE: u64 = 1 << 18;
    const XSETBV: &[u8] = &[0x0f, 0x01, 0xd1];
    const XGETBV: &[u8] = &[0x0f, 0x01, 0xd0];
    let set = |index, value| {
        let set = program(Mode::Kernel, XSETBV).rcx(index).rax(value);
        set.system(|s| s.cr4 |= OSXSAVE).run().end
    };
    assert_eq!(program(Mode::Kernel, XSETBV).rax(1).run().end, UNDEFINED, "without OSXSAVE");
    assert_eq!(program(Mode::User, XGETBV).run().end, UNDEFINED);
    assert_eq!(set(0, 3), End::Done);
    assert_eq!(set(0, 0), PROTECTION, "x87 is always there");
    assert_eq!(set(0, 5), PROTECTION, "AVX without SSE");
    assert_eq!(set(0, 1 << 40 | 3), End::Done, "RDX is 0 here");
    assert_eq!(set(1, 3), PROTECTION);
    let user = program(Mode::User, XSETBV).rax(3).system(|s| s.cr4 |= OSXSAVE).run().end;
    assert_eq!(user, PROTECTION);
    let get = program(Mode::User, XGETBV).rcx(7).system(|s| s.cr4 |= OSXSAVE).run().end;
    assert_eq!(get, PROTECTION);
}
