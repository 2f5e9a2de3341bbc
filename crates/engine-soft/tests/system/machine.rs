//! The machine that the tables run on: one vCPU, flat memory, a descriptor of every
//! kind, and a handler for each vector that tells its number through a port.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use guise_engine::memory::vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};
use guise_engine::state::{SegmentState, SystemState};
use guise_engine::{CpuModel, Engine as _, Exit, GuestRegion, MemorySlot, VcpuState, Vm, VmConfig};
use guise_engine_soft::{SoftEngine, Tier};

use crate::port_board::PortBoard;

const MEMORY: usize = 2 << 20;

// Places, which are the same linear and physical.
const PAGE_TABLES: u64 = 0x1000;
const IDT: u64 = 0x1_0000;
pub const GDT: u64 = 0x1_1000;
pub const TSS: u64 = 0x1_2000;
const HANDLERS: u64 = 0x1_3000;
/// Where system calls, call gates and returns lead to: `out 0xf1, al`.
pub const TARGET: u64 = 0x1_4000;
/// Tops of the stacks of level 0, of interrupts with a stack of their own, and of the
/// program itself.
pub const STACK_0: u64 = 0x1_6000;
pub const STACK_IST: u64 = 0x1_7000;
pub const STACK: u64 = 0x1_8000;
/// Linear addresses of a device, which reads as ones, and of memory behind it.
pub const DEVICE: u64 = 0x20_0000;
pub const BEHIND_DEVICE: u64 = 0x40_0000;
pub const UNMAPPED: u64 = 0x60_0000;
pub const CODE: u64 = 0x3_0000;
/// RSI and RDI point here.
pub const DATA: u64 = 0x4_0000;

/// The program came to its end, or to [`TARGET`].
const DONE_PORT: u8 = 0xf0;
const TARGET_PORT: u8 = 0xf1;

// Selectors.
pub const CODE_64: u16 = 0x08;
pub const DATA_0: u16 = 0x10;
pub const DATA_3: u16 = 0x18 | 3;
pub const USER_64: u16 = 0x20 | 3;
pub const USER_32: u16 = 0x28 | 3;
pub const CODE_32: u16 = 0x30;
pub const TSS_FREE: u16 = 0x38;
pub const LDT: u16 = 0x48;
pub const ABSENT_DATA: u16 = 0x58;
pub const READ_ONLY: u16 = 0x60;
pub const CONFORMING: u16 = 0x68;
pub const EXECUTE_ONLY: u16 = 0x70;
pub const CALL_GATE: u16 = 0x78;
pub const TSS_BUSY: u16 = 0x88;
pub const TSS_ABSENT: u16 = 0x98;
pub const TSS_FAR: u16 = 0xa8;
pub const GATE_ABSENT: u16 = 0xb8;
pub const LDT_ABSENT: u16 = 0xc8;
pub const ABSENT_CODE: u16 = 0xd8;
/// A page of data that a user may write, from [`DATA`].
pub const SMALL: u16 = 0xe0;
pub const BEYOND: u16 = 0x1f8;
const GDT_LIMIT: u16 = 0xe7;

// Vectors whose gates are special; the others are interrupt gates of level 0.
pub const USER_GATE: u8 = 0x20;
pub const ABSENT_GATE: u8 = 0x21;
pub const TASK_GATE: u8 = 0x22;
pub const NULL_GATE: u8 = 0x23;
pub const DATA_GATE: u8 = 0x24;
pub const WRONG_SIZE_GATE: u8 = 0x25;
pub const FAR_GATE: u8 = 0x26;
pub const NO_GATE: u8 = 0x27;
pub const IST_GATE: u8 = 0x28;
pub const TRAP_GATE: u8 = 0x29;
const VECTORS: u64 = 0x30;

pub const IF: u64 = 0x200;
const IOPL_3: u64 = 0x3000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit code at level 0.
    Kernel,
    /// 64-bit code at level 3.
    User,
    /// 32-bit code at level 3 in long mode.
    Compatibility,
    /// Protected mode without paging.
    Protected,
    ProtectedUser,
}

impl Mode {
    pub fn is_long(self) -> bool {
        !matches!(self, Mode::Protected | Mode::ProtectedUser)
    }

