//! Every device of this crate, wired together as on a PC, with a language of random
//! bytes to drive it: what a guest, the host and time can do to devices.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use guise_devices::acpi::Acpi;
use guise_devices::bus::{Bus, Device};
use guise_devices::clock::Clock;
use guise_devices::edu::Edu;
use guise_devices::fw_cfg::FwCfg;
use guise_devices::hpet::{Hpet, HpetLines};
use guise_devices::i8042::I8042;
use guise_devices::ioapic::IoApic;
use guise_devices::iommu::{Iommu, RequesterId};
use guise_devices::irq::{Fanout, IrqLine, MsiSink};
use guise_devices::panic::Pvpanic;
use guise_devices::pci::{
    BarKind, ConfigSpace, Identity, Msix, PciFunction, PciHost, PciHotplug, PciWindows,
};
use guise_devices::pic::Pic;
use guise_devices::pit::Pit;
use guise_devices::power::PowerRequest;
use guise_devices::rtc::{HostWallClock, Rtc};
use guise_devices::testdev::{DebugExit, TestDevice};
use guise_devices::uart::Uart;
use guise_devices::{
    acpi, fw_cfg, hpet, i8042, ioapic, iommu, panic, pic, pit, rtc, testdev, uart,
};
use guise_engine::GuestMemory;
use guise_engine::memory::vm_memory::GuestAddress;

const ACPI_BASE: u64 = 0x600;
const HOTPLUG_BASE: u64 = 0xae00;
const SERIAL: u64 = 0x3f8;
const ECAM: u64 = 0xb000_0000;

/// Where accesses begin: each device has its place here.
const PORTS: [u64; 22] = [
    0x20, 0xa0, 0x4d0, 0x40, 0x61, 0x70, 0x60, 0x64, 0x92, 0x3f8, 0x600, 0x505, 0xf4, 0xe0, 0xe8,
    0x2000, 0x510, 0xcf8, 0xcfc, 0xae00, 0xc000, 0xfffe,
];
const MEMORY: [u64; 10] = [
    ioapic::ADDRESS,
    hpet::ADDRESS,
    ECAM,
    ECAM + 0x8000,
    0xc000_0000,
    0xff00_0000,
    iommu::ADDRESS,
    iommu::ADDRESS + 0x200,
    ECAM + ((EDU_SLOT as u64) << 15),
    // Where the bridge puts the large BAR of the device in that slot.
    0xc010_0000,
];
const EDU_SLOT: u8 = 31;

/// A function with MSI-X and a BAR of each kind.
struct Function {
    config: ConfigSpace,
    msix: Arc<Msix>,
}

impl Function {
    fn new(sink: Arc<dyn MsiSink>) -> Arc<Self> {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1234,
            device: 0x5678,
            subsystem_vendor: 0,
            subsystem: 0,
            class: 0xff_0000,
            revision: 0,
        });
        let msix = Msix::new(3, sink);
        config.add_bar(0, BarKind::Port, 32).unwrap();
        config.add_bar(1, BarKind::Memory32, 0x1000).unwrap();
        config.add_bar(2, BarKind::Memory64 { prefetchable: true }, 0x4000).unwrap();
        config.add_msix(msix.clone(), 1, 0, 0x800).unwrap();
        Arc::new(Self { config, msix })
    }
}

impl PciFunction for Function {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        match bar {
            1 if offset < 0x800 => self.msix.table_read(offset, data),
            1 => self.msix.pending_read(offset - 0x800, data),
            _ => data.fill(bar as u8),
        }
    }

    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) {
        match bar {
            1 => self.msix.table_write(offset, data),
            _ => self.msix.notify(offset as u16),
        }
    }

    fn reset(&self) {
        self.config.reset();
        self.msix.reset();
    }
}

/// The devices, and how often they asked for something.
pub struct Board {
    clock: Arc<Clock>,
    ports: Arc<Bus>,
    memory: Arc<Bus>,
    ioapic: Arc<IoApic>,
    pic: Arc<Pic>,
    pit: Arc<Pit>,
    rtc: Arc<Rtc>,
    uart: Arc<Uart>,
    i8042: Arc<I8042>,
    acpi: Arc<Acpi>,
    hpet: Arc<Hpet>,
    fw_cfg: Arc<FwCfg>,
    iommu: Arc<Iommu>,
    edu: Arc<Edu>,
    pci: Arc<PciHost>,
    hotplug: Arc<PciHotplug>,
    sink: Arc<dyn MsiSink>,
    pub messages: Arc<AtomicU64>,
    pub requests: Arc<AtomicU64>,
}

