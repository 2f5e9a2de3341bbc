//! Containers: an OCI runtime of our own, and what stands on it.
//!
//! The path of a container: a configuration (`spec`) is checked; cgroups are
//! made (`cgroup`); `runtime` clones the first process into its namespaces
//! (`namespaces`), which fills its root file system (`rootfs`), waits to be
//! started and becomes the program (`init`, `process`, `seccomp`). What is known
//! of it lies in the state directory (`state`), from which every later command
//! works: there is no daemon here.

pub mod cgroup;
pub mod error;
pub mod hooks;
pub mod init;
pub mod namespaces;
pub mod process;
pub mod rootfs;
pub mod runtime;
pub mod seccomp;
pub mod spec;
pub mod state;
mod sys;

pub use error::{Error, Result};
