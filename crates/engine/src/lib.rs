//! The seam between a machine and what executes its instructions.
//!
//! A machine (crate `guise-machine`) owns memory, devices and boards; an engine
//! (`guise-engine-soft`, `guise-engine-kvm`) executes instructions. This crate
//! holds what both sides agree on and nothing that belongs to one of them:
//!
//! - [`Engine`], [`Vm`], [`Vcpu`]: what an engine offers;
//! - [`Platform`]: what a machine answers while an instruction is in flight
//!   (ports, device memory, the 8259's interrupt acknowledge, EOI broadcasts);
//! - [`state`]: the engine-neutral, versioned state of vCPUs and of the VM, which
//!   is what snapshots, migration and hand-over between engines carry;
//! - [`memory`]: guest memory with marks on pages, so that a write by a device
//!   reaches an engine that has decoded or translated what stood there.
//!
//! Port and device-memory accesses are calls to [`Platform`], not exits: one
//! instruction may make several of them (a string instruction, an access that
//! crosses pages), and it stays one instruction only if it need not be left in
//! its middle. All other reasons to leave the guest are values of [`Exit`].

pub mod error;
pub mod memory;
pub mod model;
pub mod state;

use std::sync::Arc;

pub use error::EngineError;
pub use memory::{GuestMemory, GuestRegion, MemorySlot};
pub use model::CpuModel;
pub use state::{VcpuState, VmState};

/// The largest number of vCPUs that one machine may have.
pub const MAX_VCPUS: u32 = 8;

/// A message-signalled interrupt, as a device would write it to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Msi {
    pub address: u64,
    pub data: u32,
}

/// What a VM is made of before it runs.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// How many vCPUs will be created, with local APIC ids 0, 1, ….
    pub vcpus: u32,
    /// What CPUID and the MSRs tell the guest.
    pub model: CpuModel,
    /// Guest TSC frequency; the host's where none is given.
    pub tsc_khz: Option<u64>,
}

/// What this host can execute guests with.
pub trait Engine: Send + Sync {
    /// `kvm`, `soft` or `interp`: the name that `--engine` takes.
    fn name(&self) -> &'static str;
    fn create_vm(&self, config: &VmConfig) -> Result<Arc<dyn Vm>, EngineError>;
}

/// One virtual machine: memory, interrupts and clock that its vCPUs share.
pub trait Vm: Send + Sync {
    /// Makes a piece of host memory visible to the guest. A slot that was mapped
    /// before is replaced.
    fn map_memory(&self, slot: u32, memory: MemorySlot) -> Result<(), EngineError>;
    fn unmap_memory(&self, slot: u32) -> Result<(), EngineError>;

    /// Makes vCPU `index`, in its reset state: index 0 at the reset vector, all
    /// others waiting for a start-up IPI. Each index can be made once.
    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, EngineError>;

    /// Delivers a message-signalled interrupt. The I/O APIC sends these too.
    fn signal_msi(&self, msi: Msi) -> Result<(), EngineError>;
    /// Pends a non-maskable interrupt.
    fn signal_nmi(&self, vcpu: u32) -> Result<(), EngineError>;
    /// Says that the 8259 pair's INTR line changed. While it is high and vCPU 0
    /// takes external interrupts, the engine calls
    /// [`Platform::acknowledge_interrupt`].
    fn set_external_interrupt(&self, level: bool) -> Result<(), EngineError>;

    /// Says what an I/O APIC pin sends, or that it is masked. An engine whose local
    /// APICs live elsewhere learns from this of which vectors the I/O APIC wants to
    /// see the end; interrupts themselves come through [`Vm::signal_msi`].
    fn route_ioapic_pin(&self, _pin: u32, _msi: Option<Msi>) -> Result<(), EngineError> {
        Ok(())
    }

