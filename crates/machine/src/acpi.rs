//! The ACPI tables: how a guest learns of processors, interrupt wiring, PCI, power.
//!
//! [`Hardware`] says what a board has; [`build`] turns it into bytes that are put at
//! [`layout::ACPI_TABLES`], the RSDP first. Tables of fixed shape are written in
//! [`tables`], the DSDT's AML in [`dsdt`] and [`hotplug`]. There is no SMI port: the machine starts
//! in ACPI mode and stays there.

mod dsdt;
mod hotplug;
mod tables;

use crate::layout::{self, ACPI_TABLES_ROOM};

/// What the tables describe.
#[derive(Clone, Copy, Debug)]
pub struct Hardware {
    pub vcpus: u32,
    pub ports: PowerPorts,
    pub hpet: bool,
    pub iommu: bool,
    /// Ports of the panic device, of the keyboard controller.
    pub pvpanic: u16,
    pub keyboard: bool,
    /// Registers of PCI hot plug.
    pub hotplug: u16,
}

/// Where the power-management registers are, and what to write there.
#[derive(Clone, Copy, Debug)]
pub struct PowerPorts {
    pub pm1_event: u16,
    pub pm1_control: u16,
    pub pm_timer: u16,
    /// General-purpose events.
    pub events: u16,
    pub events_length: u8,
    /// The sleep type that means "off".
    pub off_type: u8,
    pub reset: u16,
    pub reset_value: u8,
}

/// Interrupt of ACPI events, level-triggered, active high.
pub const SCI: u8 = 9;
/// PCI's INTA to INTD, of device 0; each next device is rotated by one.
pub const PCI_INTERRUPTS: [u32; 4] = [16, 17, 18, 19];

/// The I/O APIC's input that INTA# of a device drives.
pub fn interrupt_of(slot: u8) -> u8 {
    PCI_INTERRUPTS[usize::from(slot) % PCI_INTERRUPTS.len()] as u8
}

/// All tables, to be written at [`layout::ACPI_TABLES`].
pub fn build(hardware: &Hardware) -> Vec<u8> {
    let mut image = Image::default();
    image.append(&[0; tables::RSDP_SIZE], 16);
    let facs = image.append(&tables::facs(), 64);
    let dsdt = image.append(&dsdt::build(hardware), 16);
    let mut listed = vec![
        image.append(&tables::fadt(hardware, facs, dsdt), 16),
        image.append(&tables::madt(hardware), 16),
        image.append(&tables::mcfg(), 16),
    ];
    if hardware.hpet {
        listed.push(image.append(&tables::hpet(), 16));
    }
    if hardware.iommu {
        listed.push(image.append(&tables::dmar(), 16));
    }
    let rsdt = image.append(&tables::rsdt(&listed), 16);
    let xsdt = image.append(&tables::xsdt(&listed), 16);
    let rsdp = tables::rsdp(rsdt, xsdt);
    image.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    debug_assert!(image.bytes.len() as u64 <= ACPI_TABLES_ROOM);
    image.bytes
}

#[derive(Default)]
struct Image {
    bytes: Vec<u8>,
}

impl Image {
    /// Adds a table and returns its guest address.
    fn append(&mut self, table: &[u8], alignment: usize) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(alignment), 0);
        let address = layout::ACPI_TABLES as u32 + self.bytes.len() as u32;
        self.bytes.extend_from_slice(table);
        address
    }
}

#[cfg(test)]
mod tests;
