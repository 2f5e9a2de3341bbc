//! Programs in user mode and what the kernel sees of them: entries from 32-bit code
//! while everything of the kernel's lies in the upper half, and single steps.
//!
//! The kernel is a handler for each vector that tells its number through a port and
//! returns; each time the state and the frame on the kernel's stack are looked at.

mod port_board;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use guise_engine::memory::vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};
use guise_engine::state::SegmentState;
use guise_engine::{CpuModel, Engine as _, Exit, GuestRegion, MemorySlot, Vcpu, Vm, VmConfig};
use guise_engine_soft::{SoftEngine, Tier};
use port_board::PortBoard;

const MEMORY: usize = 1 << 20;
/// All memory, for the kernel only, and for the user. Nothing else is mapped.
const KERNEL: u64 = 0xffff_8000_0000_0000;
const USER: u64 = 0x40_0000;

// Places in memory.
const TABLES: u64 = 0x1000;
const IDT: u64 = 0x10_000;
const GDT: u64 = 0x11_000;
const TSS: u64 = 0x12_000;
const HANDLERS: u64 = 0x13_000;
const SYSCALL: u64 = 0x14_000;
const STACK_TOP: u64 = 0x16_000;
const CODE: u64 = 0x30_000;
const DATA: u64 = 0x40_000;
const USER_STACK: u64 = 0x50_000;

const DEBUG: u8 = 1;
const BREAKPOINT: u8 = 3;
const CALL: u8 = 0x80;
/// `out 0xf0, al`: the program is over.
const DONE: u8 = 0xf0;

const TF: u64 = 0x100;
const RF: u64 = 0x1_0000;
const IOPL: u64 = 0x3000;
const SFMASK: u32 = 0xc000_0084;

const USER_DATA: u16 = 0x1b;
const USER_CODE: u16 = 0x23;
const USER_CODE_32: u16 = 0x2b;
/// 64 bytes at `DATA`.
const SMALL: u64 = 0x33;

struct Program<'a> {
    code: &'a [u8],
    selector: u16,
    flags: u64,
    sfmask: u64,
    /// Offset of an instruction breakpoint.
    breakpoint: Option<u64>,
    /// RAX, RCX.
    registers: [u64; 2],
}

/// An entry into the kernel.
struct Stop {
    vector: u8,
    /// RIP in the frame, from the beginning of the program.
    offset: u64,
    cs: u64,
    /// RAX, RCX.
    registers: [u64; 2],
    cr2: u64,
}

fn write_memory(region: &GuestRegion, code: &[u8]) {
    let bytes = |at: u64, bytes: &[u8]| {
        region.write_slice(bytes, MemoryRegionAddress(at)).unwrap();
    };
    let word = |at: u64, value: u64| bytes(at, &value.to_le_bytes());
    // Present, writable, user; large pages.
    word(TABLES, (TABLES + 0x1000) | 7);
    word(TABLES + 256 * 8, (TABLES + 0x2000) | 3);
    word(TABLES + 0x1000, (TABLES + 0x3000) | 7);
    word(TABLES + 0x2000, (TABLES + 0x4000) | 3);
    word(TABLES + 0x3000 + 2 * 8, 0x87);
    word(TABLES + 0x4000, 0x83);
    for vector in 0..=u64::from(CALL) {
        let handler = KERNEL + HANDLERS + vector * 16;
        // Breakpoints and calls are for everybody; single steps have their own stack.
        let dpl = if [BREAKPOINT, CALL].map(u64::from).contains(&vector) { 3 } else { 0 };
        let ist = u64::from(vector == u64::from(DEBUG));
        let kind = (0x8e00 | dpl << 13 | ist) << 32;
        let gate = handler & 0xffff | 8 << 16 | kind | (handler >> 16 & 0xffff) << 48;
        word(IDT + vector * 16, gate);
        word(IDT + vector * 16 + 8, handler >> 32);
        bytes(HANDLERS + vector * 16, &[0xe6, vector as u8, 0x48, 0xcf]);
    }
    let small = 63 | (USER + DATA) << 16 | 0x0040_f200_0000_0000;
    let descriptors = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_fb00_0000_ffff,
        small,
    ];
    for (number, descriptor) in descriptors.into_iter().enumerate() {
        word(GDT + number as u64 * 8, descriptor);
    }
    word(TSS + 4, KERNEL + STACK_TOP);
    word(TSS + 0x24, KERNEL + STACK_TOP);
    bytes(SYSCALL, &[0x48, 0x0f, 0x07]);
    bytes(CODE, code);
    bytes(CODE + code.len() as u64, &[0xe6, DONE]);
    word(DATA, 0x5566_7788_1122_3344);
}

