//! A vCPU to and from the neutral state.

use guise_engine::state::{
    EventState, RegisterState, RunState, SegmentState, SystemState, TableState, means_nothing,
};
use guise_engine::{EngineError, VcpuState};

use crate::apic::SavedApic;
use crate::cpu::msr::{SAVED, number};
use crate::cpu::{Cpu, Events};
use crate::fpu::neutral;
use crate::paravirt::Paravirt;
use crate::state::{CS, DS, ES, FS, GS, SS, Segment, Table};
use crate::vm::shared::attention;

fn segment_out(segment: &Segment) -> SegmentState {
    SegmentState {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        access: segment.access,
    }
}

fn segment_in(segment: &SegmentState) -> Segment {
    Segment {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        access: segment.access,
    }
}

fn table_out(table: &Table) -> TableState {
    TableState { base: table.base, limit: table.limit }
}

fn table_in(table: &TableState) -> Table {
    Table { base: table.base, limit: table.limit }
}

impl Cpu {
    pub fn save(&mut self) -> Result<VcpuState, EngineError> {
        // The neutral state has no place for an INIT, a start-up IPI or a kick under way.
        self.take_signals();
        let bits = self.take_attention();
        self.want(bits & !attention::UNHALT);
        if self.run == RunState::Halted && std::mem::take(&mut self.events.unhalted) {
            self.run = RunState::Running;
        }
        let apic = self.apic().save(self.shared.time.now());
        let mut msrs = Vec::new();
        let stateful: Vec<u32> = self.shared.model.stateful_msrs().collect();
        for msr in SAVED.into_iter().chain(stateful).chain(Paravirt::stateful_msrs()) {
            // The deadline is that of the APIC as it was saved: the timer goes on meanwhile.
            let value = match msr {
                number::TSC_DEADLINE => Ok(apic.tsc_deadline),
                msr => self.read_msr(msr),
            };
            if let Ok(value) = value {
                msrs.push((msr, value));
            }
        }
        self.raised = crate::cpu::Raised::Nothing;
        msrs.sort_unstable();
        let state = &self.state;
        Ok(VcpuState {
            version: VcpuState::VERSION,
            index: self.index,
            run: self.run,
            registers: RegisterState { gpr: state.gpr, rip: state.rip, rflags: state.rflags },
            system: SystemState {
                es: segment_out(&state.seg[ES]),
                cs: segment_out(&state.seg[CS]),
                ss: segment_out(&state.seg[SS]),
                ds: segment_out(&state.seg[DS]),
                fs: segment_out(&state.seg[FS]),
                gs: segment_out(&state.seg[GS]),
                ldtr: segment_out(&state.ldtr),
                tr: segment_out(&state.tr),
                gdtr: table_out(&state.gdtr),
                idtr: table_out(&state.idtr),
                cr0: state.cr0,
                cr2: state.cr2,
                cr3: state.cr3,
                cr4: state.cr4,
                cr8: self.apic_cr8(),
                efer: state.efer,
                xcr0: state.xcr0,
                dr: state.dr,
                dr6: state.dr6,
                dr7: state.dr7,
            },
            events: EventState {
                injecting: None,
                nmi_pending: apic.nmi,
                nmi_blocked: self.events.nmi_blocked,
                sti_shadow: self.events.sti_shadow,
                mov_ss_shadow: self.events.mov_ss_shadow,
                pending_debug: self.events.pending_debug,
            },
            xsave: neutral::store(state),
            msrs,
            lapic: apic.page,
            lapic_timer_ns: apic.timer_ns,
        })
    }

