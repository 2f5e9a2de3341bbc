//! The engine's side, whole: a virtual machine whose only vCPU runs the instruction in
//! user mode, under its own page tables, and tells through a port how it ended.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use guise_engine::extensions::host_xcr0;
use guise_engine::memory::vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};
use guise_engine::xsave::{COMPONENTS, MAX_SIZE};
use guise_engine::{
    CpuModel, Engine as _, Exit, GuestRegion, MemorySlot, Vcpu, VcpuState, Vm, VmConfig,
};
use guise_engine_soft::{SoftEngine, Tier};
use iced_x86::Instruction;

use crate::machine::{MEMORY_SIZE, Memory, State};
use crate::port_board::PortBoard;
use crate::{Engine, Outcome};

const MEMORY: usize = 1 << 20;
const TABLES: u64 = 0x1000;
/// Linear and physical addresses of what belongs to the system.
const IDT: u64 = 0x10_000;
const GDT: u64 = 0x11_000;
const TSS: u64 = 0x12_000;
const HANDLERS: u64 = 0x13_000;
const STACK_TOP: u64 = 0x15_000;
const CODE: u64 = 0x30_000;
const DATA: u64 = 0x40_000;

const DONE_PORT: u8 = 0xf0;
/// An exception's handler writes to this port plus the vector.
const FAULT_PORT: u8 = 0x40;

pub struct Guest {
    _vm: Arc<dyn Vm>,
    vcpu: Box<dyn Vcpu>,
    region: Arc<GuestRegion>,
    board: PortBoard,
    template: VcpuState,
    slot: u64,
    components: u64,
}

/// Writes page tables into guest memory.
struct Tables<'a> {
    region: &'a GuestRegion,
    next: u64,
}

impl Tables<'_> {
    fn entry(&self, address: u64) -> u64 {
        self.region.read_obj(MemoryRegionAddress(address)).unwrap()
    }

    fn map(&mut self, linear: u64, physical: u64, user: bool) {
        const PRESENT: u64 = 1;
        const WRITABLE: u64 = 2;
        const USER: u64 = 4;
        let mut table = TABLES;
        for level in (1..4).rev() {
            let place = table + (linear >> (12 + 9 * level) & 0x1ff) * 8;
            if self.entry(place) == 0 {
                let entry = self.next | PRESENT | WRITABLE | USER;
                self.region.write_obj(entry, MemoryRegionAddress(place)).unwrap();
                self.next += 0x1000;
            }
            table = self.entry(place) & !0xfff;
        }
        let place = table + (linear >> 12 & 0x1ff) * 8;
        let entry = physical | PRESENT | WRITABLE | if user { USER } else { 0 };
        self.region.write_obj(entry, MemoryRegionAddress(place)).unwrap();
    }
}

impl Guest {
    /// `slot` is where the host's instruction stands, `data` where its memory is.
    pub fn new(tier: Tier, slot: u64, data: u64) -> Guest {
        let config = VmConfig { vcpus: 1, model: CpuModel::Host, tsc_khz: None };
        let vm = SoftEngine::new(tier).create_vm(&config).unwrap();
        let region = GuestRegion::from_range(GuestAddress(0), MEMORY, None).unwrap();
        let region = Arc::new(region);
        let size = MEMORY as u64;
        let memory = MemorySlot {
            guest_address: 0,
            region: region.clone(),
            offset: 0,
            size,
            read_only: false,
        };
        vm.map_memory(0, memory).unwrap();
        let mut tables = Tables { region: &region, next: TABLES + 0x1000 };
        for page in (IDT..STACK_TOP).step_by(0x1000) {
            tables.map(page, page, false);
        }
        tables.map(slot & !0xfff, CODE, true);
        for page in (0..MEMORY_SIZE as u64).step_by(0x1000) {
            tables.map(data + page, DATA + page, true);
        }
        assert!(tables.next <= IDT);
        let write = |address: u64, bytes: &[u8]| {
            region.write_slice(bytes, MemoryRegionAddress(address)).unwrap();
        };
        for vector in 0..32u8 {
            let handler = HANDLERS + u64::from(vector) * 16;
            // An interrupt gate to code segment 8.
            let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
            write(IDT + u64::from(vector) * 16, &gate.to_le_bytes());
            write(handler, &[0xe6, FAULT_PORT + vector, 0xeb, 0xfe]);
        }
        write(GDT + 8, &0x00af_9b00_0000_ffffu64.to_le_bytes());
        write(TSS + 4, &STACK_TOP.to_le_bytes());
        let mut vcpu = vm.create_vcpu(0).unwrap();
        let mut template = vcpu.state().unwrap();
        let components = host_xcr0() & 0xe7;
        system(&mut template, components);
        let board = PortBoard::default();
        let _ = board.vcpu.set(vcpu.handle());
        Guest { _vm: vm, vcpu, region, board, template, slot, components }
    }

    fn read_u64(&self, address: u64) -> u64 {
        self.region.read_obj(MemoryRegionAddress(address)).unwrap()
    }
}