    fn is_user(self) -> bool {
        !matches!(self, Mode::Kernel | Mode::Protected)
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Done,
    /// At [`TARGET`].
    Target,
    /// An exception without an error code, or an interrupt.
    Vector(u8),
    Fault(u8, u32),
    Shutdown,
}

pub const UNDEFINED: End = End::Vector(6);
pub const DEVICE_MISSING: End = End::Vector(7);
pub const PROTECTION: End = End::Fault(13, 0);

/// #GP with a selector, or with a vector's place in the IDT.
pub fn protection(selector: u16) -> End {
    End::Fault(13, u32::from(selector & !3))
}

pub fn absent(selector: u16) -> End {
    End::Fault(11, u32::from(selector & !3))
}

pub fn protection_of_vector(vector: u8) -> End {
    End::Fault(13, u32::from(vector) * 8 + 2)
}

/// The machine after a program.
pub struct After {
    pub end: End,
    pub state: VcpuState,
    region: Arc<GuestRegion>,
}

impl After {
    pub fn gpr(&self, number: usize) -> u64 {
        self.state.registers.gpr[number]
    }

    pub fn has_flag(&self, flag: u64) -> bool {
        self.state.registers.rflags & flag != 0
    }

    pub fn word(&self, at: u64) -> u64 {
        self.region.read_obj(MemoryRegionAddress(at)).expect("it is in memory")
    }

    pub fn msr(&self, number: u32) -> u64 {
        let found = self.state.msrs.iter().find(|(other, _)| *other == number);
        found.map_or(0, |(_, value)| *value)
    }
}

type Setup<'a> = Box<dyn FnOnce(&mut VcpuState) + 'a>;

/// A program and what is special about its start.
pub struct Program<'a> {
    mode: Mode,
    code: &'a [u8],
    data: Vec<(u64, u64)>,
    setup: Vec<Setup<'a>>,
    msi: Option<guise_engine::Msi>,
}

/// What stands at [`DATA`] is 0 unless the program says otherwise; RAX, RCX and RDX too.
pub fn program(mode: Mode, code: &[u8]) -> Program<'_> {
    Program { mode, code, data: Vec::new(), setup: Vec::new(), msi: None }
}

impl<'a> Program<'a> {
    pub fn rax(self, value: u64) -> Self {
        self.state(move |state| state.registers.gpr[0] = value)
    }
    pub fn rcx(self, value: u64) -> Self {
        self.state(move |state| state.registers.gpr[1] = value)
    }
    pub fn rdx(self, value: u64) -> Self {
        self.state(move |state| state.registers.gpr[2] = value)
    }
    pub fn flags(self, value: u64) -> Self {
        self.state(move |state| state.registers.rflags = value | 2)
    }
    pub fn msr(self, number: u32, value: u64) -> Self {
        self.state(move |state| set_msr(state, number, value))
    }
    pub fn system(self, change: impl FnOnce(&mut SystemState) + 'a) -> Self {
        self.state(|state| change(&mut state.system))
    }
    pub fn state(mut self, change: impl FnOnce(&mut VcpuState) + 'a) -> Self {
        self.setup.push(Box::new(change));
        self
    }
    /// Quad words at [`DATA`].
    pub fn data(self, words: &[u64]) -> Self {
        self.words(DATA, words)
    }
    /// Quad words on the stack, the first at its top.
    pub fn stack(self, words: &[u64]) -> Self {
        self.words(STACK, words)
    }
    pub fn words(mut self, at: u64, words: &[u64]) -> Self {
        self.data.extend((0..).step_by(8).zip(words).map(|(offset, word)| (at + offset, *word)));
        self
    }
    /// A message that is sent before the program runs.
    pub fn msi(mut self, address: u64, data: u32) -> Self {
        self.msi = Some(guise_engine::Msi { address, data });
        self
    }

