//! The DSDT: the PCI root bridge with its windows and interrupt routing, the legacy
//! devices with their ports and interrupts, the panic device, and the sleep state
//! that means "off". The power button is a fixed feature and needs no object.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name,
    Package, PackageBuilder, Path, ResourceTemplate, Scope, ZERO,
};

use super::{Hardware, PCI_INTERRUPTS, tables};
use crate::layout::{DISPLAY_MEMORY, PCI_ECAM, PCI_ECAM_SIZE, PCI_WINDOW_32, PCI_WINDOW_64};

pub fn build(hardware: &Hardware) -> Vec<u8> {
    let mut aml = Vec::new();
    off_state(hardware.ports.off_type, &mut aml);
    pci(&mut aml);
    legacy(hardware, &mut aml);
    tables::dsdt(&aml)
}

/// `\_S5`: what to write to the sleep type field.
fn off_state(off_type: u8, aml: &mut Vec<u8>) {
    let package = Package::new(vec![&off_type, &off_type, &ZERO, &ZERO]);
    Name::new(path("_S5_"), &package).to_aml_bytes(aml);
}

fn pci(aml: &mut Vec<u8>) {
    let not_cacheable = AddressSpaceCacheable::NotCacheable;
    let windows = ResourceTemplate::new(vec![
        &AddressSpace::<u16>::new_bus_number(0, 255),
        &IO::new(0xcf8, 0xcf8, 1, 8),
        &AddressSpace::<u16>::new_io(0, 0xcf7, None),
        &AddressSpace::<u16>::new_io(0xd00, 0xffff, None),
        &AddressSpace::<u32>::new_memory(
            AddressSpaceCacheable::Cacheable,
            true,
            DISPLAY_MEMORY.start as u32,
            DISPLAY_MEMORY.end as u32 - 1,
            None,
        ),
        &AddressSpace::<u32>::new_memory(
            not_cacheable,
            true,
            PCI_WINDOW_32.start as u32,
            PCI_WINDOW_32.end as u32 - 1,
            None,
        ),
        &AddressSpace::<u64>::new_memory(
            AddressSpaceCacheable::Cacheable,
            true,
            PCI_WINDOW_64.start,
            PCI_WINDOW_64.end - 1,
            None,
        ),
    ]);
    let bridge = Device::new(
        path("PCI0"),
        vec![
            &Name::new(path("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(path("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(path("_UID"), &ZERO),
            &Name::new(path("_SEG"), &ZERO),
            &Name::new(path("_BBN"), &ZERO),
            &Name::new(path("_CRS"), &windows),
            &Name::new(path("_PRT"), &interrupt_routing()),
        ],
    );
    // Systems use configuration space in memory only where a device reserves it.
    let ecam = ResourceTemplate::new(vec![&Memory32Fixed::new(
        true,
        PCI_ECAM as u32,
        PCI_ECAM_SIZE as u32,
    )]);
    let reserved = Device::new(
        path("MEM0"),
        vec![
            &Name::new(path("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(path("_UID"), &ZERO),
            &Name::new(path("_CRS"), &ecam),
        ],
    );
    Scope::new(path("_SB_"), vec![&bridge, &reserved]).to_aml_bytes(aml);
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
    let serial = [&IO::new(0x3f8, 0x3f8, 1, 8) as &dyn Aml, &isa_interrupt(4)];
    device("COM1", &EISAName::new("PNP0501"), &serial, aml);
    let clock = [&IO::new(0x70, 0x70, 1, 2) as &dyn Aml, &isa_interrupt(8)];
    device("RTC_", &EISAName::new("PNP0B00"), &clock, aml);
    if hardware.keyboard {
        let keyboard = [
            &IO::new(0x60, 0x60, 1, 1) as &dyn Aml,
            &IO::new(0x64, 0x64, 1, 1),
            &isa_interrupt(1),
        ];
        device("KBD_", &EISAName::new("PNP0303"), &keyboard, aml);
    }
    // The name under which guests know the panic device, whoever made the machine.
    let panic = [&IO::new(hardware.pvpanic, hardware.pvpanic, 1, 1) as &dyn Aml];
    device("PEVT", &"QEMU0001", &panic, aml);
}

/// A device of the system bus that is present and working.
fn device(name: &str, id: &dyn Aml, resources: &[&dyn Aml], aml: &mut Vec<u8>) {
    const PRESENT_AND_WORKING: u8 = 0xf;
    let resources = ResourceTemplate::new(resources.to_vec());
    let device = Device::new(
        path(name),
        vec![
            &Name::new(path("_HID"), id),
            &Name::new(path("_UID"), &ZERO),
            &Name::new(path("_STA"), &PRESENT_AND_WORKING),
            &Name::new(path("_CRS"), &resources),
        ],
    );
    Scope::new(path("_SB_"), vec![&device]).to_aml_bytes(aml);
}

/// Edge-triggered, active high, not shared: as ISA's interrupts are.
fn isa_interrupt(number: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, number)
}

fn path(name: &str) -> Path {
    Path::new(name)
}