/// 64-bit user mode.
fn system(state: &mut VcpuState, components: u64) {
    let system = &mut state.system;
    for segment in [&mut system.ss, &mut system.ds, &mut system.es, &mut system.fs, &mut system.gs]
    {
        segment.selector = 0x1b;
        segment.base = 0;
        segment.limit = u32::MAX;
        segment.access = 0xc0f3;
    }
    system.cs = system.ss;
    system.cs.selector = 0x23;
    system.cs.access = 0xa0fb;
    system.tr.selector = 0x28;
    system.tr.base = TSS;
    system.tr.limit = 0x67;
    system.tr.access = 0x8b;
    system.gdtr.base = GDT;
    system.gdtr.limit = 0xf;
    system.idtr.base = IDT;
    system.idtr.limit = 32 * 16 - 1;
    // PE, MP, ET, NE, WP, PG; PAE, OSFXSR, OSXMMEXCPT, OSXSAVE; SCE, LME, LMA, NXE.
    system.cr0 = 0x8001_0033;
    system.cr3 = TABLES;
    system.cr4 = 0x4_0620;
    system.efer = 0xd01;
    system.xcr0 = components;
    if let Some(msr) = state.msrs.iter_mut().find(|(number, _)| *number == 0xc000_0080) {
        msr.1 = system.efer;
    }
}

/// All registers as an XSAVE area.
fn area(state: &State, components: u64) -> Vec<u8> {
    let mut area = vec![0; MAX_SIZE];
    area[..160].copy_from_slice(&state.x87);
    area[24..28].copy_from_slice(&state.mxcsr.to_le_bytes());
    area[512..520].copy_from_slice(&components.to_le_bytes());
    for (number, vector) in state.vector.iter().enumerate() {
        for (at, bytes) in pieces(number, components) {
            area[at..at + bytes.len()].copy_from_slice(&vector[bytes]);
        }
    }
    if components >> 5 & 1 != 0 {
        for (number, mask) in state.opmask.iter().enumerate() {
            let at = COMPONENTS[1].offset + number * 8;
            area[at..at + 8].copy_from_slice(&mask.to_le_bytes());
        }
    }
    area
}

/// Where a vector's bytes are in the area.
fn pieces(number: usize, components: u64) -> Vec<(usize, std::ops::Range<usize>)> {
    let mut pieces = Vec::with_capacity(3);
    if number < 16 {
        pieces.push((160 + number * 16, 0..16));
        for (component, size, bytes) in [(0, 16, 16..32), (2, 32, 32..64)] {
            let component = COMPONENTS[component];
            if components & component.bit() != 0 {
                pieces.push((component.offset + number * size, bytes));
            }
        }
    } else if components & COMPONENTS[3].bit() != 0 {
        pieces.push((COMPONENTS[3].offset + (number - 16) * 64, 0..64));
    }
    pieces
}

fn from_area(area: &[u8], components: u64, state: &mut State) {
    state.x87.copy_from_slice(&area[..160]);
    state.mxcsr = u32::from_le_bytes(area[24..28].try_into().unwrap());
    for (number, vector) in state.vector.iter_mut().enumerate() {
        for (at, bytes) in pieces(number, components) {
            let length = bytes.len();
            vector[bytes].copy_from_slice(&area[at..at + length]);
        }
    }
    if components >> 5 & 1 != 0 {
        for (number, mask) in state.opmask.iter_mut().enumerate() {
            let at = COMPONENTS[1].offset + number * 8;
            *mask = u64::from_le_bytes(area[at..at + 8].try_into().unwrap());
        }
    }
}

impl Engine for Guest {
    fn set_instruction(&mut self, bytes: &[u8]) {
        let mut code = bytes.to_vec();
        code.extend([0xe6, DONE_PORT, 0xeb, 0xfe]);
        let place = CODE + (self.slot & 0xfff);
        self.region.write_slice(&code, MemoryRegionAddress(place)).unwrap();
    }

    fn run(
        &mut self,
        instruction: &Instruction,
        before: &State,
        _theirs: &Memory,
        ours: &mut Memory,
    ) -> (State, Outcome) {
        const IOPL: u64 = 0x3000;
        self.region.write_slice(ours.bytes(), MemoryRegionAddress(DATA)).unwrap();
        self.template.registers.gpr = before.gpr;
        self.template.registers.rflags = before.rflags & !0x200 | IOPL;
        self.template.registers.rip = self.slot;
        self.template.xsave = area(before, self.components);
        self.vcpu.set_state(&self.template).unwrap();
        self.board.port.store(0, Ordering::Relaxed);
        let exit = self.vcpu.run(&self.board).unwrap();
        assert_eq!(exit, Exit::Interrupted, "{instruction}");
        let after = self.vcpu.state().unwrap();
        let mut state = before.clone();
        state.gpr = after.registers.gpr;
        state.rflags = after.registers.rflags;
        from_area(&after.xsave, self.components, &mut state);
        self.region.read_slice(ours.bytes_mut(), MemoryRegionAddress(DATA)).unwrap();
        let port = self.board.port.load(Ordering::Relaxed) as u8;
        if port == DONE_PORT {
            return (state, Outcome::Done);
        }
        // What the processor pushed: SS, RSP, RFLAGS from the top.
        state.gpr[4] = self.read_u64(STACK_TOP - 16);
        state.rflags = self.read_u64(STACK_TOP - 24);
        (state, Outcome::Fault(port.wrapping_sub(FAULT_PORT)))
    }
}