    /// Runs it on the interpreter, which is what the translator leaves all of this to.
    pub fn run(self) -> After {
        let config = VmConfig { vcpus: 1, model: CpuModel::Host, tsc_khz: None };
        let vm: Arc<dyn Vm> = SoftEngine::new(Tier::Interpreter).create_vm(&config).unwrap();
        let region = Arc::new(GuestRegion::from_range(GuestAddress(0), MEMORY, None).unwrap());
        let slot = MemorySlot {
            guest_address: 0,
            region: region.clone(),
            offset: 0,
            size: MEMORY as u64,
            read_only: false,
        };
        vm.map_memory(0, slot).unwrap();
        write_memory(&region, self.mode, self.code);
        for (at, word) in self.data {
            region.write_obj(word, MemoryRegionAddress(at)).unwrap();
        }
        let mut vcpu = vm.create_vcpu(0).unwrap();
        let mut state = vcpu.state().unwrap();
        begin(&mut state, self.mode);
        for setup in self.setup {
            setup(&mut state);
        }
        vcpu.set_state(&state).unwrap();
        if let Some(msi) = self.msi {
            vm.signal_msi(msi).unwrap();
        }
        let board = PortBoard::default();
        let _ = board.vcpu.set(vcpu.handle());
        let exit = vcpu.run(&board).unwrap();
        let state = vcpu.state().unwrap();
        let mut after = After { end: End::Shutdown, state, region };
        if exit == Exit::Shutdown {
            return after;
        }
        assert_eq!(exit, Exit::Interrupted);
        after.end = match board.port.load(Ordering::Relaxed) as u8 {
            DONE_PORT => End::Done,
            TARGET_PORT => End::Target,
            vector @ (8 | 10..=14 | 17) => End::Fault(vector, after.word(after.gpr(4)) as u32),
            vector => End::Vector(vector),
        };
        after
    }
}

pub fn set_msr(state: &mut VcpuState, number: u32, value: u64) {
    let found = state.msrs.iter_mut().find(|(other, _)| *other == number);
    found.expect("it is saved").1 = value;
}

fn segment(selector: u16, access: u32) -> SegmentState {
    SegmentState { selector, base: 0, limit: u32::MAX, access }
}

fn begin(state: &mut VcpuState, mode: Mode) {
    let system = &mut state.system;
    system.cs = match mode {
        Mode::Kernel => segment(CODE_64, 0xa09b),
        Mode::User => segment(USER_64, 0xa0fb),
        Mode::Compatibility | Mode::ProtectedUser => segment(USER_32, 0xc0fb),
        Mode::Protected => segment(CODE_32, 0xc09b),
    };
    let data = if mode.is_user() { segment(DATA_3, 0xc0f3) } else { segment(DATA_0, 0xc093) };
    for register in [&mut system.ss, &mut system.ds, &mut system.es, &mut system.fs, &mut system.gs]
    {
        *register = data;
    }
    system.tr = SegmentState { selector: TSS_BUSY, base: TSS, limit: 0x67, access: 0x8b };
    (system.gdtr.base, system.gdtr.limit) = (GDT, GDT_LIMIT);
    let gate = if mode.is_long() { 16 } else { 8 };
    (system.idtr.base, system.idtr.limit) = (IDT, (VECTORS * gate - 1) as u16);
    // PE, ET, NE, WP; PG, PAE, OSFXSR; SCE, LME, LMA, NXE.
    system.cr0 = 0x1_0031;
    system.cr4 = 0x200;
    system.efer = 1;
    if mode.is_long() {
        system.cr0 |= 1 << 31;
        system.cr3 = PAGE_TABLES;
        system.cr4 |= 0x20;
        system.efer = 0xd01;
    }
    let efer = system.efer;
    let registers = &mut state.registers;
    registers.gpr = [0; 16];
    registers.gpr[4] = STACK;
    registers.gpr[6] = DATA;
    registers.gpr[7] = DATA;
    registers.rip = CODE;
    registers.rflags = if mode.is_user() { IOPL_3 | 2 } else { 2 };
    let code = if mode.is_long() { CODE_64 } else { CODE_32 };
    for (number, value) in [
        (0xc000_0080, efer),
        (0xc000_0081, u64::from(code) << 32 | 0x13 << 48),
        (0xc000_0082, TARGET),
        (0x174, u64::from(code)),
        (0x175, STACK_0),
        (0x176, TARGET),
    ] {
        set_msr(state, number, value);
    }
}

