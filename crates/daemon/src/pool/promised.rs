//! What instances' disks may yet grow by.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use guise_api::{Guise, Instance};
use guise_worker::job::DEFAULT_DISK;
use guise_worker::place::{OWN_DISK, Place, UPPER, VM_DISK, WRITES_DISK, open_strangers};

/// What a file of so many bytes can grow by, of which it has some.
fn rest(file: &Path, size: impl FnOnce(&fs::Metadata) -> Option<u64>) -> Option<u64> {
    const SECTOR: u64 = 512;
    let found = fs::symlink_metadata(file).ok()?;
    let size = size(&found)?;
    Some(size.saturating_sub(found.blocks().saturating_mul(SECTOR)))
}

/// The size of the disk that a qcow2 file is: what its guest can fill.
fn disk_size(file: &Path) -> Option<u64> {
    const MAGIC: &[u8] = b"QFI\xfb";
    let mut header = [0; 32];
    open_strangers(file).ok()?.read_exact(&mut header).ok()?;
    let size = header[24..32].try_into().ok().map(u64::from_be_bytes);
    size.filter(|_| header.starts_with(MAGIC))
}

/// What an instance may yet write to disks of its own. One without a limit is promised nothing.
pub fn to(instance: &Instance, place: &Place) -> u64 {
    let whole = |file: &Path| rest(file, |found| Some(found.len()));
    let disk = place.kept().join(VM_DISK);
    whole(&place.state.join(OWN_DISK))
        .or_else(|| whole(&place.kept().join(WRITES_DISK)))
        .or_else(|| rest(&disk, |_| disk_size(&disk)))
        .unwrap_or_else(|| {
            if place.state.join(UPPER).exists() {
                return 0;
            }
            // It has not run yet.
            let said = instance.spec.resources.disk_bytes;
            match instance.status.guise {
                Guise::Microvm => said.unwrap_or(DEFAULT_DISK),
                Guise::Vm if instance.spec.disk().is_none() => said.unwrap_or(DEFAULT_DISK),
                _ => said.unwrap_or(0),
            }
        })
}

#[cfg(test)]
mod tests;
