//! KVM's structures to and from the neutral state.

use guise_engine::state::{
    EventKind, EventState, MSRS, PendingEvent, RegisterState, RunState, SegmentState, SystemState,
    TableState, VcpuState, means_nothing,
};
use guise_engine::{EngineError, xsave};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW,
    KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI, Msrs, kvm_debugregs, kvm_dtable,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcr,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

use crate::failed;
use crate::lapic::{self, OneShot};

/// What KVM_GET_XSAVE fills: enough for AVX-512 and protection keys.
const XSAVE_SIZE: usize = 4096;

pub fn save(fd: &VcpuFd, index: u32, timer: OneShot) -> Result<VcpuState, EngineError> {
    // First, because KVM takes an INIT or a start-up IPI under way here.
    let run = fd.get_mp_state().map_err(failed("cannot read a vCPU's run state"))?;
    let regs = fd.get_regs().map_err(failed("cannot read a vCPU's registers"))?;
    let sregs = fd.get_sregs().map_err(failed("cannot read a vCPU's system registers"))?;
    let xcrs = fd.get_xcrs().map_err(failed("cannot read XCR0"))?;
    let debug = fd.get_debug_regs().map_err(failed("cannot read debug registers"))?;
    let events = fd.get_vcpu_events().map_err(failed("cannot read pending events"))?;
    let fpu = fd.get_xsave().map_err(failed("cannot read the FPU's state"))?;
    let lapic = fd.get_lapic().map_err(failed(lapic::CANNOT_READ))?;
    let (lapic, lapic_timer_ns) = lapic::neutral(&lapic, timer);
    Ok(VcpuState {
        version: VcpuState::VERSION,
        index,
        run: run_state(run),
        registers: registers(&regs),
        system: system(&sregs, &xcrs, &debug),
        events: event_state(&events),
        xsave: neutral_xsave(&fpu, &xcrs),
        msrs: read_msrs(fd)?,
        lapic,
        lapic_timer_ns,
    })
}

/// The result is what KVM's local APIC cannot hold.
pub fn load(fd: &VcpuFd, index: u32, state: &VcpuState) -> Result<OneShot, EngineError> {
    if state.version != VcpuState::VERSION {
        return Err(EngineError::State(format!(
            "a vCPU's state has version {}, this Guise reads {}",
            state.version,
            VcpuState::VERSION
        )));
    }
    if state.index != index {
        return Err(EngineError::State(format!(
            "the state of vCPU {} was given to vCPU {index}",
            state.index
        )));
    }
    // The APIC base decides how the APIC page is read, XCR0 how the XSAVE area is, and
    // events and the run state must not be overwritten by what sets them as an effect.
    fd.set_sregs(&kvm_system(&state.system, &state.msrs))
        .map_err(failed("cannot load system registers"))?;
    fd.set_regs(&kvm_registers(&state.registers)).map_err(failed("cannot load registers"))?;
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: state.system.xcr0, ..Default::default() };
    fd.set_xcrs(&xcrs).map_err(failed("cannot load XCR0"))?;
    let fpu = kvm_xsave_area(&state.xsave)?;
    // SAFETY: no extended component (AMX) is enabled for guests, so KVM reads no more
    // than the structure's 4096 bytes.
    unsafe { fd.set_xsave(&fpu) }.map_err(failed("cannot load the FPU's state"))?;
    let debug = kvm_debugregs {
        db: state.system.dr,
        dr6: state.system.dr6,
        dr7: state.system.dr7,
        ..Default::default()
    };
    fd.set_debug_regs(&debug).map_err(failed("cannot load debug registers"))?;
    let (lapic, timer) = lapic::for_kvm(&state.lapic, state.lapic_timer_ns)?;
    fd.set_lapic(&lapic).map_err(failed("cannot load the local APIC"))?;
    write_msrs(fd, &state.msrs)?;
    fd.set_mp_state(kvm_run_state(state.run)?).map_err(failed("cannot load the run state"))?;
    fd.set_vcpu_events(&kvm_events(&state.events)).map_err(failed("cannot load pending events"))?;
    Ok(timer)
}

/// KVM marks components that the host has and the guest has not enabled. They are in their
/// initial state, and no other engine needs to know of them; but PKRU can be in use without
/// being enabled for XSAVE.
fn neutral_xsave(fpu: &kvm_xsave, xcrs: &kvm_xcrs) -> Vec<u8> {
    const PRESENT: std::ops::Range<usize> = xsave::HEADER..xsave::HEADER + 8;
    const PKRU: usize = xsave::COMPONENTS[4].offset;
    let mut area: Vec<u8> = fpu.region.iter().flat_map(|word| word.to_le_bytes()).collect();
    let in_use = area[PKRU..PKRU + 4] != [0; 4];
    let keys = if in_use { xsave::PKRU } else { 0 };
    let enabled = xcr0(xcrs) | xsave::X87 | xsave::SSE | keys;
    for (present, enabled) in area[PRESENT].iter_mut().zip(enabled.to_le_bytes()) {
        *present &= enabled;
    }
    area
}

