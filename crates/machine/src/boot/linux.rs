//! Linux's boot parameters: the "zero page" that its 64-bit entry finds behind RSI.
//!
//! Offsets are those of the kernel's documentation, "The Linux/x86 Boot Protocol".

use super::{BootError, Target, place};
use crate::layout::BOOT_INFO;

const SIZE: usize = 4096;
const ACPI_RSDP: usize = 0x070;
const EXT_RAMDISK_IMAGE: usize = 0x0c0;
const EXT_RAMDISK_SIZE: usize = 0x0c4;
const EXT_COMMAND_LINE: usize = 0x0c8;
const E820_ENTRIES: usize = 0x1e8;
pub const SETUP_HEADER: usize = 0x1f1;
const TYPE_OF_LOADER: usize = 0x210;
const LOAD_FLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const COMMAND_LINE: usize = 0x228;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_SIZE: usize = 20;
const E820_MAX: usize = 128;

/// "Undefined" in the registry of boot loaders.
const LOADER_UNDEFINED: u8 = 0xff;
const LOADED_HIGH: u8 = 1 << 0;

/// What the kernel is told.
pub struct Parameters<'a> {
    /// The setup header of a bzImage, from [`SETUP_HEADER`] on; nothing for an ELF
    /// file, which has none.
    pub header: &'a [u8],
    pub command_line: u64,
    pub initrd: Option<(u64, u64)>,
}

impl Parameters<'_> {
    /// Writes the zero page and returns its address.
    pub fn write(&self, target: &Target) -> Result<u64, BootError> {
        let mut page = [0; SIZE];
        page[SETUP_HEADER..SETUP_HEADER + self.header.len()].copy_from_slice(self.header);
        if self.header.is_empty() {
            page[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
            page[0x202..0x206].copy_from_slice(b"HdrS");
            page[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        }
        page[TYPE_OF_LOADER] = LOADER_UNDEFINED;
        page[LOAD_FLAGS] |= LOADED_HIGH;
        put_split(&mut page, COMMAND_LINE, EXT_COMMAND_LINE, self.command_line);
        if let Some((address, size)) = self.initrd {
            put_split(&mut page, RAMDISK_IMAGE, EXT_RAMDISK_IMAGE, address);
            put_split(&mut page, RAMDISK_SIZE, EXT_RAMDISK_SIZE, size);
        }
        page[ACPI_RSDP..ACPI_RSDP + 8].copy_from_slice(&target.rsdp.to_le_bytes());
        let map = target.ram.map();
        for (index, entry) in map.iter().take(E820_MAX).enumerate() {
            let at = E820_TABLE + index * E820_ENTRY_SIZE;
            page[at..at + 8].copy_from_slice(&entry.start.to_le_bytes());
            page[at + 8..at + 16].copy_from_slice(&entry.size.to_le_bytes());
            page[at + 16..at + 20].copy_from_slice(&entry.usage.e820().to_le_bytes());
        }
        page[E820_ENTRIES] = map.len().min(E820_MAX) as u8;
        place::write(target, "the boot parameters", BOOT_INFO, &page)?;
        Ok(BOOT_INFO)
    }
}

/// Writes a value whose two halves are in different places.
fn put_split(page: &mut [u8], low: usize, high: usize, value: u64) {
    page[low..low + 4].copy_from_slice(&(value as u32).to_le_bytes());
    page[high..high + 4].copy_from_slice(&((value >> 32) as u32).to_le_bytes());
}
