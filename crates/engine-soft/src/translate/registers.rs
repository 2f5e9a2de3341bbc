//! Guest registers and the host registers that stand for them.

use iced_x86::Register;

use super::emit::Reg;
use super::frame::{DISPLACED, STACK};

/// The number of a general register in its encoding; AH to BH count as their RAX to
/// RBX.
pub fn number_of(register: Register) -> Reg {
    register.full_register().number() as Reg
}

/// Where a guest register is; none for those in the state.
pub fn host_of(number: Reg) -> Option<Reg> {
    match number {
        4 => Some(STACK),
        _ if DISPLACED.contains(&number) => None,
        _ => Some(number),
    }
}

/// The general register of this size (in bytes) and number.
pub fn of_size(size: usize, number: Reg) -> Register {
    let number = u32::from(number);
    match size {
        8 => Register::RAX + number,
        4 => Register::EAX + number,
        2 => Register::AX + number,
        _ if number < 4 => Register::AL + number,
        _ if number < 8 => Register::SPL + (number - 4),
        _ => Register::R8L + (number - 8),
    }
}
