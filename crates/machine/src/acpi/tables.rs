//! ACPI's tables of fixed shape. Offsets are those of the ACPI specification, 6.5.

use acpi_tables::sdt::Sdt;
use guise_devices::iommu;

use super::{Hardware, SCI};
use crate::layout::{HPET, IO_APIC, IOMMU, LOCAL_APIC, PCI_ECAM};

pub const RSDP_SIZE: usize = 36;
const OEM: [u8; 6] = *b"GUISE ";
const OEM_TABLE: [u8; 8] = *b"GUISE   ";
const OEM_REVISION: u32 = 1;
const HEADER: u32 = 36;

/// The root pointer, which guests search for in 16-byte steps.
pub fn rsdp(rsdt: u32, xsdt: u32) -> [u8; RSDP_SIZE] {
    let mut bytes = [0; RSDP_SIZE];
    bytes[..8].copy_from_slice(b"RSD PTR ");
    bytes[9..15].copy_from_slice(&OEM);
    bytes[15] = 2;
    bytes[16..20].copy_from_slice(&rsdt.to_le_bytes());
    bytes[20..24].copy_from_slice(&(RSDP_SIZE as u32).to_le_bytes());
    bytes[24..32].copy_from_slice(&u64::from(xsdt).to_le_bytes());
    // The first checksum covers what ACPI 1.0 knew of.
    bytes[8] = checksum(&bytes[..20]);
    bytes[32] = checksum(&bytes);
    bytes
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn table(signature: [u8; 4], length: u32, revision: u8) -> Sdt {
    Sdt::new(signature, length, revision, OEM, OEM_TABLE, OEM_REVISION)
}

/// A DSDT around AML that has been serialised.
pub fn dsdt(aml: &[u8]) -> Vec<u8> {
    let mut table = table(*b"DSDT", HEADER, 2);
    table.append_slice(aml);
    table.as_slice().to_vec()
}

pub fn facs() -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..4].copy_from_slice(b"FACS");
    bytes[4..8].copy_from_slice(&64u32.to_le_bytes());
    bytes[32] = 2;
    bytes
}

pub fn rsdt(tables: &[u32]) -> Vec<u8> {
    let mut root = table(*b"RSDT", HEADER, 1);
    for address in tables {
        root.append_slice(&address.to_le_bytes());
    }
    root.as_slice().to_vec()
}

pub fn xsdt(tables: &[u32]) -> Vec<u8> {
    let mut root = table(*b"XSDT", HEADER, 1);
    for address in tables {
        root.append_slice(&u64::from(*address).to_le_bytes());
    }
    root.as_slice().to_vec()
}

/// Fixed features: power management registers, reset, legacy devices.
pub fn fadt(hardware: &Hardware, facs: u32, dsdt: u32) -> Vec<u8> {
    const LENGTH: u32 = 276;
    const WBINVD: u32 = 1 << 0;
    const C1: u32 = 1 << 2;
    const NO_FIXED_SLEEP_BUTTON: u32 = 1 << 5;
    const NO_FIXED_RTC_WAKE: u32 = 1 << 6;
    const TIMER_32_BIT: u32 = 1 << 8;
    const RESET_REGISTER: u32 = 1 << 10;
    const LEGACY_DEVICES: u16 = 1 << 0;
    const KEYBOARD_CONTROLLER: u16 = 1 << 1;
    const NO_VGA: u16 = 1 << 2;
    const NO_ASPM: u16 = 1 << 4;
    /// Latencies above the limits say that there are no C2 and C3 states.
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;

    let ports = &hardware.ports;
    let mut table = table(*b"FACP", LENGTH, 6);
    table.write_u32(36, facs);
    table.write_u32(40, dsdt);
    table.write_u16(46, u16::from(SCI));
    table.write_u32(56, u32::from(ports.pm1_event));
    table.write_u32(64, u32::from(ports.pm1_control));
    table.write_u32(76, u32::from(ports.pm_timer));
    table.write_u32(80, u32::from(ports.events));
    table.write_u8(88, 4);
    table.write_u8(89, 2);
    table.write_u8(91, 4);
    table.write_u8(92, ports.events_length);
    table.write_u16(96, NO_C2);
    table.write_u16(98, NO_C3);
    // The RTC's century is in this byte of CMOS memory.
    table.write_u8(108, 0x32);
    let keyboard = if hardware.keyboard { KEYBOARD_CONTROLLER } else { 0 };
    table.write_u16(109, LEGACY_DEVICES | keyboard | NO_VGA | NO_ASPM);
    let flags =
        WBINVD | C1 | NO_FIXED_SLEEP_BUTTON | NO_FIXED_RTC_WAKE | TIMER_32_BIT | RESET_REGISTER;
    table.write_u32(112, flags);
    table.write_bytes(116, &port_register(ports.reset, 8));
    table.write_u8(128, ports.reset_value);
    table.write_u8(131, 5);
    table.write_u64(140, u64::from(dsdt));
    table.write_bytes(148, &port_register(ports.pm1_event, 32));
    table.write_bytes(172, &port_register(ports.pm1_control, 16));
    table.write_bytes(208, &port_register(ports.pm_timer, 32));
    table.write_bytes(220, &port_register(ports.events, ports.events_length * 8));
    table.as_slice().to_vec()
}

