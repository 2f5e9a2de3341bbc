//! PCI: functions, their configuration spaces, MSI and MSI-X, and the host bridge.
//!
//! - [`function`]: what the bus asks of a function, [`PciFunction`];
//! - [`config`]: a type 0 configuration space that functions are made with;
//! - [`msi`]: one message in configuration space;
//! - [`msix`]: the MSI-X table and pending bits;
//! - [`host`]: the host bridge with its two ways into configuration space, slots,
//!   address windows and INTx lines;
//! - [`hotplug`]: registers by which ACPI tells the guest of slots.

pub mod config;
pub mod function;
pub mod host;
pub mod hotplug;
pub mod msi;
pub mod msix;

pub use config::{Bar, BarKind, ConfigSpace, Identity};
pub use function::PciFunction;
pub use host::{PciHost, PciWindows, SlotError};
pub use hotplug::PciHotplug;
pub use msi::MsiCapability;
pub use msix::Msix;
