//! PVH, Xen's boot protocol for guests without firmware: an ELF note gives a 32-bit
//! entry, and EBX points at a start-of-day structure.

use super::{BootError, Entry, Job, place};
use crate::layout::BOOT_INFO;

/// XEN_ELFNOTE_PHYS32_ENTRY.
const NOTE_PHYS32_ENTRY: u32 = 18;
const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const START_INFO_SIZE: u64 = 56;
const MODULE_SIZE: u64 = 32;
const COMMAND_LINE_LIMIT: u64 = 2047;
const INITRD_LIMIT: u64 = 1 << 32;

/// The entry, if this note of an ELF file is the one that holds it.
pub fn entry_in(name: &[u8], kind: u32, description: &[u8]) -> Option<u32> {
    if name.strip_suffix(b"\0").unwrap_or(name) != b"Xen" || kind != NOTE_PHYS32_ENTRY {
        return None;
    }
    // Some kernels store the address in 8 bytes.
    let low = description.first_chunk::<4>()?;
    description[4..].iter().all(|byte| *byte == 0).then(|| u32::from_le_bytes(*low))
}

/// Writes the structure for a kernel that has been loaded.
pub fn start(mut job: Job, entry: u32, kernel_end: u64) -> Result<Entry, BootError> {
    let target = job.target;
    let initrd = job.initrd.take();
    let initrd = initrd.map(|initrd| initrd.load(target, kernel_end, INITRD_LIMIT)).transpose()?;
    let command_line = job.write_command_line(job.command_line, COMMAND_LINE_LIMIT)?;
    let map = target.ram.map();
    let modules = BOOT_INFO + START_INFO_SIZE;
    let map_address = modules + MODULE_SIZE;

    let mut bytes = Vec::new();
    for field in [MAGIC, VERSION, 0, u32::from(initrd.is_some())] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    let module_list = if initrd.is_some() { modules } else { 0 };
    for field in [module_list, command_line, target.rsdp, map_address] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    for field in [map.len() as u32, 0] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    let (address, size) = initrd.unwrap_or_default();
    for field in [address, size, 0, 0] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    for line in map {
        bytes.extend_from_slice(&line.start.to_le_bytes());
        bytes.extend_from_slice(&line.size.to_le_bytes());
        bytes.extend_from_slice(&u64::from(line.usage.e820()).to_le_bytes());
    }
    place::write(target, "the PVH start information", BOOT_INFO, &bytes)?;
    Ok(Entry::Protected { eip: entry, eax: 0, ebx: BOOT_INFO as u32 })
}
