//! One vCPU: its registers and everything that executing an instruction touches.
//!
//! [`Cpu`] is what handlers of instructions get. Its fields are grouped by subject;
//! the methods live with their subjects:
//!
//! | module | subject |
//! |---|---|
//! | [`mode`](self::mode) | what registers say about how to execute: mode, privilege, view |
//! | [`segment`](self::segment) | descriptors, loading of segment registers, limit checks |
//! | [`deliver`](self::deliver) | exceptions and interrupts on their way through the IDT |
//! | [`transfer`](self::transfer) | far jumps, calls and returns, IRET, call gates |
//! | [`task`](self::task) | hardware task switches |
//! | [`syscall`](self::syscall) | SYSCALL, SYSRET, SYSENTER, SYSEXIT |
//! | [`control`](self::control) | control and debug registers |
//! | [`keys`](self::keys) | protection keys |
//! | [`msr`](self::msr) | model-specific registers |

pub mod apic;
pub mod control;
pub mod deliver;
pub mod keys;
pub mod mode;
pub mod msr;
pub mod segment;
pub mod syscall;
pub mod task;
pub mod transfer;

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use guise_engine::Platform;
use guise_engine::state::RunState;

use crate::exception::Exception;
use crate::host::stub::Stubs;
use crate::interpret::cache::CodeCache;
use crate::interpret::int::Int;
use crate::interpret::op::{Run, Slot, Trap};
use crate::memory::fetch::FetchCache;
use crate::memory::journal::Journal;
use crate::memory::spaces::Spaces;
use crate::state::CpuState;
use crate::translate::backend::Translated;
use crate::vcpu::debug::Debug;
use crate::vm::map::MemoryMap;
use crate::vm::shared::{VcpuShared, VmShared, attention};

pub use mode::Mode;
pub use msr::Msrs;

/// Why an instruction was abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raised {
    Nothing,
    Exception(Exception),
    /// A non-canonical address: #SS if the instruction used its stack segment, else #GP.
    NonCanonical,
    /// Shut down: a triple fault.
    Shutdown,
}

/// What is pending between two instructions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Events {
    pub nmi_pending: bool,
    pub nmi_blocked: bool,
    pub sti_shadow: bool,
    pub mov_ss_shadow: bool,
    /// Another vCPU has woken this one, which ends the HLT that it is in or comes to next:
    /// it is to be woken from a wait that it has decided on, and may not have begun.
    pub unhalted: bool,
    /// Debug exceptions of the last instruction, in the format of DR6.
    pub pending_debug: u64,
    /// TF, set before the last instruction, does not trap after it.
    pub step_suppressed: bool,
    /// The exception being delivered came from outside of the program (its error
    /// code gets the EXT bit).
    pub external: bool,
}

/// Counters for `--stats`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pub blocks_decoded: u64,
    pub blocks_invalidated: u64,
    pub instructions_decoded: u64,
    pub lookups: u64,
    pub walks: u64,
    pub exceptions: u64,
    pub interrupts: u64,
    pub halts: u64,
    pub device_accesses: u64,
    pub port_accesses: u64,
}

#[repr(C)]
pub struct Cpu {
    /// First, so that its address and the vCPU's are one.
    pub state: CpuState,
    pub raised: Raised,
    pub mode: Mode,
    /// Tells apart everything that decides what code an address names: the address
    /// space, the privilege and the mode.
    pub context: u64,
    pub cache: CodeCache,
    pub spaces: Spaces,
    pub fetch: FetchCache,
    /// PDPTE registers of PAE paging.
    pub pdpte: [u64; 4],
    pub map: Arc<MemoryMap>,
    /// Maps of before, until no instruction in flight can point into their memory.
    pub retired: Vec<Arc<MemoryMap>>,
    pub shared: Arc<VmShared>,
    pub me: Arc<VcpuShared>,
    pub index: u32,
    pub events: Events,
    pub run: RunState,
    pub msr: Msrs,
    pub counters: Counters,
    pub translated: Translated,
    /// There while the two tiers are compared.
    pub journal: Option<Journal>,
    pub stubs: Stubs,
    pub debug: Debug,
    pub platform: Option<NonNull<dyn Platform>>,
}

