use super::*;

struct Function {
    config: ConfigSpace,
    register: Mutex<u8>,
}

impl Function {
    fn new(device: u16, bars: &[(usize, BarKind, u64)]) -> Arc<Self> {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1234,
            device,
            subsystem_vendor: 0,
            subsystem: 0,
            class: 0,
            revision: 0,
        });
        for &(index, kind, size) in bars {
            config.add_bar(index, kind, size).unwrap();
        }
        Arc::new(Self { config, register: Mutex::default() })
    }
}

impl PciFunction for Function {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        data[0] = *self.register.lock().unwrap() + bar as u8 + offset as u8;
    }
    fn bar_write(&self, _: usize, _: u64, data: &[u8]) {
        *self.register.lock().unwrap() = data[0];
    }
    fn reset(&self) {
        self.config.reset();
    }
}

const ECAM: u64 = 0xb000_0000;

struct Rig {
    ports: Arc<Bus>,
    memory: Arc<Bus>,
    host: Arc<PciHost>,
    requests: Arc<Mutex<Vec<PowerRequest>>>,
}

fn rig() -> Rig {
    let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
    let windows = PciWindows {
        ports: 0xc000..0xd000,
        memory32: 0xc000_0000..0xc010_0000,
        memory64: 0x80_0000_0000..0x90_0000_0000,
    };
    let requests: Arc<Mutex<Vec<PowerRequest>>> = Arc::default();
    let sink = requests.clone();
    let host = PciHost::new(
        ports.clone(),
        memory.clone(),
        windows,
        vec![],
        Arc::new(move |request| sink.lock().unwrap().push(request)),
    );
    host.attach(ECAM).unwrap();
    Rig { ports, memory, host, requests }
}

impl Rig {
    fn config32(&self, slot: u64, register: u64) -> u32 {
        let mut data = [0; 4];
        self.memory.read(ECAM + (slot << 15) + register, &mut data);
        u32::from_le_bytes(data)
    }

    fn set_config(&self, slot: u64, register: u64, data: &[u8]) {
        self.memory.write(ECAM + (slot << 15) + register, data);
    }

    fn byte(&self, bus: &Bus, address: u64) -> u8 {
        let mut data = [0];
        bus.read(address, &mut data);
        data[0]
    }
}

#[test]
fn both_ways_lead_to_the_same_registers() {
    let rig = rig();
    rig.host.add(3, Function::new(0x5678, &[])).unwrap();
    assert_eq!(rig.config32(3, 0), 0x5678_1234);
    rig.ports.write(0xcf8, &0x8000_1800_u32.to_le_bytes());
    let mut data = [0; 4];
    rig.ports.read(0xcfc, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x5678_1234);
    let mut half = [0; 2];
    rig.ports.read(0xcfe, &mut half);
    assert_eq!(u16::from_le_bytes(half), 0x5678);
    assert_eq!(rig.byte(&rig.ports, 0xcfd), 0x12);
    // A byte may be named by the address as well as by the port.
    rig.ports.write(0xcf8, &0x8000_1802_u32.to_le_bytes());
    rig.ports.read(0xcfc, &mut half);
    assert_eq!(u16::from_le_bytes(half), 0x5678);
    rig.ports.write(0xcf8, &0x8000_1800_u32.to_le_bytes());
    rig.ports.read(0xcf8, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x8000_1800);
}

#[test]
fn empty_slots_other_functions_and_other_buses_read_as_ones() {
    let rig = rig();
    assert_eq!(rig.config32(5, 0), u32::MAX);
    assert_eq!(rig.config32(0, 0x1000), u32::MAX);
    rig.ports.write(0xcf8, &0x8001_0000_u32.to_le_bytes());
    let mut data = [0; 4];
    rig.ports.read(0xcfc, &mut data);
    assert_eq!(data, [0xff; 4]);
    rig.ports.write(0xcf8, &0_u32.to_le_bytes());
    rig.ports.read(0xcfc, &mut data);
    assert_eq!(data, [0xff; 4]);
}

