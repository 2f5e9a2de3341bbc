//! Putting bytes into guest RAM, with errors that say what did not fit.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use guise_engine::memory::vm_memory::{Bytes as _, GuestAddress};

use super::{BootError, Target};
use crate::layout::EXTENDED_RAM_START;
use crate::memory::Size;

const PAGE: u64 = 4096;

/// Writes bytes at an address of low RAM.
pub fn write(
    target: &Target,
    what: &'static str,
    address: u64,
    bytes: &[u8],
) -> Result<(), BootError> {
    check(target, what, address, bytes.len() as u64)?;
    target.memory.write_slice(bytes, GuestAddress(address)).map_err(|_| {
        let end = address.saturating_add(bytes.len() as u64);
        BootError::DoesNotFit { what, end, ram: target.ram.low }
    })
}

/// Refuses a range that is not all in low RAM.
pub fn check(
    target: &Target,
    what: &'static str,
    address: u64,
    length: u64,
) -> Result<(), BootError> {
    let end = address.saturating_add(length);
    if end > target.ram.low {
        return Err(BootError::DoesNotFit { what, end, ram: target.ram.low });
    }
    Ok(())
}

/// Fills a range of low RAM with zeros.
pub fn clear(
    target: &Target,
    what: &'static str,
    address: u64,
    length: u64,
) -> Result<(), BootError> {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    check(target, what, address, length)?;
    let mut done = 0;
    while done < length {
        let step = (length - done).min(ZEROS.len() as u64);
        write(target, what, address + done, &ZEROS[..step as usize])?;
        done += step;
    }
    Ok(())
}

/// An initial RAM disk (or a multiboot module) that has not been read yet.
pub struct Initrd {
    path: PathBuf,
    content: Box<dyn Read>,
    size: u64,
}

impl Initrd {
    pub fn open(path: &Path) -> Result<Self, BootError> {
        let unreadable = |source| BootError::Unreadable { path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(unreadable(std::io::Error::other("it is not a regular file")));
        }
        Ok(Initrd { path: path.to_owned(), content: Box::new(file), size: metadata.len() })
    }

    #[cfg(test)]
    pub fn from_bytes(bytes: &'static [u8]) -> Self {
        Initrd { path: "initrd".into(), content: Box::new(bytes), size: bytes.len() as u64 }
    }

    /// Reads it to the highest place below `limit` that keeps clear of the kernel,
    /// and returns its address and length.
    pub fn load(
        mut self,
        target: &Target,
        kernel_end: u64,
        limit: u64,
    ) -> Result<(u64, u64), BootError> {
        let top = target.ram.low.min(limit) / PAGE * PAGE;
        let bottom = kernel_end.max(EXTENDED_RAM_START).next_multiple_of(PAGE);
        let room = top.saturating_sub(bottom);
        if self.size > room {
            return Err(BootError::InitrdTooLarge {
                path: self.path,
                size: Size(self.size).to_string(),
                room: Size(room).to_string(),
            });
        }
        let address = top - self.size.next_multiple_of(PAGE).min(room);
        let mut buffer = vec![0; 1 << 20];
        let mut done = 0;
        while done < self.size {
            let step = (self.size - done).min(buffer.len() as u64) as usize;
            self.content
                .read_exact(&mut buffer[..step])
                .map_err(|source| BootError::Unreadable { path: self.path.clone(), source })?;
            write(target, "the initrd", address + done, &buffer[..step])?;
            done += step as u64;
        }
        Ok((address, self.size))
    }
}
