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
    /// Number and value, in the order of [`MSRS`].
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

/// Whether an engine that lacks this MSR may leave this value out: a guest that does not
/// see the feature is the same without it. (A feature control that is locked with nothing
/// enabled; a host that may poll before it halts.)
pub fn means_nothing(msr: u32, value: u64) -> bool {
    value == 0 || matches!((msr, value), (0x3a | 0x4b56_4d05, 1))
}

/// The MSRs of [`VcpuState::msrs`], in the order in which they are loaded: what a
/// later one depends on comes first. An engine leaves out those that its CPU model
/// does not have. FS and GS bases are in the segments, EFER is in the system state.
pub const MSRS: &[u32] = &[
    0x1b,  // IA32_APIC_BASE
    0x3a,  // IA32_FEATURE_CONTROL
    0x10,  // IA32_TIME_STAMP_COUNTER
    0x3b,  // IA32_TSC_ADJUST
    0x48,  // IA32_SPEC_CTRL
    0x140, // MISC_FEATURES_ENABLES
    0x174, // IA32_SYSENTER_CS
    0x175, // IA32_SYSENTER_ESP
    0x176, // IA32_SYSENTER_EIP
    0x17a, // IA32_MCG_STATUS
    0x1a0, // IA32_MISC_ENABLE
    0x1d9, // IA32_DEBUGCTL
    0x2ff, // IA32_MTRR_DEF_TYPE
    0x200, // variable MTRRs, base and mask
    0x201,
    0x202,
    0x203,
    0x204,
    0x205,
    0x206,
    0x207,
    0x208,
    0x209,
    0x20a,
    0x20b,
    0x20c,
    0x20d,
    0x20e,
    0x20f,
    0x250, // fixed MTRRs
    0x258,
    0x259,
    0x268,
    0x269,
    0x26a,
    0x26b,
    0x26c,
    0x26d,
    0x26e,
    0x26f,
    0x277,       // IA32_PAT
    0x6e1,       // IA32_PKRS
    0xda0,       // IA32_XSS
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SFMASK
    0xc000_0102, // KERNEL_GS_BASE
    0xc000_0103, // TSC_AUX
    0x11,        // KVM wall clock and system time, old numbers
    0x12,
    0x4b56_4d00, // KVM wall clock, system time, async page faults, steal time,
    0x4b56_4d01, // end of interrupt, poll control
    0x4b56_4d02,
    0x4b56_4d03,
    0x4b56_4d04,
    0x4b56_4d05,
    0x4b56_4d06, // the interrupt of async page faults
    0x6e0,       // IA32_TSC_DEADLINE: arms a timer, so last
];
