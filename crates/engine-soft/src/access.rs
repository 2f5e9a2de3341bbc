//! What an instruction with a large or scattered memory operand needs of the vCPU.
//!
//! Such instructions (XSAVE and its family, gathers, masked moves) are written
//! against this trait, so that they can be tested without a machine.

use crate::exception::Exception;
use crate::state::CpuState;

/// A vCPU in the middle of an instruction.
pub trait Access {
    /// Says that the instruction is abandoned; the vCPU knows why.
    type Fault;

    fn state(&mut self) -> &mut CpuState;

    /// Reads from an effective address, in the segment of the instruction's operand.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Self::Fault>;

    /// Writes to an effective address, in the segment of the instruction's operand.
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Self::Fault>;

    /// Abandons the instruction with an exception.
    fn raise(&mut self, exception: Exception) -> Self::Fault;

    /// Privilege level 0 to 3.
    fn privilege(&mut self) -> u8;
}
