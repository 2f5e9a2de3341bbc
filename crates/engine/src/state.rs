//! Machine state that names no engine: what a snapshot holds, what migration
//! sends, what crosses when a running machine moves between engines.
//!
//! Everything is in architectural terms: registers, MSRs by number, the XSAVE
//! area in its standard (non-compacted) layout, the local APIC's register page.
//! [`VcpuState::VERSION`] goes up when the meaning of a field changes; a reader
//! refuses versions that it does not know.

use serde::{Deserialize, Serialize};

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentState {
    pub selector: u16,
    pub base: u64,
    /// In bytes, inclusive, granularity applied.
    pub limit: u32,
    /// Access rights as in VMX: type 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14,
    /// G 15, unusable 16.
    pub access: u32,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableState {
    pub base: u64,
    pub limit: u16,
}

/// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 … R15: the order of their encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterState {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemState {
    pub es: SegmentState,
    pub cs: SegmentState,
    pub ss: SegmentState,
    pub ds: SegmentState,
    pub fs: SegmentState,
    pub gs: SegmentState,
    pub ldtr: SegmentState,
    pub tr: SegmentState,
    pub gdtr: TableState,
    pub idtr: TableState,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub xcr0: u64,
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
}

/// What is about to happen between two instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventState {
    /// An exception or interrupt whose delivery has begun: vector and error code.
    pub injecting: Option<PendingEvent>,
    pub nmi_pending: bool,
    /// An NMI was delivered and its IRET has not been executed.
    pub nmi_blocked: bool,
    /// The instruction before was STI.
    pub sti_shadow: bool,
    /// The instruction before loaded SS.
    pub mov_ss_shadow: bool,
    /// Debug exceptions of the last instruction, in the format of DR6.
    pub pending_debug: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingEvent {
    pub kind: EventKind,
    pub vector: u8,
    pub error_code: Option<u32>,
    /// The length of the instruction, for software interrupts and exceptions.
    pub instruction_length: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    ExternalInterrupt,
    Nmi,
    HardwareException,
    SoftwareInterrupt,
    SoftwareException,
}

/// Whether a vCPU executes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    #[default]
    Running,
    Halted,
    /// An application processor before its first start-up IPI.
    WaitForSipi,
    /// After a triple fault.
    Shutdown,
}

/// All of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    pub version: u32,
    pub index: u32,
    pub run: RunState,
    pub registers: RegisterState,
    pub system: SystemState,
    pub events: EventState,
    /// XSAVE area, standard layout, for the components in XCR0 at least.
    pub xsave: Vec<u8>,
    /// Number and value, in ascending order; the TSC and the TSC deadline are
    /// among them.
    pub msrs: Vec<(u32, u64)>,
    /// The local APIC's 1 KiB of registers, as in its memory-mapped page.
    pub lapic: Vec<u8>,
    /// Nanoseconds until the local APIC's timer fires, for its one-shot and
    /// periodic modes; its current-count register follows from it.
    pub lapic_timer_ns: Option<u64>,
}

impl VcpuState {
    pub const VERSION: u32 = 1;
}

/// What the vCPUs of a VM share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmState {
    pub version: u32,
    /// The paravirtual clock: nanoseconds since the machine started.
    pub clock_ns: u64,
    /// The host's real-time clock at that moment, for those who want to catch up.
    pub realtime_ns: u64,
    pub tsc_khz: u64,
}

impl VmState {
    pub const VERSION: u32 = 1;
}
