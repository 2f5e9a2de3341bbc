//! Faults by control registers, and images checked against the host's instructions.

use iced_x86::{Decoder, DecoderOptions, Instruction};

use super::execute::{Mode, execute};
use super::*;
use crate::access::Access;
use crate::exception::Exception;
use crate::state::CpuState;

struct Bench {
    state: Box<CpuState>,
    memory: Vec<u8>,
}

impl Access for Bench {
    type Fault = Exception;

    fn state(&mut self) -> &mut CpuState {
        &mut self.state
    }

    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Exception> {
        let start = address as usize;
        let source = self.memory.get(start..start + bytes.len());
        bytes.copy_from_slice(source.ok_or(Exception::page_fault(address, 0))?);
        Ok(())
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Exception> {
        let start = address as usize;
        let target = self.memory.get_mut(start..start + bytes.len());
        target.ok_or(Exception::page_fault(address, 2))?.copy_from_slice(bytes);
        Ok(())
    }

    fn raise(&mut self, exception: Exception) -> Exception {
        exception
    }

    fn privilege(&mut self) -> u8 {
        0
    }
}

const LONG: Mode = Mode { long: true, real: false };

impl Bench {
    fn new() -> Bench {
        // SAFETY: zeros are values for all fields; the one pointer is not followed.
        let mut state: Box<CpuState> = unsafe { Box::new_zeroed().assume_init() };
        reset(&mut state);
        finit(&mut state.x87);
        state.cr0 = CR0_PE;
        state.cr4 = CR4_OSFXSR | CR4_OSXSAVE;
        state.xcr0 = 0xe7;
        state.rflags = 2;
        Bench { state, memory: vec![0; 4096] }
    }

    fn fill(&mut self) {
        for (number, vector) in self.state.vector.iter_mut().enumerate() {
            vector.0 = std::array::from_fn(|i| (number * 64 + i) as u8 | 1);
        }
        self.state.opmask = std::array::from_fn(|i| 0x0101_0101 << i);
        self.state.mxcsr = 0x9fc0;
        self.state.x87.0[4] = 0x81;
        self.state.x87.0[32..42].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 0x88, 0xff, 0x3f]);
    }

    fn run(&mut self, bytes: &[u8], address: u64, mode: Mode) -> Result<(), Exception> {
        let bits = if mode.long {
            64
        } else if mode.real {
            16
        } else {
            32
        };
        let instruction: Instruction = Decoder::new(bits, bytes, DecoderOptions::NONE).decode();
        assert!(execute::handles(instruction.mnemonic()), "{:?}", instruction.mnemonic());
        execute(self, &instruction, address, mode, 0xe7)
    }
}

#[test]
fn control_registers_decide_what_is_available() {
    let mut bench = Bench::new();
    let state = &mut *bench.state;
    for unit in [Unit::None, Unit::X87, Unit::Mmx, Unit::Sse, Unit::Avx, Unit::Avx512, Unit::Vex] {
        assert_eq!(check(unit, state), Ok(()), "{unit:?}");
    }
    state.cr0 = CR0_PE | CR0_TS;
    for unit in [Unit::X87, Unit::Mmx, Unit::Sse, Unit::SseMmx, Unit::Avx, Unit::Avx512] {
        assert_eq!(check(unit, state), Err(NOT_AVAILABLE), "{unit:?}");
    }
    assert_eq!(check_wait(state), Ok(()));
    state.cr0 |= CR0_MP;
    assert_eq!(check_wait(state), Err(NOT_AVAILABLE));
    state.cr0 = CR0_PE | CR0_EM;
    assert_eq!(check(Unit::X87, state), Err(NOT_AVAILABLE));
    assert_eq!(check(Unit::Mmx, state), Err(UNDEFINED));
    assert_eq!(check(Unit::Sse, state), Err(UNDEFINED));
    state.cr0 = CR0_PE;
    state.xcr0 = 7;
    assert_eq!(check(Unit::Avx, state), Ok(()));
    assert_eq!(check(Unit::Avx512, state), Err(UNDEFINED));
    state.xcr0 = 3;
    assert_eq!(check(Unit::Avx, state), Err(UNDEFINED));
    state.cr4 = 0;
    assert_eq!(check(Unit::Sse, state), Err(UNDEFINED));
    state.cr0 = 0;
    assert_eq!(check(Unit::Vex, state), Err(UNDEFINED));
}

