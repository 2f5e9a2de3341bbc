//! The image of FXSAVE and FXRSTOR, which is the beginning of XSAVE's too.

use crate::exception::Exception;
use crate::state::{CpuState, X87};

use super::{MXCSR_DEFAULT, MXCSR_MASK};

pub const SIZE: usize = 512;
/// FXSAVE leaves the rest for software.
pub const WRITTEN: usize = 464;
pub const MXCSR: usize = 24;
/// ST(0) to ST(7), 16 bytes each.
pub const REGISTERS: usize = 32;
/// XMM0 to XMM15.
pub const XMM: usize = 160;

/// How the image is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Pointers have 64 bits (REX.W), not 32 and a selector.
    pub wide: bool,
    /// In 64-bit mode there are 16 vectors, else 8.
    pub vectors: usize,
}

/// The x87 part as it goes to memory, in the first [`XMM`] bytes but for MXCSR.
pub fn store_x87(image: &X87, bytes: &mut [u8], wide: bool) {
    bytes[..24].copy_from_slice(&image.0[..24]);
    bytes[5] = 0;
    if !wide {
        // The upper halves become selectors, which are not kept.
        bytes[12..16].fill(0);
        bytes[20..24].fill(0);
    }
    bytes[REGISTERS..XMM].copy_from_slice(&image.0[REGISTERS..XMM]);
    for number in 0..8 {
        bytes[REGISTERS + number * 16 + 10..REGISTERS + number * 16 + 16].fill(0);
    }
}

pub fn load_x87(image: &mut X87, bytes: &[u8], wide: bool) {
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    image.set_words(word(0), word(2));
    image.0[4] = bytes[4];
    image.0[5] = 0;
    image.0[6..8].copy_from_slice(&(word(6) & 0x7ff).to_le_bytes());
    image.0[8..24].copy_from_slice(&bytes[8..24]);
    if !wide {
        image.0[12..16].fill(0);
        image.0[20..24].fill(0);
    }
    image.0[REGISTERS..XMM].copy_from_slice(&bytes[REGISTERS..XMM]);
    // What the host loads with it.
    image.0[MXCSR..MXCSR + 4].copy_from_slice(&MXCSR_DEFAULT.to_le_bytes());
}

pub fn store_mxcsr(state: &CpuState, bytes: &mut [u8]) {
    bytes[MXCSR..MXCSR + 4].copy_from_slice(&state.mxcsr.to_le_bytes());
    bytes[MXCSR + 4..MXCSR + 8].copy_from_slice(&MXCSR_MASK.to_le_bytes());
}

/// The image's MXCSR, if it has no bits that do not exist.
pub fn load_mxcsr(bytes: &[u8]) -> Result<u32, Exception> {
    checked_mxcsr(u32::from_le_bytes(std::array::from_fn(|i| bytes[MXCSR + i])))
}

pub fn checked_mxcsr(mxcsr: u32) -> Result<u32, Exception> {
    if mxcsr & !MXCSR_MASK == 0 { Ok(mxcsr) } else { Err(Exception::general_protection(0)) }
}

pub fn store_vectors(state: &CpuState, bytes: &mut [u8], vectors: usize) {
    for number in 0..vectors {
        let place = XMM + number * 16;
        bytes[place..place + 16].copy_from_slice(&state.vector[number].0[..16]);
    }
}

pub fn load_vectors(state: &mut CpuState, bytes: &[u8], vectors: usize) {
    for number in 0..vectors {
        let place = XMM + number * 16;
        state.vector[number].0[..16].copy_from_slice(&bytes[place..place + 16]);
    }
}

/// FXSAVE. The first [`XMM`]` + 16 * vectors` bytes are what it writes and the rest is 0.
pub fn save(state: &CpuState, layout: Layout) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    store_x87(&state.x87, &mut bytes, layout.wide);
    store_mxcsr(state, &mut bytes);
    store_vectors(state, &mut bytes, layout.vectors);
    bytes
}

/// FXRSTOR.
pub fn restore(state: &mut CpuState, bytes: &[u8; SIZE], layout: Layout) -> Result<(), Exception> {
    state.mxcsr = load_mxcsr(bytes)?;
    load_x87(&mut state.x87, bytes, layout.wide);
    load_vectors(state, bytes, layout.vectors);
    Ok(())
}
