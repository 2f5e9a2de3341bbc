//! Instructions that access a part of their memory operand, or many places: gathers
//! and scatters, masked moves, and everything with a vector mask and memory.
//!
//! Elements that the mask leaves out are not accessed, so they cannot fault. An
//! instruction with one operand in memory therefore runs as a stub on a copy, into
//! which only the wanted elements were read, and from which only those are written.
//! Gathers and scatters are done here, element by element in order; a fault leaves the
//! elements before it done and their mask bits cleared, as the architecture says.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::stub::Stub;
use crate::access::Access;
use crate::exception::{Exception, X87_FLOATING_POINT};
use crate::fpu::{environment, fxsave};
use crate::state::CpuState;

/// An address as the instruction makes it.
#[derive(Clone, Copy, Debug)]
pub struct Effective {
    /// Base and displacement for [`is_gather`]; the complete effective address else.
    pub address: u64,
    /// Ones up to the address size.
    pub mask: u64,
}

/// Whether the operand has a vector for an index.
pub fn is_gather(instruction: &Instruction) -> bool {
    instruction.memory_index().is_vector_register()
}

/// Whether [`execute`] wants a stub for it.
pub fn needs_stub(instruction: &Instruction) -> bool {
    instruction.has_op_mask() && !is_gather(instruction) && !is_compressed(instruction)
}

/// Executes an instruction of class [`super::classify::Class::Masked`]. `stub` is there
/// where [`needs_stub`] says so. Availability has been checked.
pub fn execute<A: Access>(
    cpu: &mut A,
    instruction: &Instruction,
    place: Effective,
    stub: Option<&Stub>,
) -> Result<(), A::Fault> {
    use Mnemonic::*;
    match instruction.mnemonic() {
        Maskmovq | Maskmovdqu | Vmaskmovdqu => move_bytes(cpu, instruction, place),
        Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq => move_elements(cpu, instruction, place),
        _ if is_gather(instruction) => {
            let vex = !instruction.has_op_mask();
            let gather = Gather::of(instruction, place);
            if writes_memory(instruction) {
                gather.scatter(cpu)
            } else if vex {
                gather.gather_by_signs(cpu)
            } else {
                gather.gather_by_mask(cpu)
            }
        }
        _ if is_compressed(instruction) => compressed(cpu, instruction, place),
        _ => match stub {
            Some(stub) => on_copy(cpu, instruction, place, stub),
            None => Ok(()),
        },
    }
}

fn writes_memory(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Memory
}

fn is_compressed(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        instruction.mnemonic(),
        Vcompressps
            | Vcompresspd
            | Vpcompressd
            | Vpcompressq
            | Vpcompressb
            | Vpcompressw
            | Vexpandps
            | Vexpandpd
            | Vpexpandd
            | Vpexpandq
            | Vpexpandb
            | Vpexpandw
    )
}

fn vector(state: &mut CpuState, register: Register) -> &mut [u8; 64] {
    &mut state.vector[register.number()].0
}

fn opmask(state: &CpuState, register: Register) -> u64 {
    if register == Register::None {
        !0
    } else {
        state.opmask[register as usize - Register::K0 as usize]
    }
}

/// MASKMOVQ and MASKMOVDQU: bytes of a register, to where RDI points.
fn move_bytes<A: Access>(
    cpu: &mut A,
    instruction: &Instruction,
    place: Effective,
) -> Result<(), A::Fault> {
    let register = |i: u32| instruction.op_register(i);
    let mmx = register(1).is_mm();
    if mmx {
        if cpu.state().x87.has_pending_exception() {
            return Err(cpu.raise(Exception::plain(X87_FLOATING_POINT)));
        }
        environment::enter_mmx(&mut cpu.state().x87);
    }
    let length = if mmx { 8 } else { 16 };
    let bytes = |cpu: &mut A, register: Register| -> [u8; 16] {
        let state = cpu.state();
        if mmx {
            let start = fxsave::REGISTERS + (register as usize - Register::MM0 as usize) * 16;
            std::array::from_fn(|i| if i < 8 { state.x87.0[start + i] } else { 0 })
        } else {
            let source = vector(state, register);
            std::array::from_fn(|i| source[i])
        }
    };
    let (data, mask) = (bytes(cpu, register(1)), bytes(cpu, register(2)));
    for i in (0..length).filter(|&i| mask[i] & 0x80 != 0) {
        cpu.write(place.address.wrapping_add(i as u64) & place.mask, &data[i..=i])?;
    }
    Ok(())
}