#[test]
fn xsave_and_xrstor_are_inverse_in_every_form() {
    // xsave64, xsaveopt64, xsavec64, xsaves64 [rax]
    for save in [
        &[0x48, 0x0f, 0xae, 0x20][..],
        &[0x48, 0x0f, 0xae, 0x30],
        &[0x48, 0x0f, 0xc7, 0x20],
        &[0x48, 0x0f, 0xc7, 0x28],
    ] {
        let mut bench = Bench::new();
        bench.fill();
        bench.state.gpr[0] = !0;
        bench.state.gpr[2] = !0;
        bench.run(save, 64, LONG).unwrap();
        let mut other = Bench::new();
        other.memory = bench.memory.clone();
        other.state.gpr = bench.state.gpr;
        // xrstor64, or xrstors64 where that is the other half
        let restore: &[u8] =
            if save[2] == 0xc7 { &[0x48, 0x0f, 0xc7, 0x18] } else { &[0x48, 0x0f, 0xae, 0x28] };
        other.run(restore, 64, LONG).unwrap();
        assert!(other.state.vector == bench.state.vector);
        assert_eq!(other.state.opmask, bench.state.opmask);
        assert_eq!(other.state.mxcsr, bench.state.mxcsr);
        assert!(other.state.x87 == bench.state.x87);
    }
}

#[test]
fn xsave_writes_what_the_host_would() {
    if guise_engine::extensions::host_xcr0() & 7 != 7 {
        println!("not run: this host has no XSAVE with AVX");
        return;
    }
    let mut bench = Bench::new();
    bench.fill();
    bench.state.xcr0 = 7;
    bench.state.gpr[0] = 7;
    bench.run(&[0x48, 0x0f, 0xae, 0x20], 64, LONG).unwrap();
    #[repr(align(64))]
    struct Area([u8; 4096]);
    let mut area = Area([0; 4096]);
    area.0[..2048].copy_from_slice(&bench.memory[64..2112]);
    let mut back = Area([0; 4096]);
    // SAFETY: both areas are aligned and long enough for components 0 to 2; the
    // registers are given up.
    unsafe {
        std::arch::asm!(
            "xrstor64 [{area}]",
            "xsave64 [{back}]",
            "fninit",
            "mov dword ptr [{area}], 0x1f80",
            "ldmxcsr [{area}]",
            "vzeroupper",
            area = in(reg) area.0.as_mut_ptr(),
            back = in(reg) back.0.as_mut_ptr(),
            inout("eax") 7 => _,
            inout("edx") 0 => _,
            clobber_abi("sysv64"),
        );
    }
    // Which bits of MXCSR there are is the processor's own; AMD's have one more.
    back.0[28..32].copy_from_slice(&bench.memory[64 + 28..64 + 32]);
    assert_eq!(back.0[..832], bench.memory[64..64 + 832]);
}

#[test]
fn xrstor_refuses_what_the_manual_says() {
    let restore = [0x48, 0x0f, 0xae, 0x28];
    let header = 64 + 512;
    let general_protection = Err(Exception::general_protection(0));
    let mut bench = Bench::new();
    bench.state.gpr[0] = 7;
    assert_eq!(bench.run(&restore, 65, LONG), general_protection);
    bench.state.cr4 = 0;
    assert_eq!(bench.run(&restore, 64, LONG), Err(UNDEFINED));
    bench.state.cr4 = CR4_OSXSAVE;
    assert_eq!(bench.run(&restore, 64, LONG), Ok(()));
    for (place, value) in [(0, 0x08), (8, 1), (16, 1), (15, 0x80)] {
        bench.memory.fill(0);
        bench.memory[header + place] = value;
        // A compacted area (the last) is refused by this alone: bit 3 is not enabled.
        if place == 15 {
            bench.memory[header + 8] = 8;
        }
        assert_eq!(bench.run(&restore, 64, LONG), general_protection, "byte {place}");
    }
    bench.memory.fill(0);
    bench.memory[64 + 27] = 1;
    assert_eq!(bench.run(&restore, 64, LONG), general_protection);
    // xrstors takes the compacted layout only.
    bench.memory.fill(0);
    assert_eq!(bench.run(&[0x48, 0x0f, 0xc7, 0x18], 64, LONG), general_protection);
}