// SAFETY: the pointers in it (banks, blocks, host memory) belong to it or are shared
// memory; the platform is there during `run` only, on the thread that runs it.
unsafe impl Send for Cpu {}

impl Cpu {
    /// Lends the platform to the vCPU.
    ///
    /// # Safety
    ///
    /// It is taken back ([`Cpu::take_platform`]) before it goes away.
    pub unsafe fn lend_platform(&mut self, platform: &dyn Platform) {
        let pointer = NonNull::from(platform);
        // SAFETY: only the lifetime changes; the caller ends the loan in time.
        self.platform = Some(unsafe {
            std::mem::transmute::<NonNull<dyn Platform + '_>, NonNull<dyn Platform>>(pointer)
        });
    }

    pub fn take_platform(&mut self) {
        self.platform = None;
    }

    pub fn platform(&self) -> &dyn Platform {
        match &self.platform {
            // SAFETY: lent by who runs the vCPU, and not yet taken back.
            Some(platform) => unsafe { platform.as_ref() },
            None => &NoPlatform,
        }
    }

    /// A register operand.
    #[inline(always)]
    pub fn reg<T: Int>(&self, slot: Slot) -> T {
        let state = (&raw const self.state).cast::<u8>();
        // SAFETY: slots are offsets of general registers, RIP, `zero` and segment
        // bases in CpuState (see `Slot`), so up to 8 bytes there lie within it.
        unsafe { state.add(slot.offset()).cast::<T>().read_unaligned() }
    }

    /// Writes a register operand; 32-bit results clear the upper half.
    #[inline(always)]
    pub fn set_reg<T: Int>(&mut self, slot: Slot, value: T) {
        let state = (&raw mut self.state).cast::<u8>();
        // SAFETY: as in `reg`; where a destination is written it is a general register.
        unsafe {
            let place = state.add(slot.offset());
            if T::SIZE == 4 {
                place.cast::<u64>().write_unaligned(value.get());
            } else {
                place.cast::<T>().write_unaligned(value);
            }
        }
    }

    /// Writes general register `number` at a width of 16, 32 or 64 bits.
    pub fn set_gpr(&mut self, number: usize, value: u64, size: u64) {
        let register = &mut self.state.gpr[number & 15];
        *register = match size {
            1 => *register & !0xff | value & 0xff,
            2 => *register & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }

    pub fn raise<T>(&mut self, exception: Exception) -> Run<T> {
        self.raised = Raised::Exception(exception);
        Err(Trap)
    }

    pub fn general_protection<T>(&mut self, error_code: u32) -> Run<T> {
        self.raise(Exception::general_protection(error_code))
    }

    pub fn invalid_opcode<T>(&mut self) -> Run<T> {
        self.raise(Exception::invalid_opcode())
    }

    /// #GP(0) unless the current privilege level is 0.
    pub fn require_supervisor(&mut self) -> Run {
        if self.mode.cpl == 0 { Ok(()) } else { self.general_protection(0) }
    }

    /// The bit of this vCPU in masks.
    pub fn bit(&self) -> u8 {
        1 << self.index
    }

    /// Asks for attention before the next block.
    pub fn want(&self, bits: u32) {
        self.state.attention.fetch_or(bits, Ordering::SeqCst);
    }

    /// The next instruction runs alone, without interrupts before it.
    pub fn shadow_interrupts(&mut self) {
        self.want(attention::ALONE);
    }
}

/// Answers for the time outside of `run`: nothing is there.
struct NoPlatform;

impl Platform for NoPlatform {
    fn port_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&self, _port: u16, _data: &[u8]) {}
    fn memory_read(&self, _address: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn memory_write(&self, _address: u64, _data: &[u8]) {}
    fn acknowledge_interrupt(&self) -> Option<u8> {
        None
    }
    fn end_of_interrupt(&self, _vector: u8) {}
}
