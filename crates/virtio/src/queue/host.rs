//! A chain's pieces as memory of this process, for system calls that move data without a
//! copy.

use guise_engine::GuestMemory;
use guise_engine::memory::vm_memory::bitmap::Bitmap;
use guise_engine::memory::vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MmapRegion,
};

use super::QueueError;
use super::chain::Segment;

/// Adds to a list where the pieces are. The addresses are good for as long as the guest
/// memory lives.
pub fn stretches(
    memory: &GuestMemory,
    data: impl Iterator<Item = Segment>,
    list: &mut Vec<libc::iovec>,
) -> Result<(), QueueError> {
    for segment in data {
        let (address, length) = (GuestAddress(segment.address), segment.length as usize);
        if length == 0 {
            continue;
        }
        // Nearly all lie in one region.
        if let Some((region, at)) = memory.to_region_addr(address)
            && region.len() - at.0 >= length as u64
            && let Ok(start) = region.get_host_address(at)
        {
            list.push(libc::iovec { iov_base: start.cast(), iov_len: length });
            continue;
        }
        for slice in memory.get_slices(address, length) {
            let slice = slice.map_err(|_| QueueError::Memory(segment.address))?;
            let guard = slice.ptr_guard_mut();
            list.push(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() });
        }
    }
    Ok(())
}

/// Tells whoever asks that somebody has written there.
pub fn mark(memory: &GuestMemory, data: impl Iterator<Item = Segment>) {
    for segment in data {
        let (address, length) = (GuestAddress(segment.address), segment.length as usize);
        if let Some((region, at)) = memory.to_region_addr(address)
            && region.len() - at.0 >= length as u64
        {
            MmapRegion::bitmap(region).mark_dirty(at.0 as usize, length);
            continue;
        }
        for slice in memory.get_slices(address, length) {
            // They were there when the request began, and memory does not go.
            let Ok(slice) = slice else { continue };
            slice.bitmap().mark_dirty(0, slice.len());
        }
    }
}