    /// Starts or stops remembering which pages of a slot are written.
    fn log_dirty_pages(&self, slot: u32, enable: bool) -> Result<(), EngineError>;
    /// Returns a bit for each 4 KiB page of the slot that was written since the
    /// last call, whoever wrote it, and clears them.
    fn take_dirty_pages(&self, slot: u32) -> Result<Vec<u64>, EngineError>;

    /// Turns guest writes of exactly this value and width to a port or address into
    /// a tick of an eventfd, without a call to [`Platform`].
    fn register_doorbell(&self, doorbell: Doorbell) -> Result<(), EngineError>;
    fn unregister_doorbell(&self, doorbell: &Doorbell) -> Result<(), EngineError>;

    /// VM-wide state: the paravirtual clock. All vCPUs must be stopped.
    fn state(&self) -> Result<VmState, EngineError>;
    fn set_state(&self, state: &VmState) -> Result<(), EngineError>;

    /// Counters for `--stats`, by name.
    fn statistics(&self) -> Vec<(String, u64)>;
}

/// A guest write that is delivered as a tick of an eventfd.
#[derive(Clone, Debug)]
pub struct Doorbell {
    pub address: DoorbellAddress,
    /// Width in bytes; any width where 0.
    pub length: u32,
    /// Only this value rings, where given.
    pub value: Option<u64>,
    pub eventfd: Arc<std::os::fd::OwnedFd>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DoorbellAddress {
    Port(u16),
    Memory(u64),
}

/// What a machine answers while a guest instruction is in flight. Called on vCPU
/// threads, several at once. An access to nothing reads as ones.
pub trait Platform: Send + Sync {
    fn port_read(&self, port: u16, data: &mut [u8]);
    fn port_write(&self, port: u16, data: &[u8]);
    fn memory_read(&self, address: u64, data: &mut [u8]);
    fn memory_write(&self, address: u64, data: &[u8]);
    /// The 8259 pair's interrupt acknowledge cycle: the vector, or none when the
    /// request has gone away.
    fn acknowledge_interrupt(&self) -> Option<u8>;
    /// A local APIC finished a level-triggered vector: I/O APICs want to know.
    fn end_of_interrupt(&self, vector: u8);
}

/// Why [`Vcpu::run`] came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// [`VcpuHandle::kick`] was called. The vCPU is between two instructions.
    Interrupted,
    /// A triple fault, or a shutdown cycle of another kind.
    Shutdown,
    /// A breakpoint, a watchpoint or a single step that the debugger asked for.
    Debug(DebugStop),
}

/// Where and why a debugged vCPU stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugStop {
    Step { rip: u64 },
    Breakpoint { rip: u64 },
    Watchpoint { rip: u64, address: u64 },
}

/// What a debugger wants of a vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugControl {
    pub single_step: bool,
    /// Linear addresses of instructions to stop before.
    pub breakpoints: Vec<u64>,
    pub watchpoints: Vec<Watchpoint>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watchpoint {
    pub address: u64,
    pub length: u64,
    pub on_read: bool,
    pub on_write: bool,
}

/// One virtual processor. It belongs to the thread that runs it.
pub trait Vcpu: Send {
    /// Executes until there is a reason to leave. A halted vCPU, and one that
    /// waits for a start-up IPI, waits inside.
    fn run(&mut self, platform: &dyn Platform) -> Result<Exit, EngineError>;
    /// A handle with which other threads can reach this vCPU.
    fn handle(&self) -> Arc<dyn VcpuHandle>;
    fn state(&mut self) -> Result<VcpuState, EngineError>;
    fn set_state(&mut self, state: &VcpuState) -> Result<(), EngineError>;
    fn set_debug(&mut self, control: &DebugControl) -> Result<(), EngineError>;
    /// The guest-physical address behind a linear one, without side effects.
    fn translate(&mut self, linear: u64) -> Result<Option<u64>, EngineError>;
}

/// What other threads may do with a vCPU.
pub trait VcpuHandle: Send + Sync {
    /// Makes the current or the next [`Vcpu::run`] return [`Exit::Interrupted`] soon.
    fn kick(&self);
}
