//! The boards: which devices a machine has, and how they are wired.
//!
//! Both have what a PC's kernel takes for granted: interrupt controllers, interval
//! timer, real-time clock, a serial port, ACPI's registers, a PCI bus and the panic
//! device. `pc` adds what operating systems of all kinds look for (a keyboard
//! controller, an HPET, the firmware configuration device); `microvm` leaves it out,
//! because to look for it takes time.
//!
//! An ISA interrupt is a wire to the 8259 pair and to the I/O APIC; the timer's goes
//! to the I/O APIC's input 2. PCI's four go to its inputs 16 to 19.

use std::io::Write;
use std::sync::{Arc, Weak};

use guise_devices::acpi::{self as pm, Acpi, AcpiState};
use guise_devices::bus::{Bus, BusError, Device};
use guise_devices::clock::Clock;
use guise_devices::edu::{Edu, EduState};
use guise_devices::fw_cfg::{self, FwCfg, FwCfgState};
use guise_devices::hpet::{self, Hpet, HpetLines, HpetState};
use guise_devices::i8042::{self, I8042, I8042State};
use guise_devices::ioapic::{self, IoApic, IoApicState};
use guise_devices::iommu::{self, IommuState};
use guise_devices::irq::{Fanout, IrqLine, SharedLine};
use guise_devices::panic::{self as pvpanic, Pvpanic};
use guise_devices::pci::host::PciHostState;
use guise_devices::pci::hotplug::PciHotplug;
use guise_devices::pci::{PciFunction as _, PciHost, PciWindows};
use guise_devices::pic::{self, Pic, PicState};
use guise_devices::pit::{self, Pit, PitState};
use guise_devices::power::PowerSink;
use guise_devices::rtc::{self, HostWallClock, Rtc, RtcState};
use guise_devices::testdev::{self, DebugExit, TestDevice};
use guise_devices::uart::{self, Uart, UartState};
use guise_engine::{GuestMemory, Vm};
use serde::{Deserialize, Serialize};

use crate::MachineError;
use crate::acpi::{self, Hardware, PCI_INTERRUPTS, PowerPorts, SCI};
use crate::expansion::{Expansion, ExpansionState};
use crate::layout::{self, RamLayout};
use crate::machine::MachineConfig;
use crate::platform::InterruptControllers;
use crate::upstream::Upstream;

/// The fixed part of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BoardKind {
    /// Small, fast to boot.
    Microvm,
    /// For any operating system.
    Pc,
}

/// First serial port, its interrupt.
const COM1: u64 = 0x3f8;
const COM1_IRQ: u8 = 4;
const TIMER_IRQ: u8 = 0;
const KEYBOARD_IRQ: u8 = 1;
const CLOCK_IRQ: u8 = 8;
const MOUSE_IRQ: u8 = 12;
/// The I/O APIC's input for the timer.
const TIMER_PIN: usize = 2;
/// Power management registers.
const PM_PORTS: u64 = 0x600;

/// The last slot: others come from the first one on.
const EDU_SLOT: u8 = 31;

/// PCI hot plug.
const HOTPLUG_PORTS: u64 = PM_PORTS + pm::LENGTH;

/// What a board is wired to.
pub(crate) struct Wiring<'a> {
    pub config: &'a MachineConfig,
    pub ram: RamLayout,
    pub vm: &'a Arc<dyn Vm>,
    pub guest_memory: &'a GuestMemory,
    pub clock: &'a Arc<Clock>,
    pub power: Arc<dyn PowerSink>,
    pub ports: &'a Arc<Bus>,
    pub memory: &'a Arc<Bus>,
}

pub struct Board {
    vcpus: u32,
    pic: Arc<Pic>,
    io_apic: Arc<IoApic>,
    pit: Arc<Pit>,
    rtc: Arc<Rtc>,
    uart: Arc<Uart>,
    acpi: Arc<Acpi>,
    pci: Arc<PciHost>,
    upstream: Upstream,
    /// The bus owns it, and a guest may let go of it.
    edu: Weak<Edu>,
    expansion: Expansion,
    pc: Option<PcDevices>,
}

/// What only the `pc` board has.
struct PcDevices {
    keyboard: Arc<I8042>,
    hpet: Arc<Hpet>,
    fw_cfg: Arc<FwCfg>,
}

