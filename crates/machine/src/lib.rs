//! A whole machine: RAM, processors, a board with devices, and what runs them.

mod acpi;
pub mod boot;
mod error;
pub mod layout;
mod memory;

pub use error::MachineError;