/// VMASKMOV and VPMASKMOV: elements whose mask has its sign bit set.
fn move_elements<A: Access>(
    cpu: &mut A,
    instruction: &Instruction,
    place: Effective,
) -> Result<(), A::Fault> {
    let wide = matches!(instruction.mnemonic(), Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq);
    let size = if wide { 8 } else { 4 };
    let mask = *vector(cpu.state(), instruction.op1_register());
    let length = instruction.op1_register().size();
    let wanted = (0..length).step_by(size).filter(|at| mask[at + size - 1] & 0x80 != 0);
    let address = |at: usize| place.address.wrapping_add(at as u64) & place.mask;
    if writes_memory(instruction) {
        let data = *vector(cpu.state(), instruction.op2_register());
        for at in wanted {
            cpu.write(address(at), &data[at..at + size])?;
        }
    } else {
        let mut data = [0; 64];
        for at in wanted {
            cpu.read(address(at), &mut data[at..at + size])?;
        }
        *vector(cpu.state(), instruction.op0_register()) = data;
    }
    Ok(())
}

/// VCOMPRESS and VEXPAND: as many elements as the mask has bits, one after another.
fn compressed<A: Access>(
    cpu: &mut A,
    instruction: &Instruction,
    place: Effective,
) -> Result<(), A::Fault> {
    use Mnemonic::*;
    let size = match instruction.mnemonic() {
        Vcompresspd | Vpcompressq | Vexpandpd | Vpexpandq => 8,
        Vpcompressb | Vpexpandb => 1,
        Vpcompressw | Vpexpandw => 2,
        _ => 4,
    };
    let store = writes_memory(instruction);
    let register = if store { instruction.op1_register() } else { instruction.op0_register() };
    let mask = opmask(cpu.state(), instruction.op_mask());
    let mut data = *vector(cpu.state(), register);
    let count = register.size() / size;
    let mut next = place.address;
    for element in 0..count {
        let bytes = &mut data[element * size..][..size];
        if mask >> element & 1 == 0 {
            if !store && instruction.zeroing_masking() {
                bytes.fill(0);
            }
            continue;
        }
        if store {
            cpu.write(next & place.mask, bytes)?;
        } else {
            cpu.read(next & place.mask, bytes)?;
        }
        next = next.wrapping_add(size as u64);
    }
    if !store {
        data[register.size()..].fill(0);
        *vector(cpu.state(), register) = data;
    }
    Ok(())
}

#[repr(align(64))]
struct Bounce([u8; 128]);

/// Runs a stub on a copy of the operand.
fn on_copy<A: Access>(
    cpu: &mut A,
    instruction: &Instruction,
    place: Effective,
    stub: &Stub,
) -> Result<(), A::Fault> {
    let size = usize::from(stub.size).min(64);
    let element = mask_element(instruction).clamp(1, size.max(1));
    let elements = size / element;
    let lanes = lanes(instruction, elements);
    let mask = opmask(cpu.state(), instruction.op_mask());
    let whole = reads_whole_operand(instruction);
    // Where there are more lanes than elements, the elements repeat.
    let masked_in = |i: &usize| (*i..lanes).step_by(elements).any(|lane| mask >> lane & 1 != 0);
    // As aligned as the guest's address, for the instructions that insist.
    let start = place.address as usize & 63;
    let mut copy = Bounce([0; 128]);
    let address = |i: usize| place.address.wrapping_add((i * element) as u64) & place.mask;
    if stub.reads {
        for i in (0..elements).filter(|i| whole || masked_in(i)) {
            let at = start + i * element;
            cpu.read(address(i), &mut copy.0[at..at + element])?;
        }
    }
    // SAFETY: the stub was compiled from this instruction for this vCPU, and its operand
    // of at most 64 bytes lies within the copy.
    let ran = unsafe {
        let state: *mut CpuState = cpu.state();
        stub.run(state, copy.0.as_mut_ptr().add(start))
    };
    ran.map_err(|exception| cpu.raise(exception))?;
    if stub.writes {
        for i in (0..elements).filter(masked_in) {
            let at = start + i * element;
            cpu.write(address(i), &copy.0[at..at + element])?;
        }
    }
    Ok(())
}

/// How many bytes of the operand a bit of the mask stands for. That is what a broadcast
/// reads: products and sums can be of smaller numbers.
fn mask_element(instruction: &Instruction) -> usize {
    let info = instruction.op_code();
    if info.can_broadcast() {
        info.broadcast_memory_size().size()
    } else {
        info.memory_size().element_size()
    }
}

/// How many bits of the mask count.
fn lanes(instruction: &Instruction, elements: usize) -> usize {
    if instruction.is_broadcast() {
        return instruction.op_code().memory_size().size() / mask_element(instruction).max(1);
    }
    let name = format!("{:?}", instruction.mnemonic());
    if name.starts_with("Vbroadcast") || name.starts_with("Vpbroadcast") {
        let element = instruction.memory_size().element_size().max(1);
        return instruction.op0_register().size() / element;
    }
    elements
}

