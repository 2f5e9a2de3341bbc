//! The XSAVE family: XSAVE, XSAVEOPT, XSAVEC, XSAVES, XRSTOR, XRSTORS.
//!
//! Where the components are is in [`guise_engine::xsave`].

use guise_engine::xsave::{AVX, COMPONENTS, Component, HEADER, MAX_SIZE, SSE, X87, compacted_size};

use crate::access::Access;
use crate::exception::Exception;
use crate::state::CpuState;

use super::{MXCSR_DEFAULT, finit, fxsave};

/// In the header: the area has the compacted layout.
const COMPACTED: u64 = 1 << 63;

fn place(component: &Component, layout: u64) -> usize {
    if layout & COMPACTED == 0 {
        component.offset
    } else {
        compacted_size(layout & !COMPACTED & (component.bit() - 1))
    }
}

/// How an area is addressed: REX.W, and how many vectors the mode has.
pub type Layout = fxsave::Layout;

/// A component's bytes, in the area's format.
fn store_component(state: &CpuState, component: &Component, vectors: usize, bytes: &mut [u8]) {
    match component.number {
        2 => {
            for number in 0..vectors {
                let upper = &state.vector[number].0[16..32];
                bytes[number * 16..number * 16 + 16].copy_from_slice(upper);
            }
        }
        5 => {
            for (chunk, mask) in bytes.chunks_exact_mut(8).zip(&state.opmask) {
                chunk.copy_from_slice(&mask.to_le_bytes());
            }
        }
        6 => {
            for number in 0..vectors {
                let upper = &state.vector[number].0[32..64];
                bytes[number * 32..number * 32 + 32].copy_from_slice(upper);
            }
        }
        9 => bytes[..4].copy_from_slice(&state.pkru.to_le_bytes()),
        _ => {
            for (chunk, vector) in bytes.chunks_exact_mut(64).zip(&state.vector[16..]) {
                chunk.copy_from_slice(&vector.0);
            }
        }
    }
}

fn load_component(state: &mut CpuState, component: &Component, vectors: usize, bytes: &[u8]) {
    match component.number {
        2 => {
            for number in 0..vectors {
                let upper = &mut state.vector[number].0[16..32];
                upper.copy_from_slice(&bytes[number * 16..number * 16 + 16]);
            }
        }
        5 => {
            for (chunk, mask) in bytes.chunks_exact(8).zip(&mut state.opmask) {
                *mask = u64::from_le_bytes(std::array::from_fn(|i| chunk[i]));
            }
        }
        6 => {
            for number in 0..vectors {
                let upper = &mut state.vector[number].0[32..64];
                upper.copy_from_slice(&bytes[number * 32..number * 32 + 32]);
            }
        }
        9 => state.pkru = u32::from_le_bytes(std::array::from_fn(|i| bytes[i])),
        _ if vectors == 16 => {
            for (chunk, vector) in bytes.chunks_exact(64).zip(&mut state.vector[16..]) {
                vector.0.copy_from_slice(chunk);
            }
        }
        // Outside of 64-bit mode these registers do not exist.
        _ => {}
    }
}

/// Bytes of a component that are written or read in a mode with so many vectors.
fn extent(component: &Component, vectors: usize) -> usize {
    match component.number {
        2 | 6 => component.size * vectors / 16,
        7 if vectors < 16 => 0,
        _ => component.size,
    }
}

/// Components that are not in their initial state.
fn in_use(state: &CpuState, layout: Layout) -> u64 {
    let mut initial = state.x87;
    finit(&mut initial);
    let clean = state.x87.0[..24] == initial.0[..24]
        && state.x87.0[fxsave::REGISTERS..fxsave::XMM].iter().all(|&byte| byte == 0);
    let mut used = if clean { 0 } else { X87 };
    if state.vector[..layout.vectors].iter().any(|vector| vector.0[..16] != [0; 16]) {
        used |= SSE;
    }
    let mut bytes = [0; 1024];
    for component in &COMPONENTS {
        let bytes = &mut bytes[..component.size];
        bytes.fill(0);
        store_component(state, component, layout.vectors, bytes);
        if bytes.iter().any(|&byte| byte != 0) {
            used |= component.bit();
        }
    }
    used
}