fn xcr0(xcrs: &kvm_xcrs) -> u64 {
    xcrs.xcrs[..(xcrs.nr_xcrs as usize).min(xcrs.xcrs.len())]
        .iter()
        .find(|xcr| xcr.xcr == 0)
        .map_or(1, |xcr| xcr.value)
}

fn registers(regs: &kvm_regs) -> RegisterState {
    RegisterState {
        gpr: [
            regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi,
            regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ],
        rip: regs.rip,
        rflags: regs.rflags,
    }
}

fn kvm_registers(state: &RegisterState) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gpr;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: state.rip,
        rflags: state.rflags,
    }
}

fn segment(from: &kvm_segment) -> SegmentState {
    let bits = [
        (from.type_, 0),
        (from.s, 4),
        (from.dpl, 5),
        (from.present, 7),
        (from.avl, 12),
        (from.l, 13),
        (from.db, 14),
        (from.g, 15),
        (from.unusable, 16),
    ];
    SegmentState {
        selector: from.selector,
        base: from.base,
        limit: from.limit,
        access: bits.iter().fold(0, |access, &(value, at)| access | u32::from(value) << at),
    }
}

fn kvm_segment(from: &SegmentState) -> kvm_segment {
    let bit = |at: u32, mask: u32| (from.access >> at & mask) as u8;
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: bit(0, 0xf),
        s: bit(4, 1),
        dpl: bit(5, 3),
        present: bit(7, 1),
        avl: bit(12, 1),
        l: bit(13, 1),
        db: bit(14, 1),
        g: bit(15, 1),
        unusable: bit(16, 1),
        padding: 0,
    }
}

fn table(from: &kvm_dtable) -> TableState {
    TableState { base: from.base, limit: from.limit }
}

fn kvm_table(from: &TableState) -> kvm_dtable {
    kvm_dtable { base: from.base, limit: from.limit, padding: [0; 3] }
}

fn system(sregs: &kvm_sregs, xcrs: &kvm_xcrs, debug: &kvm_debugregs) -> SystemState {
    SystemState {
        es: segment(&sregs.es),
        cs: segment(&sregs.cs),
        ss: segment(&sregs.ss),
        ds: segment(&sregs.ds),
        fs: segment(&sregs.fs),
        gs: segment(&sregs.gs),
        ldtr: segment(&sregs.ldt),
        tr: segment(&sregs.tr),
        gdtr: table(&sregs.gdt),
        idtr: table(&sregs.idt),
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
        xcr0: xcr0(xcrs),
        dr: debug.db,
        dr6: debug.dr6,
        dr7: debug.dr7,
    }
}

fn kvm_system(state: &SystemState, msrs: &[(u32, u64)]) -> kvm_sregs {
    const IA32_APIC_BASE: u32 = 0x1b;
    const AT_RESET: u64 = 0xfee0_0800;
    kvm_sregs {
        cs: kvm_segment(&state.cs),
        ds: kvm_segment(&state.ds),
        es: kvm_segment(&state.es),
        fs: kvm_segment(&state.fs),
        gs: kvm_segment(&state.gs),
        ss: kvm_segment(&state.ss),
        tr: kvm_segment(&state.tr),
        ldt: kvm_segment(&state.ldtr),
        gdt: kvm_table(&state.gdtr),
        idt: kvm_table(&state.idtr),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: state.cr8,
        efer: state.efer,
        apic_base: msrs
            .iter()
            .find(|(number, _)| *number == IA32_APIC_BASE)
            .map_or(AT_RESET, |&(_, value)| value),
        interrupt_bitmap: [0; 4],
    }
}

fn event_state(events: &kvm_vcpu_events) -> EventState {
    let exception = &events.exception;
    let interrupt = &events.interrupt;
    let injecting = if exception.injected != 0 || exception.pending != 0 {
        Some(PendingEvent {
            // 3 and 4 come from INT3 and INTO, whose saved RIP is the next instruction's.
            kind: if matches!(exception.nr, 3 | 4) {
                EventKind::SoftwareException
            } else {
                EventKind::HardwareException
            },
            vector: exception.nr,
            error_code: (exception.has_error_code != 0).then_some(exception.error_code),
            instruction_length: 0,
        })
    } else if interrupt.injected != 0 {
        Some(PendingEvent {
            kind: if interrupt.soft != 0 {
                EventKind::SoftwareInterrupt
            } else {
                EventKind::ExternalInterrupt
            },
            vector: interrupt.nr,
            error_code: None,
            instruction_length: 0,
        })
    } else if events.nmi.injected != 0 {
        Some(PendingEvent {
            kind: EventKind::Nmi,
            vector: 2,
            error_code: None,
            instruction_length: 0,
        })
    } else {
        None
    };
    EventState {
        injecting,
        nmi_pending: events.nmi.pending != 0,
        nmi_blocked: events.nmi.masked != 0,
        sti_shadow: u32::from(interrupt.shadow) & KVM_X86_SHADOW_INT_STI != 0,
        mov_ss_shadow: u32::from(interrupt.shadow) & KVM_X86_SHADOW_INT_MOV_SS != 0,
        pending_debug: 0,
    }
}