#[test]
fn the_x87_environment_is_the_hosts() {
    let mut bench = Bench::new();
    bench.state.x87.0[0..2].copy_from_slice(&0x037eu16.to_le_bytes());
    bench.state.x87.0[2..4].copy_from_slice(&0x3800u16.to_le_bytes());
    bench.state.x87.0[4] = 0x80;
    bench.state.x87.0[40..42].copy_from_slice(&[0xff, 0x3f]);
    bench.state.x87.0[39] = 0x80;
    // fnsave [eax] in 32-bit code
    let mut ours = Bench::new();
    ours.state.x87 = bench.state.x87;
    ours.run(&[0xdd, 0x30], 0, Mode { long: false, real: false }).unwrap();
    let mut image = bench.state.x87;
    let mut theirs = [0u8; 108];
    // SAFETY: loads and stores within the two buffers, and leaves x87 initialized.
    unsafe {
        std::arch::asm!(
            "fxrstor64 [{image}]",
            "fnsave [{theirs}]",
            image = in(reg) image.0.as_mut_ptr(),
            theirs = in(reg) theirs.as_mut_ptr(),
            clobber_abi("sysv64"),
        );
    }
    assert_eq!(ours.memory[..108], theirs);
    assert_eq!(ours.state.x87.control(), 0x37f);
    // And back, through all four layouts.
    for mode in [Mode { long: false, real: false }, Mode { long: false, real: true }] {
        for wide in [false, true] {
            let real_or_wide = mode.real != wide;
            let prefix: &[u8] = if real_or_wide { &[] } else { &[0x66] };
            let mut copy = Bench::new();
            copy.state.x87 = bench.state.x87;
            copy.run(&[prefix, &[0xdd, 0x30]].concat(), 0, mode).unwrap();
            assert_eq!(copy.state.x87.status(), 0);
            copy.run(&[prefix, &[0xdd, 0x20]].concat(), 0, mode).unwrap();
            assert!(copy.state.x87 == bench.state.x87, "{mode:?} {wide}");
        }
    }
}

#[test]
fn xcr0_takes_consistent_values() {
    for (value, valid) in
        [(1, true), (3, true), (7, true), (0xe7, true), (0, false), (2, false), (5, false)]
    {
        assert_eq!(execute::is_valid_xcr0(value, 0xe7), valid, "{value:#x}");
    }
    assert!(!execute::is_valid_xcr0(0xe3, 0xe7));
    assert!(!execute::is_valid_xcr0(0x67, 0xe7));
    assert!(!execute::is_valid_xcr0(7, 3));
}

#[test]
fn neutral_state_comes_back_and_bad_state_is_refused() {
    let mut bench = Bench::new();
    bench.fill();
    let area = neutral::store(&bench.state);
    assert_eq!(area.len(), 2688);
    let mut other = Bench::new();
    neutral::load(&mut other.state, &area).unwrap();
    assert!(other.state.vector == bench.state.vector && other.state.x87 == bench.state.x87);
    assert_eq!(other.state.mxcsr, bench.state.mxcsr);
    assert!(neutral::load(&mut other.state, &area[..600]).is_err());
    assert!(neutral::load(&mut other.state, &[]).is_err());
    let mut bad = area.clone();
    bad[standard::HEADER + 1] = 2;
    assert!(neutral::load(&mut other.state, &bad).is_err());
    bench.state.xcr0 = 7;
    assert_eq!(neutral::store(&bench.state).len(), 832);
}
