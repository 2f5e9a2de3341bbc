//! Giving guest memory back to the host.

use guise_engine::GuestMemory;
use guise_engine::memory::vm_memory::bitmap::Bitmap;
use guise_engine::memory::vm_memory::{GuestAddress, GuestMemoryBackend};
use rustix::io::Errno;
use rustix::mm::{Advice, madvise};

/// The unit of the protocol, whatever the guest's pages are.
pub const PAGE: u64 = 4096;

/// Page numbers as stretches of memory: address and length.
pub fn runs(mut numbers: Vec<u32>) -> Vec<(u64, u64)> {
    numbers.sort_unstable();
    numbers.dedup();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        let address = u64::from(number) * PAGE;
        match runs.last_mut() {
            Some((start, length)) if *start + *length == address => *length += PAGE,
            _ => runs.push((address, PAGE)),
        }
    }
    runs
}

/// Lets the host have the whole pages of a stretch; they read as zeros afterwards. What
/// is not guest memory is left out.
pub fn release(memory: &GuestMemory, address: u64, length: u64) {
    let Some(end) = address.checked_add(length) else { return };
    let (Some(start), end) = (address.checked_next_multiple_of(PAGE), end & !(PAGE - 1)) else {
        return;
    };
    if start >= end {
        return;
    }
    for slice in memory.get_slices(GuestAddress(start), (end - start) as usize) {
        let Ok(slice) = slice else { return };
        let guard = slice.ptr_guard_mut();
        // SAFETY: the stretch is a part of a mapping of guest memory, which is only ever
        // accessed through pointers that allow for changes by others; that it turns into
        // zeros is one. The mapping itself stays.
        let result = unsafe { madvise(guard.as_ptr().cast(), guard.len(), Advice::LinuxRemove) };
        let result = match result {
            // Memory that no file is behind is forgotten another way.
            // SAFETY: as above.
            Err(Errno::INVAL) => unsafe {
                madvise(guard.as_ptr().cast(), guard.len(), Advice::LinuxDontNeed)
            },
            result => result,
        };
        if let Err(error) = result {
            tracing::debug!(%error, "the host does not take guest memory back");
        }
        slice.bitmap().mark_dirty(0, slice.len());
    }
}
