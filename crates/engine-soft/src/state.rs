//! The registers of a vCPU, laid out for generated code.
//!
//! While a thread executes a guest, its GS base is the address of the vCPU's
//! [`CpuState`], so that generated code reaches a field as `gs:[offset]` without
//! giving up a register ([`CpuState::bind_to_thread`]); Rust code does not use GS.
//! Outside of generated code everything here is up to date: flags are in `rflags`,
//! vectors in `vector`, the x87 state in `x87`.

use std::sync::atomic::AtomicU32;

use crate::tlb::Bank;
use crate::translate::frame::Frame;

/// A segment register with its hidden part. Access rights are in the format of
/// [`guise_engine::state::SegmentState::access`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    pub base: u64,
    pub limit: u32,
    pub access: u32,
    pub selector: u16,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Table {
    pub base: u64,
    pub limit: u16,
}

/// A vector register at the full width that any processor gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Vector(pub [u8; 64]);

/// The x87 and MMX state as FXSAVE64 writes it; its SSE part is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct X87(pub [u8; 512]);

/// What a host trap in generated code left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HostTrap {
    /// The exception's vector (0 #DE, 1 #DB, 6 #UD, 13 #GP, 14 #PF, 16 #MF, 17 #AC, 19 #XM).
    pub vector: u32,
    pub error_code: u32,
    pub address: u64,
}

/// Indices into [`CpuState::gpr`], in the order of their encoding.
pub const RAX: usize = 0;
pub const RCX: usize = 1;
pub const RDX: usize = 2;
pub const RBX: usize = 3;
pub const RSP: usize = 4;
pub const RBP: usize = 5;
pub const RSI: usize = 6;
pub const RDI: usize = 7;

/// Indices into [`CpuState::seg`], in the order of their encoding.
pub const ES: usize = 0;
pub const CS: usize = 1;
pub const SS: usize = 2;
pub const DS: usize = 3;
pub const FS: usize = 4;
pub const GS: usize = 5;

#[repr(C, align(64))]
pub struct CpuState {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// Not 0: something wants to be looked at between two instructions (an
    /// interrupt, a kick, a request of another vCPU). Set by any thread.
    pub attention: AtomicU32,
    pub mxcsr: u32,
    /// The bank for explicit memory accesses in the current view.
    pub bank: *mut Bank,
    /// The stack of the Rust code that entered generated code.
    pub host_rsp: u64,
    /// The host's MXCSR while the guest's is loaded.
    pub host_mxcsr: u32,
    /// Room for generated code to put a register aside.
    pub scratch: [u64; 8],
    pub trap: HostTrap,
    /// What generated code and the translator tell each other.
    pub generated: Frame,

    pub seg: [Segment; 6],
    /// What SWAPGS puts into GS's base.
    pub kernel_gs_base: u64,
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: Table,
    pub idtr: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub xcr0: u64,
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,

    pub opmask: [u64; 8],
    pub pkru: u32,
    pub x87: X87,
    pub vector: [Vector; 32],
    /// Always 0: stands in for a base, an index or a segment that an address lacks.
    pub zero: u64,
}

impl CpuState {
    /// Makes `gs:[0]` of the calling thread this state, for generated code.
    ///
    /// # Safety
    ///
    /// The state must not move or be freed while the thread runs generated code.
    pub unsafe fn bind_to_thread(&self) -> std::io::Result<()> {
        const ARCH_SET_GS: libc::c_long = 0x1001;
        // SAFETY: only the GS base changes, which neither Rust nor libc use on x86-64.
        let result =
            unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, std::ptr::from_ref(self)) };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    }
}
