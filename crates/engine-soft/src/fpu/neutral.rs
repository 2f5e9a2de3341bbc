//! Vector state as snapshots and migration carry it: an XSAVE area in its standard
//! layout.

use guise_engine::{EngineError, xsave as standard};

use crate::state::CpuState;

use super::{fxsave, xsave};

/// The area for the components that XCR0 enables, and the first two in any case. PKRU
/// counts without XCR0's permission, which only XSAVE needs.
pub fn store(state: &CpuState) -> Vec<u8> {
    let keys = if state.pkru == 0 { 0 } else { standard::PKRU };
    let components = state.xcr0 | standard::X87 | standard::SSE | keys;
    let mut area = xsave::store_all(state).to_vec();
    area.truncate(standard::standard_size(components));
    let present = components & all();
    area[standard::HEADER..standard::HEADER + 8].copy_from_slice(&present.to_le_bytes());
    area
}

/// Takes over an area. Its components must be ones that this engine knows, and as long
/// as its header says.
pub fn load(state: &mut CpuState, area: &[u8]) -> Result<(), EngineError> {
    let refuse = |why: String| Err(EngineError::State(why));
    if area.len() < standard::EXTENDED {
        return refuse(format!("an XSAVE area of {} bytes", area.len()));
    }
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| area[at + i]));
    let (present, order) = (word(standard::HEADER), word(standard::HEADER + 8));
    if order != 0 {
        return refuse("an XSAVE area that is not in the standard layout".to_owned());
    }
    if present & !all() != 0 {
        return refuse(format!("XSAVE components {:#x}", present & !all()));
    }
    let size = standard::standard_size(present);
    if area.len() < size {
        return refuse(format!("an XSAVE area of {} bytes, not {size}", area.len()));
    }
    let Ok(mxcsr) = fxsave::load_mxcsr(area) else {
        return refuse("bits in MXCSR that do not exist".to_owned());
    };
    let mut whole = [0; standard::MAX_SIZE];
    whole[..size].copy_from_slice(&area[..size]);
    state.mxcsr = mxcsr;
    xsave::load_all(state, &whole, present);
    Ok(())
}

fn all() -> u64 {
    standard::COMPONENTS.iter().fold(standard::X87 | standard::SSE, |sum, each| sum | each.bit())
}