/// The devices of a saved machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BoardState {
    pic: PicState,
    io_apic: IoApicState,
    pit: PitState,
    rtc: RtcState,
    uart: UartState,
    acpi: AcpiState,
    iommu: Option<IommuState>,
    edu: Option<EduState>,
    expansion: ExpansionState,
    pci: PciHostState,
    pc: Option<PcState>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct PcState {
    keyboard: I8042State,
    hpet: HpetState,
    fw_cfg: FwCfgState,
}

/// Wires of both controllers, by number.
struct Interrupts {
    pic: Arc<Pic>,
    io_apic: Arc<IoApic>,
}

impl Interrupts {
    fn isa(&self, number: u8) -> Arc<dyn IrqLine> {
        let pin = if number == TIMER_IRQ { TIMER_PIN } else { usize::from(number) };
        Arc::new(Fanout::new(vec![self.pic.line(number), self.io_apic.line(pin)]))
    }
}

impl Board {
    /// Makes the devices; `output` takes what the guest writes to its serial port.
    pub(crate) fn new(wiring: Wiring, output: Box<dyn Write + Send>) -> Result<Self, MachineError> {
        let Wiring { config, clock, power, ports, memory, .. } = &wiring;
        let external = wiring.vm.clone();
        let pic = Pic::new(Arc::new(move |level: bool| {
            if let Err(error) = external.set_external_interrupt(level) {
                tracing::error!(%error, "the 8259's interrupt did not reach the engine");
            }
        }));
        let upstream = Upstream::new(wiring.guest_memory, wiring.vm, config.iommu);
        let io_apic = upstream.io_apic(wiring.vm);
        let interrupts = Interrupts { pic: pic.clone(), io_apic: io_apic.clone() };

        let shared: Vec<_> =
            PCI_INTERRUPTS.iter().map(|pin| SharedLine::new(io_apic.line(*pin as usize))).collect();
        let pc = match config.board {
            BoardKind::Pc => Some(PcDevices::new(&wiring, &interrupts, &shared)?),
            BoardKind::Microvm => None,
        };
        let hpet = pc.as_ref().map(|pc| pc.hpet.clone());
        let timer = interrupts.isa(TIMER_IRQ);
        // In legacy replacement the HPET has the timer's wire to itself.
        let timer: Arc<dyn IrqLine> = Arc::new(move |level: bool| {
            if !hpet.as_ref().is_some_and(|hpet| hpet.replaces_legacy()) {
                timer.set(level);
            }
        });
        let pit = Pit::new((*clock).clone(), timer);
        let rtc = Rtc::new((*clock).clone(), HostWallClock, interrupts.isa(CLOCK_IRQ));
        let acpi = Acpi::new((*clock).clone(), interrupts.isa(SCI), power.clone());
        let windows = PciWindows {
            ports: u64::from(layout::PCI_PORTS.start)..u64::from(layout::PCI_PORTS.end),
            memory32: layout::PCI_WINDOW_32,
            memory64: layout::PCI_WINDOW_64,
        };
        let pci = PciHost::new(
            (*ports).clone(),
            (*memory).clone(),
            windows,
            shared.iter().map(SharedLine::source).collect(),
            power.clone(),
        );
        pci.attach(layout::PCI_ECAM)?;

        attach_at(ports, &[(pic::MASTER, 2), (pic::SLAVE, 2), (pic::EDGE_LEVEL, 2)], &pic)?;
        attach_at(ports, &[(pit::COUNTERS, 4), (pit::CONTROL, 1)], &pit)?;
        attach_at(ports, &[(rtc::PORTS, rtc::PORT_COUNT)], &rtc)?;
        ports.insert(PM_PORTS, pm::LENGTH, 0, acpi.clone())?;
        ports.insert(pvpanic::PORT, 1, 0, Pvpanic::new(power.clone()))?;
        memory.insert(ioapic::ADDRESS, ioapic::LENGTH, 0, io_apic.clone())?;
        if let Some(iommu) = upstream.iommu() {
            memory.insert(iommu::ADDRESS, iommu::LENGTH, 0, iommu.clone())?;
        }
        let mut edu = Weak::new();
        if config.test_devices {
            let exit = DebugExit::new(power.clone());
            ports.insert(testdev::DEBUG_EXIT_PORT, testdev::DEBUG_EXIT_COUNT, 0, exit)?;
            let lines = (0..16).map(|number| interrupts.isa(number));
            let lines = lines.chain((16..ioapic::PINS).map(|pin| io_apic.line(pin))).collect();
            TestDevice::new(lines).attach(ports, memory)?;
            edu = Arc::downgrade(&add_edu(&pci, &upstream)?);
        }
        let uart = Uart::new(interrupts.isa(COM1_IRQ), output);
        ports.insert(COM1, uart::PORT_COUNT, 0, uart.clone())?;
        let hotplug = PciHotplug::new(pci.clone(), acpi.clone());
        ports.insert(HOTPLUG_PORTS, PciHotplug::LENGTH, 0, hotplug.clone())?;
        let expansion = Expansion::new(pci.clone(), hotplug, upstream.clone());
        let vcpus = config.vcpus;
        Ok(Board { vcpus, pic, io_apic, pit, rtc, uart, acpi, pci, upstream, edu, expansion, pc })
    }