/// A generic address structure for a register in port space.
fn port_register(port: u16, bits: u8) -> [u8; 12] {
    let access = match bits {
        8 => 1,
        16 => 2,
        _ => 3,
    };
    let mut bytes = [1, bits, 0, access, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes[4..6].copy_from_slice(&port.to_le_bytes());
    bytes
}

/// Interrupt controllers: local APICs, the I/O APIC, and where ISA interrupts go.
pub fn madt(hardware: &Hardware) -> Vec<u8> {
    const HAS_8259: u32 = 1;
    const LOCAL_APIC_ENTRY: u8 = 0;
    const IO_APIC_ENTRY: u8 = 1;
    const OVERRIDE_ENTRY: u8 = 2;
    const LOCAL_NMI_ENTRY: u8 = 4;
    const ACTIVE_HIGH_LEVEL: u16 = 0b1101;

    let mut table = table(*b"APIC", 44, 4);
    table.write_u32(36, LOCAL_APIC as u32);
    table.write_u32(40, HAS_8259);
    for vcpu in 0..hardware.vcpus as u8 {
        table.append_slice(&[LOCAL_APIC_ENTRY, 8, vcpu, vcpu, 1, 0, 0, 0]);
    }
    let [a, b, c, d] = (IO_APIC as u32).to_le_bytes();
    table.append_slice(&[IO_APIC_ENTRY, 12, 0, 0, a, b, c, d, 0, 0, 0, 0]);
    // The timer is wired to input 2, as on every PC.
    table.append_slice(&[OVERRIDE_ENTRY, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    let [low, high] = ACTIVE_HIGH_LEVEL.to_le_bytes();
    table.append_slice(&[OVERRIDE_ENTRY, 10, 0, SCI, SCI, 0, 0, 0, low, high]);
    // NMIs come in at LINT1 of every processor.
    table.append_slice(&[LOCAL_NMI_ENTRY, 6, 0xff, 0, 0, 1]);
    table.as_slice().to_vec()
}

/// Where PCI's configuration space is in memory.
pub fn mcfg() -> Vec<u8> {
    let mut table = table(*b"MCFG", 60, 1);
    table.write_u64(44, PCI_ECAM);
    // Segment 0, bus 0 and no other.
    table.write_bytes(52, &[0, 0, 0, 0]);
    table.as_slice().to_vec()
}

pub fn hpet() -> Vec<u8> {
    /// Vendor Intel, legacy replacement, 64-bit counter, three comparators.
    const BLOCK_ID: u32 = 0x8086_a201;
    let mut table = table(*b"HPET", 56, 1);
    table.write_u32(36, BLOCK_ID);
    table.write_bytes(40, &[0, 64, 0, 0]);
    table.write_u64(44, HPET);
    table.as_slice().to_vec()
}

/// DMA remapping: one unit for all of PCI, and for the I/O APIC.
pub fn dmar() -> Vec<u8> {
    const ADDRESS_BITS: u8 = 48;
    const REMAPS_INTERRUPTS: u8 = 1;
    const INCLUDES_ALL_OF_PCI: u8 = 1;
    const SCOPE_IO_APIC: u8 = 3;
    const SCOPE_LENGTH: u8 = 8;
    const UNIT_LENGTH: u8 = 16 + SCOPE_LENGTH;

    let mut table = table(*b"DMAR", 48, 1);
    table.write_bytes(36, &[ADDRESS_BITS - 1, REMAPS_INTERRUPTS]);
    // Type 0, a unit; segment 0.
    table.append_slice(&[0, 0, UNIT_LENGTH, 0, INCLUDES_ALL_OF_PCI, 0, 0, 0]);
    table.append_slice(&IOMMU.to_le_bytes());
    // The I/O APIC has the id that the MADT gives it; its requests come from there.
    let iommu::RequesterId { bus, device, function } = iommu::IO_APIC;
    table.append_slice(&[SCOPE_IO_APIC, SCOPE_LENGTH, 0, 0, 0, bus, device, function]);
    table.as_slice().to_vec()
}