impl Board {
    pub fn new() -> Self {
        let clock = Clock::manual();
        let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let messages: Arc<AtomicU64> = Arc::default();
        let counter = messages.clone();
        let sink: Arc<dyn MsiSink> = Arc::new(move |_| _ = counter.fetch_add(1, Ordering::Relaxed));
        let guest_memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let iommu = Iommu::new(guest_memory, sink.clone());
        let requests: Arc<AtomicU64> = Arc::default();
        let counter = requests.clone();
        let power = Arc::new(move |_: PowerRequest| _ = counter.fetch_add(1, Ordering::Relaxed));

        let ioapic = IoApic::remappable(iommu.io_apic());
        let weak = Arc::downgrade(&ioapic);
        iommu.watch(move || {
            if let Some(ioapic) = weak.upgrade() {
                ioapic.refresh_routes();
            }
        });
        let pic = Pic::new(Arc::new(|_: bool| ()));
        let isa = |irq: u8| -> Arc<dyn IrqLine> {
            let pin = if irq == 0 { 2 } else { usize::from(irq) };
            Arc::new(Fanout::new(vec![pic.line(irq), ioapic.line(pin)]))
        };
        let pit = Pit::new(clock.clone(), isa(0));
        let rtc = Rtc::new(clock.clone(), HostWallClock, isa(8));
        let uart = Uart::new(isa(4), Box::new(io::sink()));
        let i8042 = I8042::new(isa(1), isa(12), power.clone());
        let acpi = Acpi::new(clock.clone(), isa(9), power.clone());
        let lines = HpetLines {
            pins: (16..24).map(|pin| ioapic.line(pin)).collect(),
            legacy: [isa(0), isa(8)],
        };
        let hpet = Hpet::new(clock.clone(), lines);
        let fw_cfg = FwCfg::builder().file("etc/test", vec![1, 2, 3]).build();
        let windows = PciWindows {
            ports: 0xc000..0xd000,
            memory32: 0xc000_0000..0xd000_0000,
            memory64: 0x80_0000_0000..0x81_0000_0000,
        };
        let intx = (16..20).map(|pin| ioapic.line(pin)).collect();
        let pci = PciHost::new(ports.clone(), memory.clone(), windows, intx, power.clone());
        pci.attach(ECAM).unwrap();
        pci.add(1, Function::new(sink.clone())).unwrap();
        let requester = iommu.requester(RequesterId::in_slot(EDU_SLOT));
        let edu = Edu::new(requester.clone(), requester, pci.interrupt_line(EDU_SLOT)).unwrap();
        pci.add(EDU_SLOT, edu.clone()).unwrap();
        let hotplug = PciHotplug::new(pci.clone(), acpi.clone());
        let testdev = TestDevice::new((0..16).map(isa).collect());
        testdev.attach(&ports, &memory).unwrap();

        let on_ports: [(u64, u64, u64, Arc<dyn Device>); 15] = [
            (pic::MASTER, 2, pic::MASTER, pic.clone()),
            (pic::SLAVE, 2, pic::SLAVE, pic.clone()),
            (pic::EDGE_LEVEL, 2, pic::EDGE_LEVEL, pic.clone()),
            (pit::COUNTERS, 4, pit::COUNTERS, pit.clone()),
            (pit::CONTROL, 1, pit::CONTROL, pit.clone()),
            (rtc::PORTS, rtc::PORT_COUNT, rtc::PORTS, rtc.clone()),
            (i8042::DATA, 1, i8042::DATA, i8042.clone()),
            (i8042::COMMAND, 1, i8042::COMMAND, i8042.clone()),
            (i8042::SYSTEM_CONTROL, 1, i8042::SYSTEM_CONTROL, i8042.clone()),
            (SERIAL, uart::PORT_COUNT, 0, uart.clone()),
            (ACPI_BASE, acpi::LENGTH, 0, acpi.clone()),
            (panic::PORT, 1, 0, Pvpanic::new(power.clone())),
            (testdev::DEBUG_EXIT_PORT, testdev::DEBUG_EXIT_COUNT, 0, DebugExit::new(power)),
            (fw_cfg::PORTS, fw_cfg::PORT_COUNT, fw_cfg::PORTS, fw_cfg.clone()),
            (HOTPLUG_BASE, PciHotplug::LENGTH, 0, hotplug.clone()),
        ];
        for (base, length, offset, device) in on_ports {
            ports.insert(base, length, offset, device).unwrap();
        }
        memory.insert(ioapic::ADDRESS, ioapic::LENGTH, 0, ioapic.clone()).unwrap();
        memory.insert(hpet::ADDRESS, hpet::LENGTH, 0, hpet.clone()).unwrap();
        memory.insert(iommu::ADDRESS, iommu::LENGTH, 0, iommu.clone()).unwrap();
        // Interrupts go somewhere from the start: odd pins are level-triggered.
        for pin in 0..ioapic::PINS as u32 {
            let entry = (0x30 + pin) | ((pin & 1) << 15);
            memory.write(ioapic::ADDRESS, &(0x10 + 2 * pin).to_le_bytes());
            memory.write(ioapic::ADDRESS + 0x10, &entry.to_le_bytes());
        }
        Self {
            clock,
            ports,
            memory,
            ioapic,
            pic,
            pit,
            rtc,
            uart,
            i8042,
            acpi,
            hpet,
            fw_cfg,
            iommu,
            edu,
            pci,
            hotplug,
            sink,
            messages,
            requests,
        }
    }