    /// What the ACPI tables say of this board.
    pub(crate) fn hardware(&self) -> Hardware {
        let port = |offset: u64| (PM_PORTS + offset) as u16;
        Hardware {
            vcpus: self.vcpus,
            ports: PowerPorts {
                pm1_event: port(pm::PM1_EVENT),
                pm1_control: port(pm::PM1_CONTROL),
                pm_timer: port(pm::PM_TIMER),
                events: port(pm::GPE),
                events_length: pm::GPE_LENGTH as u8,
                off_type: pm::SLEEP_TYPE_S5,
                reset: port(pm::RESET),
                reset_value: pm::RESET_VALUE,
            },
            hpet: self.pc.is_some(),
            iommu: self.upstream.iommu().is_some(),
            pvpanic: pvpanic::PORT as u16,
            keyboard: self.pc.is_some(),
            hotplug: HOTPLUG_PORTS as u16,
        }
    }

    pub(crate) fn interrupt_controllers(&self) -> Box<dyn InterruptControllers> {
        Box::new(Interrupts { pic: self.pic.clone(), io_apic: self.io_apic.clone() })
    }

    pub fn press_power_button(&self) {
        self.acpi.press_power_button();
    }

    pub fn serial(&self) -> Arc<Uart> {
        self.uart.clone()
    }

    /// Devices that the machine gets besides its board's.
    pub(crate) fn expansion(&self) -> &Expansion {
        &self.expansion
    }

    pub(crate) fn state(&self) -> BoardState {
        BoardState {
            pic: self.pic.state(),
            io_apic: self.io_apic.state(),
            pit: self.pit.state(),
            rtc: self.rtc.state(),
            uart: self.uart.state(),
            acpi: self.acpi.state(),
            iommu: self.upstream.iommu().map(|iommu| iommu.state()),
            edu: self.edu.upgrade().map(|edu| edu.state()),
            // Their requests end while they are saved, which changes registers elsewhere.
            expansion: self.expansion.state(),
            pci: self.pci.state(),
            pc: self.pc.as_ref().map(|pc| PcState {
                keyboard: pc.keyboard.state(),
                hpet: pc.hpet.state(),
                fw_cfg: pc.fw_cfg.state(),
            }),
        }
    }