fn segment(selector: u16, access: u32) -> SegmentState {
    SegmentState { selector, base: 0, limit: u32::MAX, access }
}

/// Runs a program to its end or its first fault.
fn run(tier: Tier, program: &Program) -> Vec<Stop> {
    let config = VmConfig { vcpus: 1, model: CpuModel::Host, tsc_khz: None };
    let vm: Arc<dyn Vm> = SoftEngine::new(tier).create_vm(&config).unwrap();
    let region = Arc::new(GuestRegion::from_range(GuestAddress(0), MEMORY, None).unwrap());
    let size = MEMORY as u64;
    let slot =
        MemorySlot { guest_address: 0, region: region.clone(), offset: 0, size, read_only: false };
    vm.map_memory(0, slot).unwrap();
    write_memory(&region, program.code);
    let mut vcpu: Box<dyn Vcpu> = vm.create_vcpu(0).unwrap();
    let mut state = vcpu.state().unwrap();
    let system = &mut state.system;
    let code = if program.selector == USER_CODE { 0xa0fb } else { 0xc0fb };
    system.cs = segment(program.selector, code);
    for register in [&mut system.ss, &mut system.ds, &mut system.es, &mut system.fs, &mut system.gs]
    {
        *register = segment(USER_DATA, 0xc0f3);
    }
    system.tr = SegmentState { selector: 0x38, base: KERNEL + TSS, limit: 0x67, access: 0x8b };
    system.gdtr.base = KERNEL + GDT;
    system.gdtr.limit = 0x37;
    system.idtr.base = KERNEL + IDT;
    system.idtr.limit = (u16::from(CALL) + 1) * 16 - 1;
    // PE, ET, NE, WP, PG; PAE; SCE, LME, LMA, NXE.
    system.cr0 = 0x8001_0031;
    system.cr3 = TABLES;
    system.cr4 = 0x20;
    system.efer = 0xd01;
    if let Some(offset) = program.breakpoint {
        system.dr[0] = USER + CODE + offset;
        system.dr7 = 0x402;
    }
    for (number, value) in &mut state.msrs {
        match *number {
            0xc000_0080 => *value = 0xd01,
            0xc000_0081 => *value = 8 << 32 | 0x13 << 48,
            0xc000_0082 => *value = KERNEL + SYSCALL,
            SFMASK => *value = program.sfmask,
            _ => {}
        }
    }
    state.registers.gpr = [0; 16];
    [state.registers.gpr[0], state.registers.gpr[1]] = program.registers;
    state.registers.gpr[4] = USER + USER_STACK;
    state.registers.gpr[6] = USER + DATA;
    state.registers.gpr[7] = USER + DATA;
    state.registers.rip = USER + CODE;
    state.registers.rflags = program.flags | IOPL | 2;
    vcpu.set_state(&state).unwrap();
    let board = PortBoard::default();
    let _ = board.vcpu.set(vcpu.handle());
    let mut stops = Vec::new();
    while stops.len() < 40 {
        assert_eq!(vcpu.run(&board).unwrap(), Exit::Interrupted);
        let vector = board.port.load(Ordering::Relaxed) as u8;
        if vector == DONE {
            break;
        }
        let after = vcpu.state().unwrap();
        let frame = |n: u64| -> u64 {
            region.read_obj(MemoryRegionAddress(STACK_TOP - 40 + n * 8)).unwrap()
        };
        if vector == DEBUG && program.breakpoint.is_some() {
            assert_eq!(after.system.dr6 & 0x400f, 1);
            // As a debugger goes on.
            region.write_obj(frame(2) | RF, MemoryRegionAddress(STACK_TOP - 24)).unwrap();
        } else if vector == DEBUG {
            assert_eq!(after.system.dr6 & 0x400f, 0x4000);
        }
        assert_ne!(after.system.cs.selector & 3, 3);
        stops.push(Stop {
            vector,
            offset: frame(0).wrapping_sub(USER + CODE),
            cs: frame(1),
            registers: [after.registers.gpr[0], after.registers.gpr[1]],
            cr2: after.system.cr2,
        });
        if ![DEBUG, BREAKPOINT, CALL].contains(&vector) {
            break;
        }
    }
    stops
}

