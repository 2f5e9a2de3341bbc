//! Memory as a device reaches it that accesses it by itself.

use guise_engine::GuestMemory;
use guise_engine::memory::vm_memory::{Bytes, GuestAddress};

/// An access that reached nothing: there is no memory, or an IOMMU forbids it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no memory answers a device at {0:#x}")]
pub struct Unreachable(pub u64);

/// The way from a device to memory. Without an IOMMU it is guest memory itself.
pub trait Dma: Send + Sync {
    /// Fills all of `data`, or fails; what it holds then is not defined.
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Unreachable>;
    /// Writes all of `data`, or fails after some of it.
    fn write(&self, address: u64, data: &[u8]) -> Result<(), Unreachable>;
}

impl Dma for GuestMemory {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Unreachable> {
        self.read_slice(data, GuestAddress(address)).map_err(|_| Unreachable(address))
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), Unreachable> {
        self.write_slice(data, GuestAddress(address)).map_err(|_| Unreachable(address))
    }
}
