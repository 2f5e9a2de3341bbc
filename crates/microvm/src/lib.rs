//! Machines of instances: an image in a microVM, ready in about a second, and a disk that boots
//! by itself in a VM.
//!
//! - [`kernel`]: a stock kernel as it boots fastest, with an initial RAM disk that holds
//!   the agent and the modules it needs; both made once and kept beside the kernel;
//!   `modules` finds and orders these, `cpio` writes the archive;
//! - [`ext4`]: an empty file system for what an instance writes;
//! - [`machine`]: a [`MicroVm`] from its making to its end: disks, network, the
//!   connection to the agent;
//! - [`vm`]: a [`Vm`] from its making to its end; [`bootable`] finds its kernel on its disk or in
//!   its image, whose file systems [`volume`] and `erofs` read, as `files`; [`seed`] is what it is told at its first start, [`link`]
//!   leads to the agent that came along;
//! - [`devices`]: disks, interfaces and shared folders of both; `standstill` stops a machine for whose
//!   disk the host has no space, until it has.
//!
//! Nothing here needs privileges, and no program of the host is called.

pub mod bootable;
mod cpio;
pub mod devices;
mod erofs;
pub mod ext4;
mod files;
pub mod kernel;
pub mod link;
pub mod machine;
mod modules;
pub mod seed;
mod standstill;
pub mod vm;
pub mod volume;

pub use guise_agent::client::{Agent, AgentError, Event, Session};
pub use guise_agent::protocol;
pub use kernel::PreparedKernel;
pub use machine::{MicroVm, MicroVmConfig, MicroVmError};
pub use standstill::Teller;
pub use vm::{Vm, VmConfig, VmError};
