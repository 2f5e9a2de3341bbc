//! The memory map: where RAM, devices and boot data are, on both boards.
//!
//! RAM begins at zero. What does not fit below [`LOW_RAM_END`] continues at 4 GiB, so
//! that devices have the last gigabyte of the first four. Nothing here depends
//! on the host or the engine, or a saved machine could not move.
//!
//! ```text
//! 0x0000_0000  RAM; the first 640 KiB with boot data in free places
//! 0x000a_0000  display memory and option ROMs (not RAM for the guest's drivers)
//! 0x000e_0000  ACPI tables, in RAM that the map calls reserved
//! 0x0010_0000  RAM
//! 0xc000_0000  32-bit window for PCI memory
//! 0xe000_0000  PCI configuration space (ECAM), one bus
//! 0xfec0_0000  I/O APIC
//! 0xfed0_0000  HPET
//! 0xfed9_0000  IOMMU
//! 0xfee0_0000  local APICs, message-signalled interrupts
//! 0x1_0000_0000  the rest of the RAM; at the next gigabyte, what can be added to it
//! 0x40_0000_0000  64-bit window for PCI memory
//! ```

use std::ops::Range;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// RAM below 4 GiB ends here at the latest.
pub const LOW_RAM_END: u64 = 3 * GIB;
/// RAM that does not fit below continues here.
pub const HIGH_RAM_START: u64 = 4 * GIB;

/// The least that a boot protocol and a kernel can do something with.
pub const MIN_MEMORY: u64 = 2 * MIB;
/// Memory is added in pieces that guests can do something with.
pub const ADDABLE_UNIT: u64 = 128 * MIB;
/// High RAM ends below the 64-bit PCI window.
pub const MAX_MEMORY: u64 = PCI_WINDOW_64.start - (HIGH_RAM_START - LOW_RAM_END);

/// RAM that real-mode software may use ends here.
pub const BASE_RAM_END: u64 = 640 * KIB;
/// Display memory: accesses go to devices, not to RAM.
pub const DISPLAY_MEMORY: Range<u64> = 0xa_0000..0xc_0000;
/// Extended RAM starts here.
pub const EXTENDED_RAM_START: u64 = MIB;

pub const PCI_WINDOW_32: Range<u64> = LOW_RAM_END..PCI_ECAM;
pub const PCI_WINDOW_64: Range<u64> = 256 * GIB..512 * GIB;
pub const PCI_ECAM: u64 = 0xe000_0000;
pub const PCI_ECAM_SIZE: u64 = MIB;
pub const PCI_PORTS: Range<u32> = 0x1000..0x1_0000;
pub const IO_APIC: u64 = 0xfec0_0000;
pub const HPET: u64 = 0xfed0_0000;
pub const IOMMU: u64 = 0xfed9_0000;
pub const LOCAL_APIC: u64 = 0xfee0_0000;

/// Boot data, in base RAM and clear of each other. None of it is needed once the
/// kernel has taken over.
pub const BOOT_GDT: u64 = 0x500;
pub const BOOT_INFO: u64 = 0x7000;
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
pub const BOOT_STACK: u64 = 0x8ff0;
pub const COMMAND_LINE: u64 = 0x2_0000;
pub const COMMAND_LINE_ROOM: u64 = 64 * KIB;

/// Base RAM that a kernel with a 32-bit entry may be loaded to: it gets no page tables.
pub const FREE_BASE_RAM: [Range<u64>; 2] =
    [0x8000..COMMAND_LINE, COMMAND_LINE + COMMAND_LINE_ROOM..BASE_RAM_END];

/// ACPI tables; the RSDP comes first, where guests search for it.
pub const ACPI_TABLES: u64 = 0xe_0000;
pub const ACPI_TABLES_ROOM: u64 = 128 * KIB;

/// What a stretch of the guest's physical address space is, for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Ram,
    Reserved,
}

impl Usage {
    /// As e820 and all its descendants number it.
    pub fn e820(self) -> u32 {
        match self {
            Usage::Ram => 1,
            Usage::Reserved => 2,
        }
    }
}

/// A line of the memory map that boot protocols hand to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    pub start: u64,
    pub size: u64,
    pub usage: Usage,
}

/// RAM below and above the hole for devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamLayout {
    pub low: u64,
    pub high: u64,
    /// What can be added while the machine runs. It is not in the guest's map: the device
    /// that adds it tells where it is.
    pub addable: u64,
}

impl RamLayout {
    pub fn new(memory: u64) -> Self {
        let low = memory.min(LOW_RAM_END);
        RamLayout { low, high: memory - low, addable: 0 }
    }

    /// With room for more.
    pub fn with_room(self, addable: u64) -> Self {
        RamLayout { addable, ..self }
    }

    /// Where memory can be added. Guests manage memory in large pieces, none of which is
    /// to have another kind of memory in it.
    pub fn addable_range(self) -> Range<u64> {
        let start = (HIGH_RAM_START + self.high).next_multiple_of(GIB);
        start..start + self.addable
    }

    /// The memory map for the guest, in ascending order.
    pub fn map(self) -> Vec<MapEntry> {
        let entry = |range: Range<u64>, usage| MapEntry {
            start: range.start,
            size: range.end - range.start,
            usage,
        };
        let mut map = vec![
            entry(0..BASE_RAM_END, Usage::Ram),
            entry(BASE_RAM_END..EXTENDED_RAM_START, Usage::Reserved),
            entry(EXTENDED_RAM_START..self.low, Usage::Ram),
            entry(PCI_ECAM..PCI_ECAM + PCI_ECAM_SIZE, Usage::Reserved),
        ];
        if self.high > 0 {
            map.push(entry(HIGH_RAM_START..HIGH_RAM_START + self.high, Usage::Ram));
        }
        map
    }
}

#[cfg(test)]
mod tests;
