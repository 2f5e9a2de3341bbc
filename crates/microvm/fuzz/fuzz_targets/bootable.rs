//! Disks as any guest may leave them: partitions, file systems, journals, kernels and what GRUB
//! was told.
#![no_main]

use guise_microvm::bootable::probe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|pieces: &[u8]| {
    let _ = probe(pieces);
});