    pub fn load_state(&mut self, from: &VcpuState) -> Result<(), EngineError> {
        if from.version != VcpuState::VERSION {
            return Err(EngineError::State(format!("unknown version {}", from.version)));
        }
        let system = &from.system;
        if system.cr4 & !self.msr.cr4_known != 0 {
            return Err(EngineError::State(format!(
                "CR4 is {:#x}, of which this CPU model has {:#x}",
                system.cr4, self.msr.cr4_known
            )));
        }
        let state = &mut self.state;
        state.gpr = from.registers.gpr;
        state.rip = from.registers.rip;
        state.rflags = from.registers.rflags | crate::cpu::mode::bits::FIXED;
        for (place, segment) in [
            (ES, &system.es),
            (CS, &system.cs),
            (SS, &system.ss),
            (DS, &system.ds),
            (FS, &system.fs),
            (GS, &system.gs),
        ] {
            state.seg[place] = segment_in(segment);
        }
        state.ldtr = segment_in(&system.ldtr);
        state.tr = segment_in(&system.tr);
        state.gdtr = table_in(&system.gdtr);
        state.idtr = table_in(&system.idtr);
        state.cr0 = system.cr0;
        state.cr2 = system.cr2;
        state.cr3 = system.cr3;
        state.cr4 = system.cr4;
        state.efer = system.efer;
        state.dr = system.dr;
        state.dr6 = system.dr6;
        state.dr7 = system.dr7;
        state.xcr0 = system.xcr0;
        if !from.xsave.is_empty() {
            neutral::load(&mut self.state, &from.xsave)?;
        }
        self.run = from.run;
        self.events = Events {
            nmi_blocked: from.events.nmi_blocked,
            sti_shadow: from.events.sti_shadow,
            mov_ss_shadow: from.events.mov_ss_shadow,
            pending_debug: from.events.pending_debug,
            ..Events::default()
        };
        self.spaces.switch(0);
        self.flush_everything();
        if self.state.cr4 & crate::cpu::mode::bits::CR4_PCIDE != 0 {
            self.spaces.switch((self.state.cr3 & 0xfff) as u16);
        }
        self.update_mode();
        self.load_pae(from)?;
        self.load_msrs(from)?;
        self.load_apic(from)?;
        self.debug_registers_changed();
        self.want(!crate::vm::shared::attention::KICK);
        self.inject(from)
    }

    fn load_pae(&mut self, from: &VcpuState) -> Result<(), EngineError> {
        use crate::cpu::mode::bits::{CR0_PG, CR4_PAE};
        let pae = self.state.cr0 & CR0_PG != 0 && self.state.cr4 & CR4_PAE != 0 && !self.mode.long;
        if pae && self.load_pdptes(from.system.cr3).is_err() {
            return Err(EngineError::State("CR3 points to invalid PDPTEs".to_owned()));
        }
        Ok(())
    }

    fn load_msrs(&mut self, from: &VcpuState) -> Result<(), EngineError> {
        let shared = self.shared.clone();
        for &(msr, value) in &from.msrs {
            match msr {
                // EFER came with the system registers, the APIC's come with it.
                number::EFER | number::APIC_BASE | number::TSC_DEADLINE => {}
                number::TSC => {
                    self.set_tsc_offset(value.wrapping_sub(self.shared.time.tsc()));
                }
                number::TSC_ADJUST => self.msr.tsc_adjust = value,
                _ => {
                    let mut paravirt = std::mem::take(&mut self.msr.paravirt);
                    let restored = paravirt.restore_msr(msr, value, &shared.clock, self);
                    self.msr.paravirt = paravirt;
                    if restored.is_none()
                        && self.write_msr(msr, value).is_err()
                        && !means_nothing(msr, value)
                    {
                        return Err(EngineError::State(format!(
                            "MSR {msr:#x} cannot hold {value:#x} on this CPU model"
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    fn load_apic(&mut self, from: &VcpuState) -> Result<(), EngineError> {
        if from.lapic.is_empty() {
            return Ok(());
        }
        let msr = |wanted| from.msrs.iter().find(|(msr, _)| *msr == wanted).map(|(_, v)| *v);
        let deadline = msr(number::TSC_DEADLINE).unwrap_or(0);
        let saved = SavedApic {
            page: from.lapic.clone(),
            base: msr(number::APIC_BASE).unwrap_or(self.apic().base()),
            timer_ns: from.lapic_timer_ns,
            tsc_deadline: deadline,
            nmi: from.events.nmi_pending,
        };
        let at = self.when_tsc_is(deadline);
        self.apic()
            .load(&saved, self.shared.time.now(), at)
            .map_err(|error| EngineError::State(error.to_string()))?;
        self.apic_set_cr8(from.system.cr8);
        self.apic_moved();
        Ok(())
    }

    /// Delivers at once what another engine had begun to deliver.
    fn inject(&mut self, from: &VcpuState) -> Result<(), EngineError> {
        use crate::cpu::deliver::Event;
        use crate::exception::Exception;
        use guise_engine::state::EventKind;
        let Some(event) = from.events.injecting else { return Ok(()) };
        let event = match event.kind {
            EventKind::ExternalInterrupt | EventKind::Nmi => {
                Event::Interrupt { vector: event.vector }
            }
            EventKind::HardwareException => Event::Exception(Exception {
                vector: event.vector,
                error_code: event.error_code,
                address: self.state.cr2,
            }),
            EventKind::SoftwareInterrupt | EventKind::SoftwareException => Event::Software {
                vector: event.vector,
                return_to: self.state.rip.wrapping_add(event.instruction_length as u64),
                check_level: true,
            },
        };
        if self.deliver(event).is_err() {
            self.run = guise_engine::state::RunState::Shutdown;
        }
        Ok(())
    }
}
