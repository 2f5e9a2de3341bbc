//! A chain's pieces as memory of this process, for system calls that move data without a
//! copy.

use guise_engine::GuestMemory;
use guise_engine::memory::vm_memory::bitmap::Bitmap;
use guise_engine::memory::vm_memory::volatile_memory::PtrGuardMut;
use guise_engine::memory::vm_memory::{GuestAddress, GuestMemoryBackend};

use super::QueueError;
use super::chain::Segment;

/// Where the pieces are. The addresses are good for as long as the guest memory lives.
pub fn stretches(memory: &GuestMemory, data: &[Segment]) -> Result<Vec<libc::iovec>, QueueError> {
    let mut stretches = Vec::with_capacity(data.len());
    let mut add = |guard: &PtrGuardMut| {
        stretches.push(libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() });
    };
    for segment in data {
        let (address, length) = (GuestAddress(segment.address), segment.length as usize);
        if length == 0 {
            continue;
        }
        // Nearly all lie in one region.
        if let Ok(slice) = memory.get_slice(address, length) {
            add(&slice.ptr_guard_mut());
            continue;
        }
        for slice in memory.get_slices(address, length) {
            let slice = slice.map_err(|_| QueueError::Memory(segment.address))?;
            add(&slice.ptr_guard_mut());
        }
    }
    Ok(stretches)
}

/// Tells whoever asks that somebody has written there.
pub fn mark(memory: &GuestMemory, data: &[Segment]) {
    for segment in data {
        let (address, length) = (GuestAddress(segment.address), segment.length as usize);
        if let Ok(slice) = memory.get_slice(address, length) {
            slice.bitmap().mark_dirty(0, slice.len());
            continue;
        }
        for slice in memory.get_slices(address, length) {
            // They were there when the request began, and memory does not go.
            let Ok(slice) = slice else { continue };
            slice.bitmap().mark_dirty(0, slice.len());
        }
    }
}
