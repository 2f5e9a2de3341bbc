//! Guest RAM: anonymous files, mapped here and handed to the engine.
//!
//! Files, so that another process of the host (a device backend, the receiver of a
//! hand-over) can map the same memory; sparse, so that RAM costs what the
//! guest has touched.

use std::fs::File;
use std::sync::Arc;

use guise_engine::memory::WriteTracker;
use guise_engine::memory::vm_memory::{
    FileOffset, GuestAddress, GuestMemoryRegion as _, GuestRegionMmap, MmapRegion,
    mmap::MmapRegionError,
};
use guise_engine::{GuestMemory, GuestRegion, MemorySlot, Vm};
use rustix::fs::MemfdFlags;

use crate::MachineError;
use crate::layout::{self, GIB, HIGH_RAM_START, MIB, RamLayout};

/// A machine's RAM and where the guest sees it.
pub struct Ram {
    pub memory: GuestMemory,
    pub layout: RamLayout,
    slots: Vec<MemorySlot>,
}

impl Ram {
    /// Makes `size` bytes of RAM, and room for more, after checking that this can be a
    /// machine's.
    pub fn new(size: u64, addable: u64) -> Result<Self, MachineError> {
        check_size(size, host_memory())?;
        let layout = RamLayout::new(size).with_room(addable);
        check_room(size, layout, host_memory())?;
        let mut regions = vec![Arc::new(region(0, layout.low)?)];
        if layout.high > 0 {
            regions.push(Arc::new(region(HIGH_RAM_START, layout.high)?));
        }
        if addable > 0 {
            regions.push(Arc::new(region(layout.addable_range().start, addable)?));
        }
        let slots = slots(layout, &regions);
        let memory = GuestMemory::from_arc_regions(regions)
            .map_err(|error| MachineError::Ram { size, source: std::io::Error::other(error) })?;
        Ok(Ram { memory, layout, slots })
    }

    /// Shows the RAM to an engine's VM.
    pub fn map_into(&self, vm: &dyn Vm) -> Result<(), MachineError> {
        for (number, slot) in self.slots.iter().enumerate() {
            vm.map_memory(number as u32, slot.clone())?;
        }
        Ok(())
    }

    /// The pieces in which the guest sees it, in order of their slot numbers.
    pub fn slots(&self) -> &[MemorySlot] {
        &self.slots
    }
}

/// Refuses what the memory map or this host has no room for.
fn check_size(size: u64, host: u64) -> Result<(), MachineError> {
    let refuse = |reason: String| Err(MachineError::MemorySize { size, reason });
    if size < layout::MIN_MEMORY {
        return refuse(format!("a machine needs {} at least", Size(layout::MIN_MEMORY)));
    }
    if size > layout::MAX_MEMORY {
        return refuse(format!("a machine may have {} at most", Size(layout::MAX_MEMORY)));
    }
    if !size.is_multiple_of(MIB) {
        return refuse("memory comes in whole mebibytes".to_owned());
    }
    if size > host {
        return refuse(format!("this host has {} in all", Size(host)));
    }
    Ok(())
}

/// The same for what can be added.
fn check_room(size: u64, layout: RamLayout, host: u64) -> Result<(), MachineError> {
    let refuse = |reason: String| Err(MachineError::MemorySize { size, reason });
    if !layout.addable.is_multiple_of(layout::ADDABLE_UNIT) {
        let unit = Size(layout::ADDABLE_UNIT);
        return refuse(format!("what can be added to it comes in units of {unit}"));
    }
    let room = layout::PCI_WINDOW_64.start - layout.with_room(0).addable_range().start;
    if layout.addable > room {
        return refuse(format!("a machine may have {} at most", Size(layout::MAX_MEMORY)));
    }
    if size.saturating_add(layout.addable) > host {
        return refuse(format!(
            "with what can be added it is more than this host's {}",
            Size(host)
        ));
    }
    Ok(())
}

/// The host's memory and swap space.
fn host_memory() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram.saturating_add(info.totalswap)).saturating_mul(u64::from(info.mem_unit.max(1)))
}

fn region(address: u64, size: u64) -> Result<GuestRegion, MachineError> {
    let failed = |source| MachineError::Ram { size, source };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("guise-ram", flags)
        .map(File::from)
        .map_err(|error| failed(error.into()))?;
    file.set_len(size).map_err(failed)?;
    let mapping = map(&FileOffset::new(file, 0), size as usize)
        .map_err(|error| failed(std::io::Error::other(error)))?;
    GuestRegionMmap::new(mapping, GuestAddress(address))
        .ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))
}

type Mapping = MmapRegion<WriteTracker>;

/// Maps RAM so that it begins where a large page of the host can, if it is as large as one.
///
/// Kernels map at the end of the highest gap that has room. So something that stays out of use
/// stands there for a moment, as long as the RAM would be too high by. Should that have found
/// room in another gap, this one is not there the next time.
fn map(backing: &FileOffset, size: usize) -> Result<Mapping, MmapRegionError> {
    let mut fillers = Vec::new();
    loop {
        let mapping = build(backing, size, PROT_READ_WRITE)?;
        let too_high = mapping.as_ptr() as usize % LARGE_PAGE;
        if too_high == 0 || size < LARGE_PAGE || fillers.len() == GAPS {
            return Ok(mapping);
        }
        drop(mapping);
        fillers.push(build(backing, too_high, 0)?);
    }
}

fn build(backing: &FileOffset, size: usize, protection: i32) -> Result<Mapping, MmapRegionError> {
    MmapRegion::build(Some(backing.clone()), size, protection, MAP_SHARED_NORESERVE)
}

/// The host's.
const LARGE_PAGE: usize = 2 * MIB as usize;
/// Gaps that are filled to find a good address, at most: RAM elsewhere is slower, not wrong.
const GAPS: usize = 1024;

const PROT_READ_WRITE: i32 =
    (rustix::mm::ProtFlags::READ.bits() | rustix::mm::ProtFlags::WRITE.bits()) as i32;
const MAP_SHARED_NORESERVE: i32 =
    (rustix::mm::MapFlags::SHARED.bits() | rustix::mm::MapFlags::NORESERVE.bits()) as i32;

/// Low RAM is in two pieces, so that accesses to display memory reach devices.
fn slots(layout: RamLayout, regions: &[Arc<GuestRegion>]) -> Vec<MemorySlot> {
    let slot = |start: u64, end: u64, region: &Arc<GuestRegion>, base: u64| MemorySlot {
        guest_address: start,
        region: region.clone(),
        offset: start - base,
        size: end - start,
        read_only: false,
    };
    let display = layout::DISPLAY_MEMORY;
    let mut slots =
        vec![slot(0, display.start, &regions[0], 0), slot(display.end, layout.low, &regions[0], 0)];
    for region in &regions[1..] {
        let start = region.start_addr().0;
        slots.push(slot(start, start + region.len(), region, start));
    }
    slots
}

/// Prints a size with the largest unit that it is a multiple of.
pub(crate) struct Size(pub u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Size(bytes) = *self;
        if bytes >= GIB {
            let tenths = bytes * 10 / GIB;
            match tenths % 10 {
                0 => write!(f, "{} GiB", tenths / 10),
                tenth => write!(f, "{}.{tenth} GiB", tenths / 10),
            }
        } else if bytes >= MIB {
            write!(f, "{} MiB", bytes / MIB)
        } else {
            write!(f, "{} KiB", bytes.div_ceil(1024))
        }
    }
}

#[cfg(test)]
mod tests;