fn write_memory(region: &GuestRegion, mode: Mode, code: &[u8]) {
    let bytes = |at: u64, bytes: &[u8]| {
        region.write_slice(bytes, MemoryRegionAddress(at)).unwrap();
    };
    let word = |at: u64, value: u64| bytes(at, &value.to_le_bytes());
    // The first 2 MiB for everybody.
    word(PAGE_TABLES, (PAGE_TABLES + 0x1000) | 7);
    word(PAGE_TABLES + 0x1000, (PAGE_TABLES + 0x2000) | 7);
    word(PAGE_TABLES + 0x2000, 0x87);
    // Then a device's, then the same memory once more, then nothing.
    word(PAGE_TABLES + 0x2008, 0x20_0087);
    word(PAGE_TABLES + 0x2010, 0x87);
    for (selector, [low, high]) in descriptors(mode) {
        word(GDT + u64::from(selector & !7), low);
        if mode.is_long() && low >> 44 & 1 == 0 {
            word(GDT + u64::from(selector & !7) + 8, high);
        }
    }
    for vector in 0..VECTORS {
        let [low, high] = gate(mode, vector as u8);
        if mode.is_long() {
            word(IDT + vector * 16, low);
            word(IDT + vector * 16 + 8, high);
        } else {
            word(IDT + vector * 8, low);
        }
        bytes(HANDLERS + vector * 8, &[0xe6, vector as u8, 0xf4]);
    }
    bytes(TARGET, &[0xe6, TARGET_PORT, 0xf4]);
    // Ports that the TSS lets users have: none, beyond its limit.
    word(TSS + 0x60, 0x68 << 48);
    if mode.is_long() {
        word(TSS + 4, STACK_0);
        word(TSS + 0x24, STACK_IST);
    } else {
        word(TSS + 4, STACK_0 | u64::from(DATA_0) << 32);
    }
    bytes(CODE, code);
    bytes(CODE + code.len() as u64, &[0xe6, DONE_PORT, 0xf4]);
}

/// A descriptor of the attributes in bits 40 to 47 and 52 to 55.
fn descriptor(base: u64, limit: u64, attributes: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (attributes & 0xff) << 40
        | (limit >> 16 & 0xf) << 48
        | (attributes >> 8 & 0xf) << 52
        | (base >> 24 & 0xff) << 56
}

fn descriptors(mode: Mode) -> Vec<(u16, [u64; 2])> {
    let flat = |attributes| [descriptor(0, 0xf_ffff, attributes), 0];
    let system = |base, limit, attributes| [descriptor(base, limit, attributes), base >> 32];
    let gate_code = if mode.is_long() { CODE_64 } else { CODE_32 };
    let call = |attributes: u64| {
        let low = TARGET & 0xffff | u64::from(gate_code) << 16 | attributes << 40;
        [low | (TARGET >> 16 & 0xffff) << 48, 0]
    };
    vec![
        (CODE_64, flat(0xa9b)),
        (DATA_0, flat(0xc93)),
        (DATA_3, flat(0xcf3)),
        (USER_64, flat(0xafb)),
        (USER_32, flat(0xcfb)),
        (CODE_32, flat(0xc9b)),
        (TSS_FREE, system(TSS, 0x67, 0x89)),
        (LDT, system(TSS, 0xff, 0x82)),
        (ABSENT_DATA, flat(0xc13)),
        (READ_ONLY, flat(0xcf1)),
        (CONFORMING, flat(if mode.is_long() { 0xa9f } else { 0xc9f })),
        (EXECUTE_ONLY, flat(0xcf9)),
        (CALL_GATE, call(0xec)),
        (TSS_BUSY, system(TSS, 0x67, 0x8b)),
        (TSS_ABSENT, system(TSS, 0x67, 0x09)),
        (TSS_FAR, system(1 << 60, 0x67, 0x89)),
        (GATE_ABSENT, call(0x6c)),
        (LDT_ABSENT, system(TSS, 0xff, 0x02)),
        (ABSENT_CODE, flat(0xa1b)),
        (SMALL, [descriptor(DATA, 0xfff, 0x4f3), 0]),
    ]
}

fn gate(mode: Mode, vector: u8) -> [u64; 2] {
    let handler = HANDLERS + u64::from(vector) * 8;
    let (code, wrong) = if mode.is_long() { (CODE_64, CODE_32) } else { (CODE_32, USER_32) };
    let (selector, kind, ist, high) = match vector {
        3 | 4 | 5 | USER_GATE => (code, 0xee, 0, 0),
        ABSENT_GATE => (code, 0x6e, 0, 0),
        TASK_GATE => (TSS_FREE, 0xe5, 0, 0),
        NULL_GATE => (0, 0xee, 0, 0),
        DATA_GATE => (DATA_0, 0xee, 0, 0),
        WRONG_SIZE_GATE => (wrong, 0xee, 0, 0),
        FAR_GATE => (code, 0xee, 0, 0x8000),
        NO_GATE => (code, 0xec, 0, 0),
        IST_GATE => (code, 0xee, u64::from(mode.is_long()), 0),
        TRAP_GATE => (code, 0xef, 0, 0),
        _ => (code, 0x8e, 0, 0),
    };
    let low = handler & 0xffff | u64::from(selector) << 16 | ist << 32 | kind << 40;
    [low | (handler >> 16 & 0xffff) << 48, high]
}
