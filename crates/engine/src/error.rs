//! What can go wrong in an engine, with the context that a user needs.

use crate::model::CpuModel;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The engine cannot be had on this host.
    #[error("the {engine} engine is not available: {reason}")]
    Unavailable { engine: &'static str, reason: String },
    /// A system call that the engine depends on failed.
    #[error("{doing}: {source}")]
    Host {
        doing: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// The CPU model wants what this host's processor does not have.
    #[error("CPU model {model} needs {missing}, which it cannot have on this host")]
    Model { model: CpuModel, missing: String },
    #[error("a machine has 1 to {max} vCPUs, not {wanted}")]
    VcpuCount { wanted: u32, max: u32 },
    #[error("guest memory {address:#x}..{end:#x}: {reason}")]
    Memory { address: u64, end: u64, reason: &'static str },
    /// State from elsewhere does not fit this VM or this version.
    #[error("machine state cannot be loaded: {0}")]
    State(String),
    /// The engine met guest code that it cannot execute.
    #[error("vCPU {vcpu} cannot go on at {rip:#x}: {reason}")]
    Stuck { vcpu: u32, rip: u64, reason: String },
}

impl EngineError {
    /// The last operating-system error, with what was being done.
    pub fn last_os_error(doing: &'static str) -> Self {
        Self::Host { doing, source: std::io::Error::last_os_error() }
    }
}
