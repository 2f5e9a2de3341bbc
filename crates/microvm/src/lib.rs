//! MicroVMs: an image in a machine of its own, ready in about a second.
//!
//! - [`kernel`]: a stock kernel as it boots fastest, with an initial RAM disk that holds
//!   the agent and the modules it needs; both made once and kept beside the kernel;
//!   `modules` finds and orders these, `cpio` writes the archive;
//! - [`ext4`]: an empty file system for what an instance writes;
//! - [`machine`]: a [`MicroVm`] from its making to its end: disks, network, the
//!   connection to the agent.
//!
//! Nothing here needs privileges, and no program of the host is called.

mod cpio;
pub mod ext4;
pub mod kernel;
pub mod machine;
mod modules;

pub use guise_agent::client::{Agent, AgentError, Event, Session};
pub use guise_agent::protocol;
pub use kernel::PreparedKernel;
pub use machine::{MicroVm, MicroVmConfig, MicroVmError};