fn kvm_events(state: &EventState) -> kvm_vcpu_events {
    let mut events = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    if let Some(event) = state.injecting {
        match event.kind {
            EventKind::HardwareException | EventKind::SoftwareException => {
                events.exception.injected = 1;
                events.exception.nr = event.vector;
                events.exception.has_error_code = event.error_code.is_some() as u8;
                events.exception.error_code = event.error_code.unwrap_or(0);
            }
            EventKind::ExternalInterrupt | EventKind::SoftwareInterrupt => {
                events.interrupt.injected = 1;
                events.interrupt.nr = event.vector;
                events.interrupt.soft = (event.kind == EventKind::SoftwareInterrupt) as u8;
            }
            EventKind::Nmi => events.nmi.injected = 1,
        }
    }
    events.nmi.pending = state.nmi_pending as u8;
    events.nmi.masked = state.nmi_blocked as u8;
    let sti = if state.sti_shadow { KVM_X86_SHADOW_INT_STI } else { 0 };
    let mov_ss = if state.mov_ss_shadow { KVM_X86_SHADOW_INT_MOV_SS } else { 0 };
    events.interrupt.shadow = (sti | mov_ss) as u8;
    events
}

fn run_state(state: kvm_mp_state) -> RunState {
    match state.mp_state {
        KVM_MP_STATE_HALTED => RunState::Halted,
        KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => RunState::WaitForSipi,
        _ => RunState::Running,
    }
}

fn kvm_run_state(state: RunState) -> Result<kvm_mp_state, EngineError> {
    let mp_state = match state {
        RunState::Running => KVM_MP_STATE_RUNNABLE,
        RunState::Halted => KVM_MP_STATE_HALTED,
        // Not "uninitialized": that one waits for an INIT before the start-up IPI.
        RunState::WaitForSipi => KVM_MP_STATE_INIT_RECEIVED,
        RunState::Shutdown => {
            return Err(EngineError::State("the vCPU has shut down".to_owned()));
        }
    };
    Ok(kvm_mp_state { mp_state })
}

fn kvm_xsave_area(bytes: &[u8]) -> Result<kvm_xsave, EngineError> {
    if bytes.len() > XSAVE_SIZE {
        let excess = "the FPU's state has components that KVM is not asked for here";
        return Err(EngineError::State(excess.to_owned()));
    }
    let mut area = kvm_xsave::default();
    for (word, piece) in area.region.iter_mut().zip(bytes.chunks(4)) {
        let mut whole = [0; 4];
        whole[..piece.len()].copy_from_slice(piece);
        *word = u32::from_le_bytes(whole);
    }
    Ok(area)
}

/// Those of [`MSRS`] that this KVM and this CPU model have: KVM stops at the first
/// that it does not know, so each is asked for by itself.
fn read_msrs(fd: &VcpuFd) -> Result<Vec<(u32, u64)>, EngineError> {
    let mut found = Vec::with_capacity(MSRS.len());
    for &index in MSRS {
        let mut msrs = list(&[(index, 0)]);
        let read = fd.get_msrs(&mut msrs).map_err(failed("cannot read an MSR"))?;
        if read == 1 {
            found.push((index, msrs.as_slice()[0].data));
        }
    }
    Ok(found)
}

/// KVM refuses some MSRs when the model does not have the feature.
fn write_msrs(fd: &VcpuFd, msrs: &[(u32, u64)]) -> Result<(), EngineError> {
    for &wanted in msrs {
        let written = fd.set_msrs(&list(&[wanted])).map_err(failed("cannot load an MSR"))?;
        if written != 1 && !means_nothing(wanted.0, wanted.1) {
            let (index, value) = wanted;
            return Err(EngineError::State(format!(
                "KVM refuses the value {value:#x} for MSR {index:#x}"
            )));
        }
    }
    Ok(())
}

fn list(entries: &[(u32, u64)]) -> Msrs {
    let entries: Vec<kvm_msr_entry> = entries
        .iter()
        .map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() })
        .collect();
    Msrs::from_entries(&entries).expect("a short list fits")
}
