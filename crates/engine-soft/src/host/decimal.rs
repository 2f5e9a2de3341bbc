//! Decimal adjustment and SALC: instructions of 16- and 32-bit code that the host's
//! 64-bit mode no longer has.

use iced_x86::{Instruction, Mnemonic};

use crate::exception::{DIVIDE_ERROR, Exception};
use crate::state::{CpuState, RAX};

const CF: u64 = 0x1;
const PF: u64 = 0x4;
const AF: u64 = 0x10;
const ZF: u64 = 0x40;
const SF: u64 = 0x80;
const OF: u64 = 0x800;

/// Executes an instruction of class [`super::classify::Class::Decimal`].
pub fn execute(instruction: &Instruction, state: &mut CpuState) -> Result<(), Exception> {
    let ax = state.gpr[RAX] as u16;
    let [al, ah] = ax.to_le_bytes();
    let (carry, auxiliary) = (state.rflags & CF != 0, state.rflags & AF != 0);
    match instruction.mnemonic() {
        Mnemonic::Aaa | Mnemonic::Aas => {
            let adjust = al & 15 > 9 || auxiliary;
            let ax = match (adjust, instruction.mnemonic()) {
                (false, _) => ax,
                (true, Mnemonic::Aaa) => ax.wrapping_add(0x106),
                (true, _) => ax.wrapping_sub(0x106),
            };
            set_ax(state, ax & 0xff0f);
            set_flags(state, CF | AF, if adjust { CF | AF } else { 0 });
        }
        Mnemonic::Daa => {
            let low = al & 15 > 9 || auxiliary;
            let high = al > 0x99 || carry;
            let sum = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
            set_decimal(state, al.wrapping_add(sum), high, low);
        }
        Mnemonic::Das => {
            let low = al & 15 > 9 || auxiliary;
            let high = al > 0x99 || carry;
            let sum = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
            // A borrow out of the first step is a carry too.
            let carry = high || low && al < 6;
            set_decimal(state, al.wrapping_sub(sum), carry, low);
        }
        Mnemonic::Aam => {
            let base = instruction.immediate8();
            if base == 0 {
                return Err(Exception::plain(DIVIDE_ERROR));
            }
            set_ax(state, u16::from_le_bytes([al % base, al / base]));
            set_result_flags(state, al % base);
        }
        Mnemonic::Aad => {
            let sum = al.wrapping_add(ah.wrapping_mul(instruction.immediate8()));
            set_ax(state, u16::from(sum));
            set_result_flags(state, sum);
        }
        _ => {
            let al = if carry { 0xff } else { 0 };
            set_ax(state, u16::from_le_bytes([al, ah]));
        }
    }
    Ok(())
}

fn set_ax(state: &mut CpuState, ax: u16) {
    state.gpr[RAX] = state.gpr[RAX] & !0xffff | u64::from(ax);
}

fn set_flags(state: &mut CpuState, mask: u64, flags: u64) {
    state.rflags = state.rflags & !mask | flags;
}

/// Sign, zero and parity of a result; the other status flags become 0.
fn set_result_flags(state: &mut CpuState, result: u8) {
    let mut flags = 0;
    if result == 0 {
        flags |= ZF;
    }
    if result & 0x80 != 0 {
        flags |= SF;
    }
    if result.count_ones() & 1 == 0 {
        flags |= PF;
    }
    set_flags(state, CF | PF | AF | ZF | SF | OF, flags);
}

fn set_decimal(state: &mut CpuState, al: u8, carry: bool, auxiliary: bool) {
    let ah = (state.gpr[RAX] >> 8) as u8;
    set_ax(state, u16::from_le_bytes([al, ah]));
    set_result_flags(state, al);
    let flags = if carry { CF } else { 0 } | if auxiliary { AF } else { 0 };
    set_flags(state, CF | AF, flags);
}

#[cfg(test)]
mod tests;