    /// Does what eight bytes say.
    pub fn step(&self, operation: [u8; 8]) {
        let [what, place, offset, width, values @ ..] = operation;
        let length = [1, 2, 4, 8, 3, 5, 7, 0][usize::from(width & 7)];
        let value = u64::from(u32::from_le_bytes(values)).wrapping_mul(0x1_0000_0001);
        let data = value.to_le_bytes();
        let port = PORTS[usize::from(place) % PORTS.len()] + u64::from(offset & 31);
        let high = if width & 8 != 0 { 0 } else { u64::from(width >> 4) << 8 };
        let address = MEMORY[usize::from(place) % MEMORY.len()] + u64::from(offset) + high;
        match what % 32 {
            0..10 => self.ports.write(port, &data[..length]),
            10..16 => self.ports.read(port, &mut [0; 8][..length]),
            16..21 => self.memory.write(address, &data[..length]),
            21..24 => self.memory.read(address, &mut [0; 8][..length]),
            24 => self.clock.advance(value % 2_000_000),
            25 => _ = self.uart.input(&data[..length]),
            26 => self.i8042.key(data[0], data[1] & 1 != 0, data[1] & 2 != 0),
            27 => _ = self.pic.acknowledge(),
            28 => self.ioapic.end_of_interrupt(data[0]),
            29 => {
                self.acpi.press_power_button();
                self.acpi.raise_event(u32::from(data[0]));
            }
            30 => {
                let slot = data[0] & 31;
                if data[1] & 1 != 0 {
                    _ = self.hotplug.add(slot, Function::new(self.sink.clone()));
                } else {
                    self.hotplug.request_removal(slot);
                }
            }
            _ => self.save_and_load(data[0] & 7 == 0),
        }
    }

    /// Saves every device and loads it again, after a reset on demand.
    fn save_and_load(&self, reset: bool) {
        let states = (
            (self.ioapic.state(), self.pic.state(), self.pit.state(), self.rtc.state()),
            (self.uart.state(), self.i8042.state(), self.acpi.state(), self.hpet.state()),
            (self.fw_cfg.state(), self.pci.state(), self.hotplug.state()),
            (self.iommu.state(), self.edu.state()),
        );
        if reset {
            self.pci.reset();
            self.ioapic.reset();
            self.pic.reset();
            self.pit.reset();
            self.rtc.reset();
            self.uart.reset();
            self.i8042.reset();
            self.acpi.reset();
            self.hpet.reset();
            self.fw_cfg.reset();
            self.iommu.reset();
        }
        let (
            (ioapic, pic, pit, rtc),
            (uart, i8042, acpi, hpet),
            (fw_cfg, pci, hotplug),
            (iommu, edu),
        ) = states;
        self.iommu.set_state(&iommu);
        self.edu.set_state(&edu).unwrap();
        self.pit.set_state(&pit);
        self.rtc.set_state(&rtc).unwrap();
        self.uart.set_state(&uart);
        self.i8042.set_state(&i8042);
        self.acpi.set_state(&acpi);
        self.hpet.set_state(&hpet);
        self.fw_cfg.set_state(&fw_cfg);
        self.pci.set_state(&pci);
        self.hotplug.set_state(&hotplug);
        self.pic.set_state(&pic);
        self.ioapic.set_state(&ioapic);
    }

    /// Does what a string of bytes says. No operation may make devices ask for more
    /// than a little: the most that happens is 2 ms of time with every timer running.
    pub fn run(&self, program: &[u8]) {
        let operations = program.chunks_exact(8);
        let bound = 1000 * (operations.len() as u64 + 1);
        for operation in operations {
            self.step(operation.try_into().unwrap());
        }
        assert!(self.messages.load(Ordering::Relaxed) < bound);
        assert!(self.requests.load(Ordering::Relaxed) < bound);
    }
}
