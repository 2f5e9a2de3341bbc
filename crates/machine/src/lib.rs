//! A whole machine: RAM, processors, a board with devices, and what runs them.
//!
//! - [`machine`]: what holds it all together, from the making to the end;
//! - [`layout`] and `memory`: where things are, and the RAM;
//! - [`boot`]: kernels, initial RAM disks, and the protocols that start them;
//! - `board`: which devices there are and how they are wired; `acpi` tells the guest;
//! - `expansion`: virtio devices besides the board's;
//! - `upstream`: what is between PCI functions and the rest, an IOMMU for instance;
//! - `control` and `vcpu`: the vCPUs' threads, and who tells them to run or to pause;
//! - [`console`]: a terminal as the serial console;
//! - [`state`]: a saved machine; `handover`: a running one changes its engine;
//! - [`debug`]: gdb at a machine.
//!
//! An engine executes the guest and calls back through `platform`.
//!
//! Whoever wants a machine makes it with [`Machine::new`], whose output is where the serial
//! port goes ([`Machine::serial`] takes input); gives it devices of `guise-virtio` with
//! [`Machine::add_device`] (a `Block` over an image of `guise-disk`, a `Net` over a network
//! of `guise-net`, a `Vsock`, a `Console`); loads a kernel with [`Machine::boot`] and lets
//! it run with [`Machine::resume`]. `guise boot` does no more than that. A machine that its
//! guest resets is dropped and made anew; what devices stand on outlives it.

mod acpi;
pub mod board;
pub mod boot;
pub mod console;
mod control;
pub mod debug;
mod error;
mod expansion;
mod handover;
pub mod layout;
pub mod machine;
mod memory;
mod platform;
pub mod state;
mod upstream;
mod vcpu;

pub use board::BoardKind;
pub use boot::BootSource;
pub use control::Ending;
pub use error::MachineError;
pub use machine::{Machine, MachineConfig, Stopper};
pub use memory::Ram;
pub use state::MachineState;
