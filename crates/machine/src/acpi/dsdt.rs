//! The DSDT: the PCI root bridge with its windows and interrupt routing, the legacy
//! devices with their ports and interrupts, the panic device, and the sleep state
//! that means "off". The power button is a fixed feature and needs no object.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name,
    Package, PackageBuilder, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use super::{Hardware, PCI_INTERRUPTS, hotplug, tables};
use crate::layout::{DISPLAY_MEMORY, PCI_ECAM, PCI_ECAM_SIZE, PCI_WINDOW_32, PCI_WINDOW_64};

pub fn build(hardware: &Hardware) -> Vec<u8> {
    let mut aml = Vec::new();
    off_state(hardware.ports.off_type, &mut aml);
    pci_root(&mut aml);
    hotplug::build(hardware.hotplug, &mut aml);
    legacy(hardware, &mut aml);
    tables::dsdt(&aml)
}

/// AML that has been serialised. Objects borrow their children; bytes do not.
pub(super) struct Serialised(Vec<u8>);

impl Serialised {
    pub(super) fn new(object: &dyn Aml) -> Self {
        let mut bytes = Vec::new();
        object.to_aml_bytes(&mut bytes);
        Serialised(bytes)
    }
}

impl Aml for Serialised {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// `\_S5`: what to write to the sleep type field.
fn off_state(off_type: u8, aml: &mut Vec<u8>) {
    let package = Package::new(vec![&off_type, &off_type, &ZERO, &ZERO]);
    name("_S5_", &package).to_aml_bytes(aml);
}

fn pci_root(aml: &mut Vec<u8>) {
    let memory = |range: &std::ops::Range<u64>, cacheable| {
        AddressSpace::new_memory(cacheable, true, range.start as u32, range.end as u32 - 1, None)
    };
    let cacheable = AddressSpaceCacheable::Cacheable;
    let windows = resources(&[
        &AddressSpace::<u16>::new_bus_number(0, 0),
        &IO::new(0xcf8, 0xcf8, 1, 8),
        &AddressSpace::<u16>::new_io(0, 0xcf7, None),
        &AddressSpace::<u16>::new_io(0xd00, 0xffff, None),
        &memory(&DISPLAY_MEMORY, cacheable),
        &memory(&PCI_WINDOW_32, AddressSpaceCacheable::NotCacheable),
        &AddressSpace::<u64>::new_memory(
            cacheable,
            true,
            PCI_WINDOW_64.start,
            PCI_WINDOW_64.end - 1,
            None,
        ),
    ]);
    system_device(
        "PCI0",
        &[
            &name("_HID", &EISAName::new("PNP0A08")),
            &name("_CID", &EISAName::new("PNP0A03")),
            &name("_UID", &ZERO),
            &name("_SEG", &ZERO),
            &name("_BBN", &ZERO),
            &name("_CRS", &windows),
            &name("_PRT", &interrupt_routing()),
        ],
        aml,
    );
    // Systems use configuration space in memory only where a device reserves it.
    let ecam = resources(&[&Memory32Fixed::new(true, PCI_ECAM as u32, PCI_ECAM_SIZE as u32)]);
    system_device(
        "MEM0",
        &[&name("_HID", &EISAName::new("PNP0C02")), &name("_UID", &ZERO), &name("_CRS", &ecam)],
        aml,
    );
}

/// For each device on bus 0 and each of its pins, the I/O APIC's input.
fn interrupt_routing() -> PackageBuilder {
    let mut routes = PackageBuilder::new();
    for device in 0..32u32 {
        for pin in 0..4u32 {
            let address = device << 16 | 0xffff;
            let input = PCI_INTERRUPTS[((device + pin) % 4) as usize];
            routes.add_element(&Package::new(vec![&address, &(pin as u8), &ZERO, &input]));
        }
    }
    routes
}

/// Devices at fixed ports.
fn legacy(hardware: &Hardware, aml: &mut Vec<u8>) {
    let com1 = resources(&[&IO::new(0x3f8, 0x3f8, 1, 8), &isa_interrupt(4)]);
    legacy_device("COM1", &EISAName::new("PNP0501"), &com1, aml);
    let clock = resources(&[&IO::new(0x70, 0x70, 1, 2), &isa_interrupt(8)]);
    legacy_device("RTC_", &EISAName::new("PNP0B00"), &clock, aml);
    if hardware.keyboard {
        let keyboard =
            resources(&[&IO::new(0x60, 0x60, 1, 1), &IO::new(0x64, 0x64, 1, 1), &isa_interrupt(1)]);
        legacy_device("KBD_", &EISAName::new("PNP0303"), &keyboard, aml);
    }
    // The name under which guests know the panic device, whoever made the machine.
    let panic = resources(&[&IO::new(hardware.pvpanic, hardware.pvpanic, 1, 1)]);
    legacy_device("PEVT", &"QEMU0001", &panic, aml);
}

fn legacy_device(label: &str, id: &dyn Aml, resources: &dyn Aml, aml: &mut Vec<u8>) {
    const PRESENT_AND_WORKING: u8 = 0xf;
    system_device(
        label,
        &[
            &name("_HID", id),
            &name("_UID", &ZERO),
            &name("_STA", &PRESENT_AND_WORKING),
            &name("_CRS", resources),
        ],
        aml,
    );
}

/// A device of the system bus.
fn system_device(label: &str, children: &[&dyn Aml], aml: &mut Vec<u8>) {
    let device = Device::new(Path::new(label), children.to_vec());
    Scope::new(Path::new("_SB_"), vec![&device]).to_aml_bytes(aml);
}

fn resources(descriptors: &[&dyn Aml]) -> Serialised {
    Serialised::new(&ResourceTemplate::new(descriptors.to_vec()))
}

/// Edge-triggered, active high, not shared: as ISA's interrupts are.
fn isa_interrupt(number: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, number)
}

fn name(label: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(label), value)
}