/// Mnemonics (and their beginnings) that move elements across lanes, or make each byte of
/// several: they read all of their operand whatever the mask.
const SHUFFLES: &[&str] = &[
    "Vmovsldup",
    "Vmovshdup",
    "Vmovddup",
    "Vunpck",
    "Vpunpck",
    "Vpack",
    "Vshuf",
    "Vperm",
    "Valign",
    "Vpalignr",
    "Vpshuf",
    "Vinsert",
    "Vpmaddubsw",
    "Vpmaddwd",
    "Vdbpsadbw",
    "Vpconflict",
    "Vpmultishift",
    "Vgf2p8affine",
];
/// Shifts whose count is one operand for all lanes.
const SHIFTS: &[&str] =
    &["Vpsllw", "Vpslld", "Vpsllq", "Vpsrlw", "Vpsrld", "Vpsrlq", "Vpsraw", "Vpsrad", "Vpsraq"];

fn reads_whole_operand(instruction: &Instruction) -> bool {
    let name = format!("{:?}", instruction.mnemonic());
    let counts = instruction.op2_kind() == OpKind::Memory && SHIFTS.contains(&name.as_str());
    counts || SHUFFLES.iter().any(|prefix| name.starts_with(prefix))
}

/// A gather or a scatter.
struct Gather {
    /// The vector that is loaded or stored.
    data: Register,
    /// A vector (its sign bits) or an opmask.
    mask: Register,
    index: Register,
    index_size: usize,
    element: usize,
    count: usize,
    scale: u32,
    place: Effective,
}

impl Gather {
    fn of(instruction: &Instruction, place: Effective) -> Gather {
        let store = writes_memory(instruction);
        let data = if store { instruction.op1_register() } else { instruction.op0_register() };
        let mask = if instruction.has_op_mask() {
            instruction.op_mask()
        } else {
            instruction.op2_register()
        };
        let index = instruction.memory_index();
        let index_size = if instruction.is_vsib64() { 8 } else { 4 };
        let element = instruction.memory_size().element_size().max(4);
        // The fewer of both decide.
        let count = (data.size() / element).min(index.size() / index_size);
        let scale = instruction.memory_index_scale();
        Gather { data, mask, index, index_size, element, count, scale, place }
    }

    fn address(&self, state: &mut CpuState, element: usize) -> u64 {
        let bytes = &vector(state, self.index)[element * self.index_size..];
        let index = if self.index_size == 8 {
            i64::from_le_bytes(std::array::from_fn(|i| bytes[i]))
        } else {
            i32::from_le_bytes(std::array::from_fn(|i| bytes[i])).into()
        };
        let offset = (index as u64).wrapping_mul(u64::from(self.scale));
        self.place.address.wrapping_add(offset) & self.place.mask
    }

    fn load<A: Access>(&self, cpu: &mut A, element: usize) -> Result<(), A::Fault> {
        let address = self.address(cpu.state(), element);
        let mut bytes = [0; 8];
        cpu.read(address, &mut bytes[..self.element])?;
        let at = element * self.element;
        vector(cpu.state(), self.data)[at..at + self.element]
            .copy_from_slice(&bytes[..self.element]);
        Ok(())
    }

    /// AVX2: the mask is a vector, of which each done element is cleared.
    fn gather_by_signs<A: Access>(&self, cpu: &mut A) -> Result<(), A::Fault> {
        let size = self.element;
        for element in 0..self.count {
            let at = element * size;
            if vector(cpu.state(), self.mask)[at + size - 1] & 0x80 != 0 {
                self.load(cpu, element)?;
            }
            vector(cpu.state(), self.mask)[at..at + size].fill(0);
        }
        let used = self.count * size;
        for register in [self.data, self.mask] {
            vector(cpu.state(), register)[used..].fill(0);
        }
        Ok(())
    }

    fn clear_mask_bit(&self, state: &mut CpuState, element: usize) {
        state.opmask[self.mask as usize - Register::K0 as usize] &= !(1 << element);
    }

    fn gather_by_mask<A: Access>(&self, cpu: &mut A) -> Result<(), A::Fault> {
        for element in 0..self.count {
            if opmask(cpu.state(), self.mask) >> element & 1 != 0 {
                self.load(cpu, element)?;
                self.clear_mask_bit(cpu.state(), element);
            }
        }
        self.finish(cpu.state());
        vector(cpu.state(), self.data)[self.count * self.element..].fill(0);
        Ok(())
    }

    fn scatter<A: Access>(&self, cpu: &mut A) -> Result<(), A::Fault> {
        for element in 0..self.count {
            if opmask(cpu.state(), self.mask) >> element & 1 != 0 {
                let address = self.address(cpu.state(), element);
                let at = element * self.element;
                let data = *vector(cpu.state(), self.data);
                cpu.write(address, &data[at..at + self.element])?;
                self.clear_mask_bit(cpu.state(), element);
            }
        }
        self.finish(cpu.state());
        Ok(())
    }

    /// In the end no bit of the mask is set.
    fn finish(&self, state: &mut CpuState) {
        state.opmask[self.mask as usize - Register::K0 as usize] = 0;
    }
}

#[cfg(test)]
mod tests;
