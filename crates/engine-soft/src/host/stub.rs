//! Single guest instructions, run on the host's processor.
//!
//! A stub is a function that loads what its instruction reads from a [`CpuState`],
//! executes the instruction itself, and stores what it wrote:
//!
//! ```text
//! mov  rcx, [rdi + gpr.rcx]      ; each register that it uses
//! (flags, MXCSR, x87, masks)     ; where it depends on them
//! add  rcx, [rsi]                ; the instruction, its memory operand at RSI
//! mov  [rdi + gpr.rcx], rcx
//! pushfq …                       ; flags that it changes
//! xor  eax, eax
//! ret
//! ```
//!
//! RDI is the state and RSI the host's address of the memory operand. An explicit
//! register that is in the way (RSP, RSI, RDI, what the host wants preserved) is
//! replaced by another: what an instruction computes does not depend on the names of
//! its operands. So the host's stack pointer is never the guest's here.
//!
//! A trap inside (a division by zero, a misaligned vector, an unmasked floating-point
//! exception) lands at the end of a stub that has stored nothing, so the state is as
//! it was; [`Stub::run`] returns the exception.
//!
//! Stubs are the same for all instructions that differ in their address only.

mod assign;
mod emit;

use std::arch::asm;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::mem::offset_of;

use iced_x86::{
    Code, Encoder, IcedError, Instruction, InstructionInfoFactory, MemoryOperand, OpAccess, OpKind,
    Register,
};

use super::arena::Arena;
use super::classify::{self, Class, Unit, classify};
use super::traps::{self, Registration, TrapAction, TrapFrame};
use crate::exception::{self, Exception};
use crate::state::{CpuState, HostTrap};
use emit::Emitter;
use guise_engine::extensions::Features;

/// A compiled instruction. It may be run until its [`Stubs`] are cleared or dropped.
#[derive(Clone, Copy, Debug)]
pub struct Stub {
    entry: *const u8,
    /// The memory operand's size in bytes, 0 where there is none.
    pub size: u8,
    pub reads: bool,
    pub writes: bool,
    /// What has to be available: see `fpu::check`.
    pub unit: Unit,
    /// The address has to be moved by [`bit_string_offset`].
    pub bit_string: bool,
    /// Where the instruction is in an x87 stub, and the last one's pointers change.
    x87_at: u16,
}

// SAFETY: an entry is an address of code, which is the same for every thread.
unsafe impl Send for Stub {}
// SAFETY: as above.
unsafe impl Sync for Stub {}

/// Why there is no stub for an instruction.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the processor has no such instruction")]
    Invalid,
    #[error("an instruction of class {0:?} does not run on the host")]
    NotAStub(Class),
    /// Clear the stubs, and everything that holds one, and compile again.
    #[error("no room for another stub")]
    Full,
    #[error("{0}")]
    Encoding(#[from] IcedError),
}

/// The stubs of one vCPU.
pub struct Stubs {
    arena: Arena,
    features: Features,
    host: HostVectors,
    known: HashMap<Shape, Stub, BuildHasherDefault<ShapeHasher>>,
    info: InstructionInfoFactory,
    emitter: Emitter,
    _registration: Registration,
}

/// How wide the host's vector registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostVectors {
    pub avx: bool,
    pub avx512: bool,
    /// Masks have 64 bits, not 16.
    pub wide_masks: bool,
}

impl HostVectors {
    pub fn detect() -> HostVectors {
        use iced_x86::CpuidFeature::{AVX, AVX512BW, AVX512F};
        let host = Features::host();
        HostVectors {
            avx: host.has(AVX),
            avx512: host.has(AVX512F),
            wide_masks: host.has(AVX512BW),
        }
    }
}

/// An instruction without its address: what a stub is made of.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape(Instruction);

/// FxHash's recipe, which is quick on a few words.
#[derive(Default)]
struct ShapeHasher(u64);

impl Hasher for ShapeHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value as u64);
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(value as u64);
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value as u64);
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}

/// Where a trapped stub goes on: the start of the arena.
/// `mov eax, 1; ret`
const TRAP_EXIT: [u8; 6] = [0xb8, 1, 0, 0, 0, 0xc3];

/// The host's MXCSR: what Rust code expects.
const HOST_MXCSR: u32 = 0x1f80;

fn on_trap(frame: &mut TrapFrame<'_>, exit: usize) -> TrapAction {
    let vector = frame.vector();
    let state = frame.gpr(7) as *mut CpuState;
    // Memory operands are memory of this process: a page fault is not the guest's.
    if vector == u32::from(exception::PAGE_FAULT) || state.is_null() {
        return TrapAction::Refuse;
    }
    let trap = HostTrap { vector, error_code: frame.error_code(), address: frame.fault_address() };
    // SAFETY: code of this arena runs only in `Stub::run`, with the state that the
    // trapping thread borrows exclusively in RDI, which no stub changes.
    unsafe {
        (*state).trap = trap;
        if vector == u32::from(exception::SIMD_FLOATING_POINT) {
            (*state).mxcsr = frame.mxcsr();
        }
    }
    frame.set_mxcsr(HOST_MXCSR);
    frame.set_rip(exit as u64);
    TrapAction::Resume
}

impl Stubs {
    /// Makes room for `size` bytes of stubs, for a guest that has these extensions.
    pub fn new(features: Features, size: usize) -> io::Result<Stubs> {
        let mut arena = Arena::new(size)?;
        let exit = arena.place(&TRAP_EXIT).ok_or_else(|| io::Error::other("an empty arena"))?;
        let registration = traps::register(arena.range(), on_trap, exit as usize)?;
        Ok(Stubs {
            arena,
            features,
            host: HostVectors::detect(),
            known: HashMap::default(),
            info: InstructionInfoFactory::new(),
            emitter: Emitter::new(),
            _registration: registration,
        })
    }