#[test]
fn bars_get_addresses_and_follow_the_guest() {
    let rig = rig();
    let bars = [
        (0, BarKind::Memory32, 0x1000),
        (1, BarKind::Port, 0x20),
        (2, BarKind::Memory64 { prefetchable: true }, 0x4000),
    ];
    rig.host.add(1, Function::new(1, &bars)).unwrap();
    rig.host.add(2, Function::new(2, &bars)).unwrap();
    assert_eq!(rig.config32(1, 0x10), 0xc000_0000);
    assert_eq!(rig.config32(2, 0x10), 0xc000_1000);
    assert_eq!(rig.config32(2, 0x14), 0xc021);
    assert_eq!(rig.config32(2, 0x18), 0x400c);
    assert_eq!(rig.config32(2, 0x1c), 0x80);
    assert_eq!(rig.byte(&rig.memory, 0xc000_1000), 0xff, "not decoded yet");
    rig.set_config(2, 4, &[3]);
    rig.memory.write(0xc000_1000, &[7]);
    assert_eq!(rig.byte(&rig.memory, 0xc000_1005), 12);
    assert_eq!(rig.byte(&rig.ports, 0xc022), 10);
    rig.set_config(2, 0x10, &0xc008_0000_u32.to_le_bytes());
    assert_eq!(rig.byte(&rig.memory, 0xc000_1000), 0xff);
    assert_eq!(rig.byte(&rig.memory, 0xc008_0000), 7);
    rig.set_config(2, 4, &[1]);
    assert_eq!(rig.byte(&rig.memory, 0xc008_0000), 0xff);
    assert_eq!(rig.byte(&rig.ports, 0xc020), 8);
}

#[test]
fn a_bar_on_top_of_another_range_stays_off_the_bus() {
    let rig = rig();
    rig.host.add(1, Function::new(1, &[(0, BarKind::Memory32, 0x1000)])).unwrap();
    rig.set_config(1, 0x10, &(ECAM as u32).to_le_bytes());
    rig.set_config(1, 4, &[2]);
    assert_eq!(rig.config32(1, 0), 0x0001_1234, "the window still answers");
    rig.set_config(1, 0x10, &0xc000_0000_u32.to_le_bytes());
    assert_eq!(rig.byte(&rig.memory, 0xc000_0001), 1);
}

#[test]
fn slots_are_filled_and_emptied_at_any_time() {
    let rig = rig();
    let function = Function::new(1, &[(0, BarKind::Memory32, 0x1000)]);
    assert_eq!(rig.host.free_slot(), Ok(1));
    rig.host.add(1, function.clone()).unwrap();
    assert_eq!(rig.host.add(1, function.clone()), Err(SlotError::Taken(1)));
    assert_eq!(rig.host.add(32, function), Err(SlotError::Taken(32)));
    assert_eq!(rig.host.occupied(), 3);
    rig.set_config(1, 4, &[2]);
    assert!(rig.memory.contains(0xc000_0000));
    assert!(rig.host.remove(1).is_some());
    assert!(!rig.memory.contains(0xc000_0000));
    assert_eq!(rig.config32(1, 0), u32::MAX);
    assert!(rig.host.remove(1).is_none());
    assert!(rig.host.remove(200).is_none());
}

#[test]
fn a_full_window_is_an_error() {
    let rig = rig();
    let big = Function::new(1, &[(0, BarKind::Memory32, 1 << 21)]);
    let error = SlotError::NoSpace { slot: 1, bar: 0, size: 1 << 21 };
    assert_eq!(rig.host.add(1, big), Err(error));
    assert_eq!(rig.host.occupied(), 1);
}

#[test]
fn the_reset_control_register_resets_the_machine() {
    let rig = rig();
    rig.ports.write(0xcf9, &[2]);
    assert!(rig.requests.lock().unwrap().is_empty());
    rig.ports.write(0xcf9, &[6]);
    assert_eq!(*rig.requests.lock().unwrap(), [PowerRequest::Reset]);
}

#[test]
fn interrupts_are_dealt_out_by_slot() {
    let seen: Arc<Mutex<Vec<(usize, bool)>>> = Arc::default();
    let lines = (0..4).map(|index| {
        let seen = seen.clone();
        Arc::new(move |level: bool| seen.lock().unwrap().push((index, level))) as Arc<dyn IrqLine>
    });
    let windows = PciWindows { ports: 0..0, memory32: 0..0, memory64: 0..0 };
    let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
    let host =
        PciHost::new(ports, memory, windows, lines.collect(), Arc::new(|_: PowerRequest| ()));
    host.interrupt_line(5).set(true);
    let (a, b) = (host.interrupt_line(2), host.interrupt_line(6));
    a.set(true);
    b.set(true);
    a.set(false);
    b.set(false);
    assert_eq!(*seen.lock().unwrap(), [(1, true), (1, false), (2, true), (2, false)]);
}

#[test]
fn a_saved_machine_gets_its_bars_back() {
    let bars = [(0, BarKind::Memory32, 0x1000)];
    let first = rig();
    let function = Function::new(1, &bars);
    first.host.add(1, function.clone()).unwrap();
    first.set_config(1, 0x10, &0xc008_0000_u32.to_le_bytes());
    first.set_config(1, 4, &[2]);
    let second = rig();
    let twin = Function::new(1, &bars);
    second.host.add(1, twin.clone()).unwrap();
    twin.config.set_state(&function.config.state()).unwrap();
    second.host.set_state(&first.host.state());
    assert_eq!(second.byte(&second.memory, 0xc008_0003), 3);
}
