//! Floating-point and vector state: when it may be used, and how it gets into memory
//! and back.
//!
//! Arithmetic is not here: that runs on the host's processor ([`crate::host::stub`]).
//!
//! | module | what it holds |
//! |---|---|
//! | [`environment`] | the x87 environment in its four layouts: FNSTENV, FLDENV, FNSAVE, FRSTOR |
//! | [`fxsave`] | the 512-byte image of FXSAVE and FXRSTOR |
//! | [`xsave`] | the XSAVE family, both layouts |
//! | [`neutral`] | vector state as snapshots carry it |
//! | [`execute`] | all of these as instructions |

pub mod environment;
pub mod execute;
pub mod fxsave;
pub mod neutral;
pub mod xsave;

use guise_engine::xsave as standard;

use crate::exception::{DEVICE_NOT_AVAILABLE, Exception};
use crate::host::classify::Unit;
use crate::state::{CpuState, Vector, X87};

const CR0_PE: u64 = 1 << 0;
const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXSAVE: u64 = 1 << 18;
const RFLAGS_VM: u64 = 1 << 17;

/// MXCSR after a reset, and in the x87 image, whose SSE part is not used but loaded.
pub const MXCSR_DEFAULT: u32 = 0x1f80;
/// Bits of MXCSR that exist.
pub const MXCSR_MASK: u32 = 0xffff;

const UNDEFINED: Exception = Exception::invalid_opcode();
const NOT_AVAILABLE: Exception = Exception::plain(DEVICE_NOT_AVAILABLE);

/// Whether an instruction of this unit may run now. A pending x87 exception is not
/// looked at: the host's processor raises it when the instruction runs.
#[inline]
pub fn check(unit: Unit, state: &CpuState) -> Result<(), Exception> {
    let cr0 = state.cr0;
    let undefined = match unit {
        Unit::None => return Ok(()),
        Unit::X87 => {
            return if cr0 & (CR0_EM | CR0_TS) == 0 { Ok(()) } else { Err(NOT_AVAILABLE) };
        }
        Unit::Vex => return if has_vex(state) { Ok(()) } else { Err(UNDEFINED) },
        Unit::Mmx => cr0 & CR0_EM != 0,
        Unit::Sse | Unit::SseMmx => cr0 & CR0_EM != 0 || state.cr4 & CR4_OSFXSR == 0,
        Unit::Avx => !has_vex(state) || !enables(state, standard::AVX_STATE),
        Unit::Avx512 => !has_vex(state) || !enables(state, standard::AVX512_STATE),
    };
    if undefined {
        Err(UNDEFINED)
    } else if cr0 & CR0_TS != 0 {
        Err(NOT_AVAILABLE)
    } else {
        Ok(())
    }
}

/// As [`check`], for WAIT, which minds TS only with MP.
pub fn check_wait(state: &CpuState) -> Result<(), Exception> {
    let both = CR0_MP | CR0_TS;
    if state.cr0 & both == both { Err(NOT_AVAILABLE) } else { Ok(()) }
}

/// VEX and EVEX prefixes mean something in protected mode only.
fn has_vex(state: &CpuState) -> bool {
    state.cr0 & CR0_PE != 0 && state.rflags & RFLAGS_VM == 0
}

fn enables(state: &CpuState, components: u64) -> bool {
    state.cr4 & CR4_OSXSAVE != 0 && state.xcr0 & components == components
}

/// Puts x87, MMX, SSE and all that came later into its state after power-up.
pub fn reset(state: &mut CpuState) {
    init_x87(&mut state.x87, 0x40, 0x5555);
    state.mxcsr = MXCSR_DEFAULT;
    state.vector = [Vector([0; 64]); 32];
    state.opmask = [0; 8];
    state.pkru = 0;
    state.xcr0 = 1;
}

/// x87 state as FNINIT makes it.
pub fn finit(image: &mut X87) {
    let registers: [u8; 128] = std::array::from_fn(|i| image.0[fxsave::REGISTERS + i]);
    init_x87(image, 0x37f, 0xffff);
    image.0[fxsave::REGISTERS..fxsave::REGISTERS + 128].copy_from_slice(&registers);
}

/// An image with this control word and these (full) tags, all else empty.
fn init_x87(image: &mut X87, control: u16, tags: u16) {
    image.0 = [0; 512];
    image.0[0..2].copy_from_slice(&control.to_le_bytes());
    image.0[4] = environment::abridge_tags(tags);
    image.0[24..28].copy_from_slice(&MXCSR_DEFAULT.to_le_bytes());
    image.0[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
}

#[cfg(test)]
mod tests;