    /// Devices first, controllers last: what a device does to its wire while it is
    /// loaded is then forgotten.
    pub(crate) fn set_state(&self, state: &BoardState) -> Result<(), MachineError> {
        match (self.upstream.iommu(), &state.iommu) {
            (Some(iommu), Some(saved)) => iommu.set_state(saved),
            (None, None) => {}
            _ => return Err(MachineError::Saved("it has another IOMMU".to_owned())),
        }
        match (self.edu.upgrade(), &state.edu) {
            (Some(edu), Some(saved)) => {
                edu.set_state(saved).map_err(|error| MachineError::Saved(error.to_string()))?;
            }
            // The guest had let go of it.
            (Some(_), None) => _ = self.pci.remove(EDU_SLOT),
            (None, None) => {}
            (None, Some(_)) => {
                return Err(MachineError::Saved("it has other test devices".to_owned()));
            }
        }
        match (&self.pc, &state.pc) {
            (Some(pc), Some(saved)) => {
                pc.keyboard.set_state(&saved.keyboard);
                pc.hpet.set_state(&saved.hpet);
                pc.fw_cfg.set_state(&saved.fw_cfg);
            }
            (None, None) => {}
            _ => return Err(MachineError::Saved("it has another board".to_owned())),
        }
        self.pit.set_state(&state.pit);
        self.rtc.set_state(&state.rtc).map_err(|error| MachineError::Saved(error.to_string()))?;
        self.uart.set_state(&state.uart);
        self.acpi.set_state(&state.acpi);
        self.expansion.set_state(&state.expansion)?;
        self.pci.set_state(&state.pci);
        self.pic.set_state(&state.pic);
        self.io_apic.set_state(&state.io_apic);
        Ok(())
    }
}

impl PcDevices {
    fn new(
        wiring: &Wiring,
        interrupts: &Interrupts,
        shared: &[Arc<SharedLine>],
    ) -> Result<Self, BusError> {
        let Wiring { config, ram, clock, power, ports, memory, .. } = wiring;
        let keyboard =
            I8042::new(interrupts.isa(KEYBOARD_IRQ), interrupts.isa(MOUSE_IRQ), power.clone());
        let ranges = [(i8042::DATA, 1), (i8042::COMMAND, 1), (i8042::SYSTEM_CONTROL, 1)];
        attach_at(ports, &ranges, &keyboard)?;
        let pins = shared.iter().map(SharedLine::source);
        let pins = pins.chain((20..ioapic::PINS).map(|pin| interrupts.io_apic.line(pin))).collect();
        let legacy = [interrupts.isa(TIMER_IRQ), interrupts.isa(CLOCK_IRQ)];
        let hpet = Hpet::new((*clock).clone(), HpetLines { pins, legacy });
        memory.insert(hpet::ADDRESS, hpet::LENGTH, 0, hpet.clone())?;
        let vcpus = config.vcpus as u16;
        let fw_cfg = FwCfg::builder()
            .item(fw_cfg::SIGNATURE, b"QEMU".to_vec())
            .item(fw_cfg::ID, 1u32.to_le_bytes().to_vec())
            .item(fw_cfg::RAM_SIZE, (ram.low + ram.high).to_le_bytes().to_vec())
            .item(fw_cfg::CPU_COUNT, vcpus.to_le_bytes().to_vec())
            .item(fw_cfg::MAX_CPUS, vcpus.to_le_bytes().to_vec())
            .build();
        attach_at(ports, &[(fw_cfg::PORTS, fw_cfg::PORT_COUNT)], &fw_cfg)?;
        Ok(PcDevices { keyboard, hpet, fw_cfg })
    }
}

impl InterruptControllers for Interrupts {
    fn acknowledge(&self) -> Option<u8> {
        self.pic.acknowledge()
    }

    fn end_of_interrupt(&self, vector: u8) {
        self.io_apic.end_of_interrupt(vector);
    }
}

/// Puts a device that knows its own port numbers on the bus.
fn attach_at<D: Device + 'static>(
    bus: &Bus,
    ranges: &[(u64, u64)],
    device: &Arc<D>,
) -> Result<(), BusError> {
    ranges.iter().try_for_each(|&(base, length)| bus.insert(base, length, base, device.clone()))
}

fn add_edu(pci: &PciHost, upstream: &Upstream) -> Result<Arc<Edu>, MachineError> {
    let refused = |error: &dyn std::fmt::Display| MachineError::Device(error.to_string());
    let line = pci.interrupt_line(EDU_SLOT);
    let edu = Edu::new(upstream.dma(EDU_SLOT), upstream.messages(EDU_SLOT), line)
        .map_err(|error| refused(&error))?;
    edu.config().set_interrupt_line(acpi::interrupt_of(EDU_SLOT));
    // Test programs have no firmware under them that would have done it.
    edu.config().enable_memory();
    pci.add(EDU_SLOT, edu.clone()).map_err(|error| refused(&error))?;
    Ok(edu)
}
