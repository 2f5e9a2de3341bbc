//! The engine's side: stubs and masked memory.

use guise_engine::extensions::Features;
use guise_engine_soft::access::Access;
use guise_engine_soft::exception::Exception;
use guise_engine_soft::fpu;
use guise_engine_soft::host::classify::{Class, classify};
use guise_engine_soft::host::masked::{self, Effective};
use guise_engine_soft::host::stub::{Refusal, Stub, Stubs, bit_string_offset};
use guise_engine_soft::host::traps;
use guise_engine_soft::state::{CpuState, Vector};
use iced_x86::{Instruction, OpKind};

use crate::form;
use crate::machine::{MEMORY_SIZE, Memory, State};
use crate::{Engine, Outcome};

pub struct StubEngine {
    stubs: Stubs,
    state: Box<CpuState>,
}

/// A vCPU whose memory begins at the address where the other side's does.
struct Cpu<'a> {
    state: &'a mut CpuState,
    start: u64,
    memory: &'a mut Memory,
}

impl Cpu<'_> {
    fn place(&self, address: u64, length: usize) -> Option<usize> {
        let offset = address.wrapping_sub(self.start) as usize;
        (offset < MEMORY_SIZE && length <= MEMORY_SIZE - offset).then_some(offset)
    }
}

impl Access for Cpu<'_> {
    type Fault = Exception;

    fn state(&mut self) -> &mut CpuState {
        self.state
    }

    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Exception> {
        let place = self.place(address, bytes.len()).ok_or(Exception::page_fault(address, 0))?;
        bytes.copy_from_slice(&self.memory.bytes()[place..place + bytes.len()]);
        Ok(())
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Exception> {
        let place = self.place(address, bytes.len()).ok_or(Exception::page_fault(address, 2))?;
        self.memory.bytes_mut()[place..place + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn raise(&mut self, exception: Exception) -> Exception {
        exception
    }

    fn privilege(&mut self) -> u8 {
        3
    }
}

impl StubEngine {
    pub fn new(features: Features) -> StubEngine {
        traps::prepare_thread().unwrap();
        // SAFETY: zeros are values for all fields; the one pointer is not followed.
        let mut state: Box<CpuState> = unsafe { Box::new_zeroed().assume_init() };
        fpu::reset(&mut state);
        // SIMD exceptions are reported as such.
        state.cr4 = 1 << 10;
        StubEngine { stubs: Stubs::new(features, 4 << 20).unwrap(), state }
    }

    fn compile(&mut self, instruction: &Instruction) -> Stub {
        match self.stubs.compile(instruction) {
            Ok(stub) => stub,
            Err(Refusal::Full) => {
                self.stubs.clear();
                self.stubs.compile(instruction).unwrap()
            }
            Err(error) => panic!("{instruction}: {error}"),
        }
    }
}

impl Engine for StubEngine {
    fn set_instruction(&mut self, _: &[u8]) {}

    fn run(
        &mut self,
        instruction: &Instruction,
        before: &State,
        theirs: &Memory,
        ours: &mut Memory,
    ) -> (State, Outcome) {
        load(&mut self.state, before);
        let (address, mask) = form::effective_address(instruction, before);
        let start = theirs.address();
        let masked = classify(instruction, self.stubs.features()) == Class::Masked;
        let stub = (!masked || masked::needs_stub(instruction)).then(|| self.compile(instruction));
        let result = match (masked, stub) {
            (false, Some(stub)) => {
                let moved =
                    if stub.bit_string { bit_string_offset(instruction, &self.state) } else { 0 };
                let has_memory =
                    (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
                let place = if has_memory {
                    let offset = (address.wrapping_add(moved as u64) & mask).wrapping_sub(start);
                    assert!(offset < MEMORY_SIZE as u64 - u64::from(stub.size), "{instruction}");
                    ours.bytes_mut()[offset as usize..].as_mut_ptr()
                } else {
                    std::ptr::null_mut()
                };
                // SAFETY: compiled since the last clearing; the operand lies in memory.
                unsafe { stub.run(&mut *self.state, place) }
            }
            (_, stub) => {
                let mut cpu = Cpu { state: &mut self.state, start, memory: ours };
                masked::execute(&mut cpu, instruction, Effective { address, mask }, stub.as_ref())
            }
        };
        let outcome = match result {
            Ok(()) => Outcome::Done,
            Err(exception) => Outcome::Fault(exception.vector),
        };
        (store(&self.state, before), outcome)
    }
}

fn load(state: &mut CpuState, from: &State) {
    state.gpr = from.gpr;
    state.rflags = from.rflags;
    state.mxcsr = from.mxcsr;
    state.x87.0[..24].copy_from_slice(&from.x87[..24]);
    state.x87.0[32..160].copy_from_slice(&from.x87[32..160]);
    state.vector = from.vector.map(Vector);
    state.opmask = from.opmask;
}

fn store(state: &CpuState, before: &State) -> State {
    let mut after = before.clone();
    after.gpr = state.gpr;
    after.rflags = state.rflags;
    after.mxcsr = state.mxcsr;
    after.x87.copy_from_slice(&state.x87.0[..160]);
    after.vector = std::array::from_fn(|i| state.vector[i].0);
    after.opmask = state.opmask;
    after
}