/// Which instruction writes an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Standard,
    /// XSAVEOPT: leaves out what is in its initial state.
    Optimized,
    /// XSAVEC and XSAVES.
    Compacted,
}

const GENERAL_PROTECTION: Exception = Exception::general_protection(0);

/// Saves the requested components that XCR0 enables.
pub fn save<A: Access>(
    cpu: &mut A,
    address: u64,
    requested: u64,
    form: Form,
    layout: Layout,
) -> Result<(), A::Fault> {
    let components = requested & cpu.state().xcr0;
    let mut used = in_use(cpu.state(), layout) & components;
    let compacted = form == Form::Compacted;
    let written = if form == Form::Standard { components } else { used };
    if compacted && components & SSE != 0 && cpu.state().mxcsr != MXCSR_DEFAULT {
        used |= SSE;
    }
    let written = written | if compacted { used } else { 0 };
    let old = if compacted {
        0
    } else {
        let mut bytes = [0; 8];
        cpu.read(address.wrapping_add(HEADER as u64), &mut bytes)?;
        u64::from_le_bytes(bytes)
    };

    let mut area = [0; fxsave::SIZE];
    if written & X87 != 0 {
        fxsave::store_x87(&cpu.state().x87, &mut area, layout.wide);
        cpu.write(address, &area[..fxsave::MXCSR])?;
        let registers = address.wrapping_add(fxsave::REGISTERS as u64);
        cpu.write(registers, &area[fxsave::REGISTERS..fxsave::XMM])?;
    }
    // XSAVE and XSAVEOPT store MXCSR with either kind of vectors.
    let stores_mxcsr = if compacted { written & SSE != 0 } else { components & (SSE | AVX) != 0 };
    if stores_mxcsr {
        fxsave::store_mxcsr(cpu.state(), &mut area);
        let mxcsr = fxsave::MXCSR..fxsave::MXCSR + 8;
        cpu.write(address.wrapping_add(mxcsr.start as u64), &area[mxcsr])?;
    }
    if written & SSE != 0 {
        fxsave::store_vectors(cpu.state(), &mut area, layout.vectors);
        let vectors = fxsave::XMM..fxsave::XMM + layout.vectors * 16;
        cpu.write(address.wrapping_add(vectors.start as u64), &area[vectors])?;
    }
    let order = if compacted { components | COMPACTED } else { 0 };
    let mut bytes = [0; 1024];
    for component in COMPONENTS.iter().filter(|component| written & component.bit() != 0) {
        let extent = extent(component, layout.vectors);
        store_component(cpu.state(), component, layout.vectors, &mut bytes[..component.size]);
        let place = address.wrapping_add(place(component, order) as u64);
        cpu.write(place, &bytes[..extent])?;
    }
    let header = address.wrapping_add(HEADER as u64);
    if compacted {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&used.to_le_bytes());
        bytes[8..].copy_from_slice(&order.to_le_bytes());
        cpu.write(header, &bytes)
    } else {
        cpu.write(header, &(old & !components | used).to_le_bytes())
    }
}

