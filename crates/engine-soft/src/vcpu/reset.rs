//! Registers after power-up, INIT, and a start-up IPI.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use guise_engine::EngineError;
use guise_engine::state::RunState;

use crate::cpu::mode::bits::*;
use crate::cpu::segment::access;
use crate::cpu::{Counters, Cpu, Events, Mode, Msrs, Raised};
use crate::fpu;
use crate::host::stub::Stubs;
use crate::memory::spaces::Spaces;
use crate::state::{CS, CpuState, Segment, Table, Vector, X87};
use crate::vm::shared::{VcpuShared, VmShared};

/// Room for stubs: about as many as there are instruction forms in use.
const STUB_BYTES: usize = 4 << 20;

fn empty_state() -> CpuState {
    CpuState {
        gpr: [0; 16],
        rip: 0,
        rflags: FIXED,
        attention: AtomicU32::new(0),
        mxcsr: 0,
        bank: std::ptr::null_mut(),
        host_rsp: 0,
        host_mxcsr: 0,
        generated: Default::default(),
        scratch: [0; 8],
        trap: Default::default(),
        seg: [Segment::default(); 6],
        kernel_gs_base: 0,
        ldtr: Segment::default(),
        tr: Segment::default(),
        gdtr: Table::default(),
        idtr: Table::default(),
        cr0: 0,
        cr2: 0,
        cr3: 0,
        cr4: 0,
        efer: 0,
        xcr0: 1,
        dr: [0; 4],
        dr6: 0,
        dr7: 0,
        opmask: [0; 8],
        pkru: 0,
        x87: X87([0; 512]),
        vector: [Vector([0; 64]); 32],
        zero: 0,
    }
}

impl Cpu {
    /// A vCPU after power-up.
    pub fn new(shared: Arc<VmShared>, me: Arc<VcpuShared>) -> Result<Box<Cpu>, EngineError> {
        let stubs = Stubs::new(*shared.model.features(), STUB_BYTES).map_err(|source| {
            EngineError::Host { doing: "making room for generated code", source }
        })?;
        let index = me.index;
        let mut cpu = Box::new(Cpu {
            state: empty_state(),
            raised: Raised::Nothing,
            mode: Mode::REAL,
            context: 0,
            cache: Default::default(),
            spaces: Spaces::default(),
            fetch: Default::default(),
            pdpte: [0; 4],
            map: shared.memory_map(),
            retired: Vec::new(),
            shared,
            me,
            index,
            events: Events::default(),
            run: RunState::Running,
            msr: Msrs::default(),
            counters: Counters::default(),
            translated: Default::default(),
            journal: None,
            stubs,
            debug: Default::default(),
            platform: None,
        });
        cpu.msr.cr4_known = cpu.shared.model.cr4_known();
        fpu::reset(&mut cpu.state);
        cpu.reset_registers();
        if index != 0 {
            cpu.run = RunState::WaitForSipi;
        }
        cpu.apic_moved();
        Ok(cpu)
    }

    /// What both power-up and INIT set.
    fn reset_registers(&mut self) {
        let state = &mut self.state;
        state.gpr = [0; 16];
        // The processor's signature.
        state.gpr[crate::state::RDX] = 0x600;
        state.rip = 0xfff0;
        state.rflags = FIXED;
        state.cr0 = state.cr0 & (CR0_CD | CR0_NW) | CR0_ET;
        if state.cr0 & CR0_CD == 0 {
            state.cr0 |= CR0_CD | CR0_NW;
        }
        state.cr2 = 0;
        state.cr3 = 0;
        state.cr4 = 0;
        state.efer = 0;
        state.dr = [0; 4];
        state.dr6 = crate::cpu::control::DR6_FIXED;
        state.dr7 = crate::cpu::control::DR7_FIXED;
        let data = access::PRESENT | access::S | access::RW | access::ACCESSED;
        let segment = Segment { selector: 0, base: 0, limit: 0xffff, access: data };
        state.seg = [segment; 6];
        state.seg[CS] =
            Segment { selector: 0xf000, base: 0xffff_0000, access: data | access::CODE, ..segment };
        state.gdtr = Table { base: 0, limit: 0xffff };
        state.idtr = Table { base: 0, limit: 0xffff };
        state.ldtr = Segment { access: access::PRESENT | 2, ..segment };
        state.tr = Segment { access: access::PRESENT | 11, ..segment };
        self.events = Events::default();
        self.raised = Raised::Nothing;
        self.spaces.switch(0);
        self.debug_registers_changed();
        self.update_mode();
    }

    /// INIT: the first processor starts again, the others wait for a start-up IPI.
    pub fn init(&mut self) {
        self.reset_registers();
        self.apic_moved();
        self.run = if self.index == 0 { RunState::Running } else { RunState::WaitForSipi };
    }

    /// A start-up IPI with this page.
    pub fn start_up(&mut self, page: u8) {
        let code = &mut self.state.seg[CS];
        code.selector = (page as u16) << 8;
        code.base = (page as u64) << 12;
        self.state.rip = 0;
        self.run = RunState::Running;
        self.update_mode();
    }
}
