//! What can go wrong with a machine, with the context that a user needs.

use guise_engine::EngineError;

use crate::boot::BootError;
use crate::memory::Size;

#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Nobody can have a machine with that much memory, or that little.
    #[error("a machine cannot have {} of memory: {reason}", Size(*size))]
    MemorySize { size: u64, reason: String },
    /// The host refused RAM.
    #[error("the host gave no RAM ({}): {source}", Size(*size))]
    Ram {
        size: u64,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A system call failed.
    #[error("{doing}: {source}")]
    Host {
        doing: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// An engine that does not listen to kicks.
    #[error("a vCPU does not leave the guest; this is a fault of the engine")]
    Unresponsive,
    /// The ACPI tables are longer than the room for them.
    #[error("the ACPI tables do not fit into memory")]
    AcpiTables,
    /// The board wants the same address for two devices.
    #[error("the board does not fit together: {0}")]
    Board(#[from] guise_devices::bus::BusError),
    /// A device that has no place on the machine.
    #[error("a device cannot be added: {0}")]
    Device(String),
    /// A saved machine that is not one, or is another one.
    #[error("the saved machine cannot be loaded: {0}")]
    Saved(String),
}
