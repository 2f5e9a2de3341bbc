//! How a driver reaches a device: virtio over PCI.

mod common;
mod interrupt;
mod pci;

pub use interrupt::Interrupt;
pub use pci::{VirtioPci, VirtioPciState};

#[cfg(test)]
pub(crate) mod guest;
