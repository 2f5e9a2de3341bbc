use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use guise_engine::Exit;

use super::scripted::ScriptedEngine;
use super::*;
use crate::layout::MIB;

const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));

fn config(vcpus: u32) -> MachineConfig {
    MachineConfig {
        memory: 16 * MIB,
        addable_memory: 0,
        vcpus,
        board: BoardKind::Pc,
        model: CpuModel::Host,
        iommu: true,
        test_devices: true,
    }
}

fn machine(engine: &ScriptedEngine, vcpus: u32) -> Machine {
    Machine::new(engine, &config(vcpus), Box::new(std::io::sink())).unwrap()
}

/// How a machine ends whose first vCPU does this once.
fn ending_of(act: impl Fn(&dyn Platform) + Send + Sync + 'static) -> Ending {
    let done = AtomicBool::new(false);
    let engine = ScriptedEngine::new(move |index, platform| {
        if index == 0 && !done.swap(true, Ordering::SeqCst) {
            act(platform);
        }
        None
    });
    let machine = machine(&engine, 2);
    machine.resume();
    machine.wait(PATIENCE).expect("the machine ends")
}

#[test]
fn each_way_to_end_is_told_from_the_others() {
    // Sleep type and sleep enable to PM1 control.
    let off = ending_of(|platform| platform.port_write(0x604, &[0, 5 << 2 | 1 << 5]));
    assert!(matches!(off, Ending::PowerOff), "{off:?}");
    let reset = ending_of(|platform| platform.port_write(0x64, &[0xfe]));
    assert!(matches!(reset, Ending::Reset), "{reset:?}");
    let panicked = ending_of(|platform| platform.port_write(0x505, &[1]));
    assert!(matches!(panicked, Ending::Panicked), "{panicked:?}");
    let exit = ending_of(|platform| platform.port_write(0xf4, &[3, 0, 0, 0]));
    assert!(matches!(exit, Ending::Exit(7)), "{exit:?}");
}

#[test]
fn a_triple_fault_names_the_vcpu() {
    let engine = ScriptedEngine::new(|index, _| (index == 1).then_some(Ok(Exit::Shutdown)));
    let machine = machine(&engine, 2);
    machine.resume();
    assert!(matches!(machine.wait(PATIENCE), Some(Ending::TripleFault { vcpu: 1 })));
}

#[test]
fn an_engine_that_panics_ends_the_machine() {
    let engine = ScriptedEngine::new(|_, _| panic!("as a test wants"));
    let machine = machine(&engine, 1);
    machine.resume();
    assert!(matches!(machine.wait(PATIENCE), Some(Ending::Engine(_))));
}

#[test]
fn a_machine_that_goes_on_can_be_left() {
    let engine = ScriptedEngine::new(|_, _| None);
    let machine = machine(&engine, 1);
    machine.resume();
    assert!(machine.wait(Some(Duration::from_millis(10))).is_none());
    machine.stopper().leave();
    assert!(matches!(machine.wait(PATIENCE), Some(Ending::Left)));
}

#[test]
fn the_guest_writes_to_the_serial_port() {
    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Output {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let engine = ScriptedEngine::new(|_, platform| {
        b"hello".iter().for_each(|byte| platform.port_write(0x3f8, &[*byte]));
        platform.port_write(0xf4, &[0]);
        Some(Ok(Exit::Interrupted))
    });
    let output = Output::default();
    let machine = Machine::new(&engine, &config(1), Box::new(output.clone())).unwrap();
    machine.resume();
    machine.wait(PATIENCE).expect("the machine ends");
    machine.pause().unwrap();
    assert!(output.0.lock().unwrap().starts_with(b"hello"));
    let exits: std::collections::HashMap<_, _> = machine.exits().into_iter().collect();
    assert!(exits["port_write"] >= 6, "{exits:?}");
}

#[test]
fn the_engine_sees_ram_without_display_memory() {
    let engine = ScriptedEngine::new(|_, _| None);
    let _machine = machine(&engine, 1);
    let slots = engine.vm.slots.lock().unwrap();
    let mut seen: Vec<_> = slots.values().map(|slot| (slot.guest_address, slot.size)).collect();
    seen.sort_unstable();
    assert_eq!(seen, [(0, 0xa_0000), (0xc_0000, 16 * MIB - 0xc_0000)]);
}

#[test]
fn a_saved_machine_is_the_same_after_a_trip_through_json() {
    let engine = ScriptedEngine::new(|_, _| None);
    let original = machine(&engine, 2);
    original.resume();
    std::thread::sleep(Duration::from_millis(20));
    original.pause().unwrap();
    let saved = original.save().unwrap();
    assert!(saved.clock_ns > 0 && saved.vcpus[1].registers.rip > 0);
    let json = serde_json::to_string(&saved).unwrap();
    let other_engine = ScriptedEngine::new(|_, _| None);
    let copy = machine(&other_engine, 2);
    copy.restore(&serde_json::from_str(&json).unwrap()).unwrap();
    let value = |state: &MachineState| {
        let mut value = serde_json::to_value(state).unwrap();
        // The real-time clock has looked at the host's since then.
        assert!(value["board"].as_object_mut().unwrap().remove("rtc").is_some());
        value
    };
    assert_eq!(value(&copy.save().unwrap()), value(&saved));
}

#[test]
fn a_saved_machine_is_refused_by_another_one() {
    let engine = ScriptedEngine::new(|_, _| None);
    let saved = machine(&engine, 2).save().unwrap();
    let other_engine = ScriptedEngine::new(|_, _| None);
    let other = machine(&other_engine, 1);
    let error = other.restore(&saved).unwrap_err().to_string();
    assert!(error.contains("another configuration"), "{error}");
    let newer = MachineState { version: 99, ..saved };
    let error = other.restore(&newer).unwrap_err().to_string();
    assert!(error.contains("version 99"), "{error}");
}

#[test]
fn numbers_of_vcpus_that_nobody_can_have_are_refused() {
    let engine = ScriptedEngine::new(|_, _| None);
    for vcpus in [0, 9] {
        let made = Machine::new(&engine, &config(vcpus), Box::new(std::io::sink()));
        assert!(matches!(made.err(), Some(MachineError::Engine(EngineError::VcpuCount { .. }))));
    }
}

/// Devices and the buses that they sit at hold on to each other.
#[test]
fn a_machine_that_is_dropped_leaves_nothing() {
    for (board, iommu) in [(BoardKind::Microvm, false), (BoardKind::Pc, true)] {
        let engine = ScriptedEngine::new(|_, _| None);
        let config = MachineConfig { board, iommu, ..config(1) };
        let machine = Machine::new(&engine, &config, Box::new(std::io::sink())).unwrap();
        let ports = Arc::downgrade(&machine.platform.ports);
        let memory = Arc::downgrade(&machine.platform.memory);
        let vm = Arc::downgrade(&machine.vm);
        drop(machine);
        assert!(ports.upgrade().is_none() && memory.upgrade().is_none(), "{board:?}: the buses");
        assert!(vm.upgrade().is_none(), "{board:?}: the VM");
    }
}