const TIERS: [Tier; 2] = [Tier::Interpreter, Tier::Translator];

#[test]
fn the_kernel_is_entered_from_32_bit_code() {
    const PAGE_FAULT: u8 = 14;
    const PROTECTION: u8 = 13;
    const LIMIT: u64 = 63;
    const CS: u16 = USER_CODE_32;
    let gs = [0xb8, SMALL as u8, 0, 0, 0, 0x8e, 0xe8];
    let with_gs = |code: &[u8]| [&gs, code].concat();
    let far = [&[0xea][..], &(USER as u32 + CODE as u32 + 7).to_le_bytes(), &[0x23, 0, 0xcd, 0x80]];
    // Name, code, entries (vector, offset, CS), RAX and RCX at the last.
    type Case<'a> = (&'a str, Vec<u8>, &'a [(u8, u64, u16)], Option<[u64; 2]>);
    let cases: &[Case] = &[
        ("int 0x80", vec![0xcd, 0x80], &[(CALL, 2, CS)], None),
        ("return and again", vec![0xcd, 0x80, 0xcd, 0x80], &[(CALL, 2, CS), (CALL, 4, CS)], None),
        ("int3", vec![0xcc], &[(BREAKPOINT, 1, CS)], None),
        ("ud2", vec![0x0f, 0x0b], &[(6, 0, CS)], None),
        ("hlt", vec![0xf4], &[(PROTECTION, 0, CS)], None),
        ("mov eax, [0x100000]", vec![0xa1, 0, 0, 0x10, 0], &[(PAGE_FAULT, 0, CS)], None),
        (
            "mov eax, gs:[0]",
            with_gs(&[0x65, 0xa1, 0, 0, 0, 0, 0xcd, 0x80]),
            &[(CALL, 15, CS)],
            Some([0x1122_3344, 0]),
        ),
        (
            "mov eax, gs:[61]",
            with_gs(&[0x65, 0xa1, 61, 0, 0, 0]),
            &[(PROTECTION, 7, CS)],
            Some([SMALL, 0]),
        ),
        (
            "lsl ecx, eax",
            with_gs(&[0x0f, 0x03, 0xc8, 0xcd, 0x80]),
            &[(CALL, 12, CS)],
            Some([SMALL, LIMIT]),
        ),
        ("to 64-bit code", far.concat(), &[(CALL, 9, USER_CODE)], None),
    ];
    for (name, code, entries, registers) in cases {
        for tier in TIERS {
            let program = Program {
                code,
                selector: CS,
                flags: 0,
                sfmask: 0,
                breakpoint: None,
                registers: [0, 0],
            };
            let stops = run(tier, &program);
            let seen: Vec<_> = stops.iter().map(|s| (s.vector, s.offset, s.cs as u16)).collect();
            assert_eq!(seen, *entries, "{name}, {tier:?}");
            let last = stops.last().unwrap();
            if let Some(registers) = registers {
                assert_eq!(last.registers, *registers, "{name}, {tier:?}");
            }
            if last.vector == PAGE_FAULT {
                assert_eq!(last.cr2, 0x10_0000, "{name}, {tier:?}");
            }
        }
    }
}