/// Restores the requested components that XCR0 enables. `supervisor` is XRSTORS.
pub fn restore<A: Access>(
    cpu: &mut A,
    address: u64,
    requested: u64,
    supervisor: bool,
    layout: Layout,
) -> Result<(), A::Fault> {
    let mut header = [0; 64];
    cpu.read(address.wrapping_add(HEADER as u64), &mut header)?;
    let word = |index: usize| u64::from_le_bytes(std::array::from_fn(|i| header[index * 8 + i]));
    let (present, order) = (word(0), word(1));
    let enabled = cpu.state().xcr0;
    let compacted = order & COMPACTED != 0;
    let bad = if compacted {
        order & !COMPACTED & !enabled != 0
            || present & !order != 0
            || header[16..].iter().any(|&byte| byte != 0)
    } else {
        supervisor || present & !enabled != 0 || header[8..24].iter().any(|&byte| byte != 0)
    };
    if bad {
        return Err(cpu.raise(GENERAL_PROTECTION));
    }
    let components = requested & enabled;
    let from_memory = components & present;

    // All of it is read before anything is changed.
    let mut area = [0; MAX_SIZE];
    if from_memory & (X87 | SSE) != 0 || components & (SSE | AVX) != 0 {
        cpu.read(address, &mut area[..fxsave::XMM + layout.vectors * 16])?;
    }
    for component in COMPONENTS.iter().filter(|component| from_memory & component.bit() != 0) {
        let extent = extent(component, layout.vectors);
        let from = address.wrapping_add(place(component, order) as u64);
        cpu.read(from, &mut area[component.offset..component.offset + extent])?;
    }
    let loads_mxcsr =
        if compacted { from_memory & SSE != 0 } else { components & (SSE | AVX) != 0 };
    let mxcsr = if loads_mxcsr {
        match fxsave::load_mxcsr(&area) {
            Ok(mxcsr) => Some(mxcsr),
            Err(exception) => return Err(cpu.raise(exception)),
        }
    } else if compacted && components & SSE != 0 {
        Some(MXCSR_DEFAULT)
    } else {
        None
    };

    let state = cpu.state();
    if let Some(mxcsr) = mxcsr {
        state.mxcsr = mxcsr;
    }
    if components & X87 != 0 {
        if from_memory & X87 != 0 {
            fxsave::load_x87(&mut state.x87, &area, layout.wide);
        } else {
            init(state, X87, layout);
        }
    }
    if components & SSE != 0 {
        if from_memory & SSE != 0 {
            fxsave::load_vectors(state, &area, layout.vectors);
        } else {
            init(state, SSE, layout);
        }
    }
    for component in COMPONENTS.iter().filter(|component| components & component.bit() != 0) {
        // What was not read is zero, which is the initial state.
        let bytes = &area[component.offset..component.offset + component.size];
        load_component(state, component, layout.vectors, bytes);
    }
    Ok(())
}

fn init(state: &mut CpuState, component: u64, layout: Layout) {
    if component == X87 {
        finit(&mut state.x87);
        state.x87.0[fxsave::REGISTERS..fxsave::XMM].fill(0);
    } else {
        for vector in &mut state.vector[..layout.vectors] {
            vector.0[..16].fill(0);
        }
    }
}

/// All components in the standard layout, whatever XCR0 enables.
pub(super) fn store_all(state: &CpuState) -> [u8; MAX_SIZE] {
    let layout = Layout { wide: true, vectors: 16 };
    let mut area = [0; MAX_SIZE];
    fxsave::store_x87(&state.x87, &mut area, layout.wide);
    fxsave::store_mxcsr(state, &mut area);
    fxsave::store_vectors(state, &mut area, layout.vectors);
    for component in &COMPONENTS {
        let place = component.offset..component.offset + component.size;
        store_component(state, component, layout.vectors, &mut area[place]);
    }
    area
}

/// The inverse of [`store_all`] for the components in `present`; the others become
/// initial.
pub(super) fn load_all(state: &mut CpuState, area: &[u8; MAX_SIZE], present: u64) {
    let layout = Layout { wide: true, vectors: 16 };
    if present & X87 != 0 {
        fxsave::load_x87(&mut state.x87, area, layout.wide);
    } else {
        init(state, X87, layout);
    }
    if present & SSE != 0 {
        fxsave::load_vectors(state, area, layout.vectors);
    } else {
        init(state, SSE, layout);
    }
    for component in &COMPONENTS {
        let place = component.offset..component.offset + component.size;
        if present & component.bit() != 0 {
            load_component(state, component, layout.vectors, &area[place]);
        } else {
            load_component(state, component, layout.vectors, &[0; 1024][..component.size]);
        }
    }
}