    pub fn features(&self) -> &Features {
        &self.features
    }

    /// How many bytes of code there are.
    pub fn used(&self) -> usize {
        self.arena.used()
    }

    /// Forgets all stubs. None of them may be run any more.
    pub fn clear(&mut self) {
        self.arena.clear();
        // It fitted the first time.
        let _ = self.arena.place(&TRAP_EXIT);
        self.known.clear();
    }

    /// Compiles an instruction of class [`Class::Stub`], or one of class
    /// [`Class::Masked`] with a vector mask, whose memory operand is then accessed as a
    /// whole.
    pub fn compile(&mut self, instruction: &Instruction) -> Result<Stub, Refusal> {
        match classify(instruction, &self.features) {
            Class::Stub => {}
            Class::Masked if instruction.has_op_mask() && !assign::has_vsib(instruction) => {}
            Class::Invalid => return Err(Refusal::Invalid),
            other => return Err(Refusal::NotAStub(other)),
        }
        let shape = Shape(assign::without_address(instruction, &self.features)?);
        if let Some(&stub) = self.known.get(&shape) {
            return Ok(stub);
        }
        let stub = self.generate(shape.0)?;
        self.known.insert(shape, stub);
        Ok(stub)
    }

    fn generate(&mut self, instruction: Instruction) -> Result<Stub, Refusal> {
        let code = instruction.code();
        let unit = classify::unit_of(code);
        let plan = assign::Plan::new(instruction, unit, self.host, &mut self.info);
        let start = self.arena.next();
        let x87_at = self.emitter.stub(&plan, self.host)?;
        let entry = self.arena.place(self.emitter.code()).ok_or(Refusal::Full)?;
        debug_assert_eq!(entry as u64, start);
        Ok(Stub {
            entry,
            size: plan.memory_size,
            reads: plan.reads_memory,
            writes: plan.writes_memory,
            unit,
            bit_string: plan.bit_string,
            x87_at,
        })
    }
}

impl Stub {
    /// Runs the instruction. Its memory operand, [`Stub::size`] bytes, is at `operand`,
    /// which is as aligned as the guest's address is.
    ///
    /// # Safety
    ///
    /// The [`Stubs`] that compiled it have not been cleared since; `state` is valid and
    /// nobody else uses it; `operand` may be accessed as [`Stub::reads`] and
    /// [`Stub::writes`] say; the thread has called [`traps::prepare_thread`].
    #[inline(always)]
    pub unsafe fn run(&self, state: *mut CpuState, operand: *mut u8) -> Result<(), Exception> {
        let trapped: u32;
        // SAFETY: a stub keeps the ABI but for RBX, saved here; the caller vouches for
        // what it accesses.
        unsafe {
            asm!(
                "push rbx",
                "call {entry}",
                "pop rbx",
                entry = in(reg) self.entry,
                in("rdi") state,
                in("rsi") operand,
                lateout("eax") trapped,
                clobber_abi("sysv64"),
            );
        }
        if trapped == 0 {
            Ok(())
        } else {
            // SAFETY: the caller lends the state to us.
            Err(self.trapped(unsafe { &mut *state }))
        }
    }

    #[cold]
    fn trapped(&self, state: &mut CpuState) -> Exception {
        if matches!(self.unit, Unit::X87 | Unit::Mmx | Unit::SseMmx) {
            // The x87 registers are still the guest's, and an instruction that faults can
            // have moved the stack's top.
            let image = state.x87.0.as_mut_ptr();
            // SAFETY: the image has the size and alignment that FXSAVE wants; the
            // registers are the stub's to leave as it likes.
            unsafe { asm!("fxsave64 [{image}]", "fninit", image = in(reg) image) };
        }
        /// OSXMMEXCPT of CR4: whether SIMD exceptions have a vector of their own.
        const SIMD_EXCEPTIONS: u64 = 1 << 10;
        match state.trap.vector as u8 {
            exception::GENERAL_PROTECTION => Exception::general_protection(0),
            exception::ALIGNMENT_CHECK => Exception::with_code(exception::ALIGNMENT_CHECK, 0),
            exception::SIMD_FLOATING_POINT if state.cr4 & SIMD_EXCEPTIONS == 0 => {
                Exception::invalid_opcode()
            }
            vector => Exception::plain(vector),
        }
    }

    /// Whether [`Stub::set_x87_pointers`] is wanted after a run.
    #[inline(always)]
    pub fn is_x87(&self) -> bool {
        self.x87_at != 0
    }

    /// Replaces what the host noted as the place of the last x87 instruction and of its
    /// operand by the guest's, after [`Stub::run`].
    pub fn set_x87_pointers(&self, state: &mut CpuState, operand: *mut u8, ip: u64, data: u64) {
        let here = self.entry as u64 + u64::from(self.x87_at);
        let image = &mut state.x87.0;
        for (place, host, guest) in [(8, here, ip), (16, operand as u64, data)] {
            let field = &mut image[place..place + 8];
            if field == host.to_le_bytes() {
                field.copy_from_slice(&guest.to_le_bytes());
            }
        }
    }
}

/// How far from its address a bit instruction with a register operand accesses memory,
/// in bytes: the register is a signed offset in bits from there.
pub fn bit_string_offset(instruction: &Instruction, state: &CpuState) -> i64 {
    let register = instruction.op1_register();
    let value = state.gpr[register.full_register() as usize - Register::RAX as usize];
    match register.size() {
        2 => (value as i16 as i64 >> 4) * 2,
        4 => (value as i32 as i64 >> 5) * 4,
        _ => (value as i64 >> 6) * 8,
    }
}

#[cfg(test)]
mod tests;
