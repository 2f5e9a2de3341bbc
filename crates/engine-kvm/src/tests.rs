//! Small guests on the host's KVM.

use std::sync::Mutex;

use guise_engine::memory::vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};
use guise_engine::{CpuModel, Exit, GuestRegion, MemorySlot, Platform};

use super::*;

/// Collects what the guest writes to port 0xe9, and stops it on port 0xf4.
#[derive(Default)]
struct Board {
    output: Mutex<Vec<u8>>,
    stop: Mutex<Option<Arc<dyn guise_engine::VcpuHandle>>>,
}

impl Platform for Board {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(port as u8);
    }
    fn port_write(&self, port: u16, data: &[u8]) {
        match port {
            0xe9 => self.output.lock().unwrap().extend(data),
            _ => self.stop.lock().unwrap().as_ref().unwrap().kick(),
        }
    }
    fn memory_read(&self, address: u64, data: &mut [u8]) {
        data.fill((address >> 12) as u8);
    }
    fn memory_write(&self, _: u64, data: &[u8]) {
        self.output.lock().unwrap().extend(data);
    }
    fn acknowledge_interrupt(&self) -> Option<u8> {
        None
    }
    fn end_of_interrupt(&self, _: u8) {}
}

/// Runs real-mode code at 0x1000 until it writes to port 0xf4; none, said aloud,
/// where the host has no KVM.
fn run(code: &[u8]) -> Option<(Vec<u8>, Box<dyn guise_engine::Vcpu>)> {
    let engine = match KvmEngine::new() {
        Ok(engine) => engine,
        Err(error) => {
            eprintln!("not run: {error}");
            return None;
        }
    };
    let config = VmConfig { vcpus: 1, model: CpuModel::Host, tsc_khz: None };
    let vm = engine.create_vm(&config).unwrap();
    let region = GuestRegion::from_range(GuestAddress(0), 1 << 20, None).unwrap();
    region.write_slice(code, MemoryRegionAddress(0x1000)).unwrap();
    let region = Arc::new(region);
    let slot = MemorySlot { guest_address: 0, region, offset: 0, size: 1 << 20, read_only: false };
    vm.map_memory(0, slot).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let mut state = vcpu.state().unwrap();
    state.system.cs.base = 0;
    state.system.cs.selector = 0;
    state.registers.rip = 0x1000;
    state.registers.gpr[4] = 0x8000;
    vcpu.set_state(&state).unwrap();
    let board = Board::default();
    *board.stop.lock().unwrap() = Some(vcpu.handle());
    assert_eq!(vcpu.run(&board).unwrap(), Exit::Interrupted);
    let output = board.output.into_inner().unwrap();
    Some((output, vcpu))
}

#[test]
fn ports_and_device_memory_reach_the_platform() {
    // mov al, 'A'; out 0xe9, al; in al, 0x42; out 0xe9, al;
    // mov ax, 0xf000; mov ds, ax; mov al, [0xf123]  (0xff123: RAM, 0);
    // out 0xe9, al; mov ax, 0xffff; mov ds, ax; mov al, [0x1010] (0x101000: device);
    // mov [0x1011], al; out 0xf4, al
    let code = [
        0xb0, b'A', 0xe6, 0xe9, 0xe4, 0x42, 0xe6, 0xe9, 0xb8, 0x00, 0xf0, 0x8e, 0xd8, 0xa0, 0x23,
        0xf1, 0xe6, 0xe9, 0xb8, 0xff, 0xff, 0x8e, 0xd8, 0xa0, 0x10, 0x10, 0xa2, 0x11, 0x10, 0xe6,
        0xf4, 0xf4,
    ];
    if let Some((output, _)) = run(&code) {
        assert_eq!(output, [b'A', 0x42, 0, 0x01]);
    }
}

#[test]
fn a_string_of_ports_is_answered_one_width_at_a_time() {
    // xor ax, ax; mov es, ax; mov di, 0x2000; mov cx, 3; mov dx, 0x37; cld; rep insw;
    // mov ds, ax; mov si, 0x2000; mov cx, 3; mov dx, 0xe9; rep outsw; out 0xf4, al
    let code = [
        0x31, 0xc0, 0x8e, 0xc0, 0xbf, 0x00, 0x20, 0xb9, 0x03, 0x00, 0xba, 0x37, 0x00, 0xfc, 0xf3,
        0x6d, 0x8e, 0xd8, 0xbe, 0x00, 0x20, 0xb9, 0x03, 0x00, 0xba, 0xe9, 0x00, 0xf3, 0x6f, 0xe6,
        0xf4, 0xf4,
    ];
    if let Some((output, _)) = run(&code) {
        assert_eq!(output, [0x37; 6]);
    }
}

#[test]
fn state_survives_a_round_trip() {
    // mov ax, 0x1234; mov bx, 0x5678; out 0xf4, al; hlt
    let code = [0xb8, 0x34, 0x12, 0xbb, 0x78, 0x56, 0xe6, 0xf4, 0xf4];
    if let Some((_, mut vcpu)) = run(&code) {
        let state = vcpu.state().unwrap();
        assert_eq!(state.registers.gpr[0] & 0xffff, 0x1234);
        assert_eq!(state.registers.rip, 0x1008, "the access is finished, the halt is not begun");
        vcpu.set_state(&state).unwrap();
        let mut again = vcpu.state().unwrap();
        // Time goes on.
        let tsc = |msrs: &mut Vec<(u32, u64)>| msrs.retain(|(number, _)| *number != 0x10);
        let mut before = state;
        tsc(&mut before.msrs);
        tsc(&mut again.msrs);
        assert_eq!(before, again);
    }
}

#[test]
fn a_named_model_is_honoured_or_says_what_is_missing() {
    let engine = match KvmEngine::new() {
        Ok(engine) => engine,
        Err(error) => return eprintln!("not run: {error}"),
    };
    for model in CpuModel::ALL {
        let vm = engine.create_vm(&VmConfig { vcpus: 2, model, tsc_khz: None }).unwrap();
        match vm.create_vcpu(1) {
            Ok(_) => assert!(vm.state().unwrap().tsc_khz > 100_000, "{model}"),
            Err(EngineError::Model { model: named, missing }) => {
                assert!(named == model && !missing.is_empty() && model != CpuModel::Host);
                eprintln!("{model} lacks {missing} here");
            }
            Err(other) => panic!("{model}: {other}"),
        }
    }
}

#[test]
fn a_frequency_that_the_host_cannot_give_is_refused() {
    let Ok(engine) = KvmEngine::new() else { return eprintln!("not run: there is no KVM") };
    let model = CpuModel::Host;
    let vm = engine.create_vm(&VmConfig { vcpus: 1, model, tsc_khz: Some(1) }).unwrap();
    match vm.create_vcpu(0) {
        Err(EngineError::State(reason)) => assert!(reason.contains("1 kHz"), "{reason}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("a guest's clock runs at 1 kHz"),
    }
}

#[test]
fn the_probe_comes_to_a_verdict() {
    let engine = match KvmEngine::new() {
        Ok(engine) => engine,
        Err(error) => return eprintln!("not run: {error}"),
    };
    let verdict = probe::run(&engine).unwrap();
    // Every KVM that opens reaches long mode; what follows depends on the host.
    assert!(verdict.passed >= 4, "{verdict:?}");
    assert!(verdict.speed.is_some_and(|speed| speed > 0.01), "{verdict:?}");
    assert_eq!(verdict.usable(), verdict.reason().is_none(), "{verdict:?}");
    eprintln!("KVM here: {verdict:?}");
}
