//! Containers: an OCI runtime of our own, and what stands on it.
//!
//! The path of a container: a configuration (`spec`) is checked; cgroups are
//! made (`cgroup`); `runtime` clones the first process into its namespaces
//! (`namespaces`), which fills its root file system (`rootfs`), waits to be
//! started and becomes the program (`init`, `process`, `seccomp`). What is known
//! of it lies in the state directory (`state`), from which every later command
//! works: there is no daemon here. `jail` is for others: what makes containers also shuts in
//! the programs that hold machines.

pub mod cgroup;
pub mod error;
pub mod hooks;
pub mod init;
pub mod jail;
pub mod namespaces;
pub mod process;
pub mod rootfs;
pub mod runtime;
pub mod seccomp;
pub mod spec;
pub mod state;
mod sys;

pub use error::{Error, Result};

/// Reads a configuration and compiles what can be compiled of it without making
/// anything: whether a container could be described so. The fuzz target and the
/// regression test over its corpus enter here.
pub fn probe_config(text: &[u8]) -> Result<()> {
    let spec = spec::parse_spec(text)?;
    namespaces::check_sysctls(&spec)?;
    process::landlock::Landlock::of(&spec.annotations)?;
    for mount in &spec.mounts {
        rootfs::options::Options::parse(&mount.options, &mount.destination)?;
        rootfs::path::clean(&mount.destination);
    }
    if let Some(process) = &spec.process {
        process::limits::check(&process.rlimits)?;
    }
    if let Some(policy) = &spec.linux.memory_policy {
        process::memory_policy::check(policy)?;
    }
    if let Some(profile) = &spec.linux.seccomp {
        seccomp::check(profile)?;
    }
    Ok(())
}