#[test]
fn single_steps_stop_where_the_processor_stops() {
    const KERNEL_ENTRY: u64 = (KERNEL + SYSCALL).wrapping_sub(USER + CODE);
    // Name, code, TF at the beginning, SFMASK, RAX and RCX, entries (vector, offset).
    type Case<'a> = (&'a str, &'a [u8], bool, u64, [u64; 2], &'a [(u8, u64)]);
    let repeated: &[(u8, u64)] = &[(DEBUG, 0), (DEBUG, 0), (DEBUG, 2), (DEBUG, 3)];
    let cases: &[Case] = &[
        ("nop", &[0x90, 0x90], true, 0, [0, 0], &[(DEBUG, 1), (DEBUG, 2)]),
        ("not traced", &[0x90, 0x90], false, 0, [0, 0], &[]),
        ("rep stosb", &[0xf3, 0xaa, 0x90], true, 0, [0, 3], repeated),
        ("rep movsb", &[0xf3, 0xa4, 0x90], true, 0, [0, 3], repeated),
        ("rep lodsb", &[0xf3, 0xac, 0x90], true, 0, [0, 3], repeated),
        ("repe cmpsb", &[0xf3, 0xa6, 0x90], true, 0, [0, 3], repeated),
        ("repne scasb", &[0xf2, 0xae, 0x90], true, 0, [0, 3], repeated),
        ("rep stosb of nothing", &[0xf3, 0xaa], true, 0, [0, 0], &[(DEBUG, 2)]),
        (
            "int 0x80",
            &[0xcd, 0x80, 0x90, 0x90],
            true,
            0,
            [0, 0],
            &[(CALL, 2), (DEBUG, 3), (DEBUG, 4)],
        ),
        ("int3", &[0xcc, 0x90], true, 0, [0, 0], &[(BREAKPOINT, 1), (DEBUG, 2)]),
        ("syscall, TF masked", &[0x0f, 0x05, 0x90], true, TF, [0, 0], &[(DEBUG, 2), (DEBUG, 3)]),
        (
            "syscall, TF kept",
            &[0x0f, 0x05, 0x90],
            true,
            0,
            [0, 0],
            &[(DEBUG, KERNEL_ENTRY), (DEBUG, 2), (DEBUG, 3)],
        ),
        (
            "popf sets TF",
            &[0x9c, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d, 0x90, 0x90],
            false,
            0,
            [0, 0],
            &[(DEBUG, 10), (DEBUG, 11)],
        ),
        (
            "popf clears TF",
            &[0x9c, 0x81, 0x24, 0x24, 0xff, 0xfe, 0xff, 0xff, 0x9d, 0x90],
            true,
            0,
            [0, 0],
            &[(DEBUG, 1), (DEBUG, 8), (DEBUG, 9)],
        ),
        (
            "mov ss, eax",
            &[0x8e, 0xd0, 0x90, 0x90],
            true,
            0,
            [USER_DATA as u64, 0],
            &[(DEBUG, 3), (DEBUG, 4)],
        ),
        (
            "mov ss, eax; int 0x80",
            &[0x8e, 0xd0, 0xcd, 0x80, 0x90],
            true,
            0,
            [USER_DATA as u64, 0],
            &[(CALL, 4), (DEBUG, 5)],
        ),
        ("ud2", &[0x90, 0x0f, 0x0b], true, 0, [0, 0], &[(DEBUG, 1), (6, 1)]),
    ];
    for &(name, code, traced, sfmask, registers, entries) in cases {
        for tier in TIERS {
            let flags = if traced { TF } else { 0 };
            let program =
                Program { code, selector: USER_CODE, flags, sfmask, breakpoint: None, registers };
            let stops = run(tier, &program);
            let seen: Vec<_> = stops.iter().map(|s| (s.vector, s.offset)).collect();
            assert_eq!(seen, entries, "{name}, {tier:?}");
        }
    }
}

#[test]
fn the_resume_flag_passes_a_breakpoint_once() {
    // Name, code, where the breakpoint is, RCX, entries.
    type Case<'a> = (&'a str, &'a [u8], u64, u64, &'a [(u8, u64)]);
    let cases: &[Case] = &[
        ("nop", &[0x90, 0x90, 0x90], 1, 0, &[(DEBUG, 1)]),
        ("a loop", &[0x90, 0xe2, 0xfd], 0, 3, &[(DEBUG, 0); 3]),
        ("rep stosb", &[0x90, 0xf3, 0xaa, 0x90], 1, 3, &[(DEBUG, 1)]),
        ("int 0x80", &[0xcd, 0x80, 0x90], 0, 0, &[(DEBUG, 0), (CALL, 2)]),
        ("ud2", &[0x90, 0x0f, 0x0b], 1, 0, &[(DEBUG, 1), (6, 1)]),
    ];
    for &(name, code, breakpoint, rcx, entries) in cases {
        for tier in TIERS {
            let program = Program {
                code,
                selector: USER_CODE,
                flags: 0,
                sfmask: 0,
                breakpoint: Some(breakpoint),
                registers: [0, rcx],
            };
            let stops = run(tier, &program);
            let seen: Vec<_> = stops.iter().map(|s| (s.vector, s.offset)).collect();
            assert_eq!(seen, entries, "{name}, {tier:?}");
        }
    }
}
