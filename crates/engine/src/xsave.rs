//! The layout of the XSAVE area: which components there are, and where.
//!
//! The places in the standard layout are those of Intel's processors. CPUID tells the
//! guest of them, and the neutral state ([`crate::VcpuState::xsave`]) uses them.

pub const X87: u64 = 1 << 0;
pub const SSE: u64 = 1 << 1;
pub const AVX: u64 = 1 << 2;
pub const OPMASK: u64 = 1 << 5;
pub const ZMM_HIGH: u64 = 1 << 6;
pub const HIGH_ZMM: u64 = 1 << 7;
pub const PKRU: u64 = 1 << 9;

/// What AVX needs enabled.
pub const AVX_STATE: u64 = SSE | AVX;
/// What AVX-512 needs enabled.
pub const AVX512_STATE: u64 = AVX_STATE | OPMASK | ZMM_HIGH | HIGH_ZMM;

/// Where the header is.
pub const HEADER: usize = 512;
/// Where the components after it begin.
pub const EXTENDED: usize = 576;

/// A component beyond the first two.
#[derive(Clone, Copy, Debug)]
pub struct Component {
    pub number: u32,
    /// In the standard layout.
    pub offset: usize,
    pub size: usize,
}

impl Component {
    pub fn bit(&self) -> u64 {
        1 << self.number
    }
}

/// In ascending order. None of them is aligned in the compacted layout beyond its size.
pub const COMPONENTS: [Component; 5] = [
    Component { number: 2, offset: 576, size: 256 },
    Component { number: 5, offset: 1088, size: 64 },
    Component { number: 6, offset: 1152, size: 512 },
    Component { number: 7, offset: 1664, size: 1024 },
    Component { number: 9, offset: 2688, size: 8 },
];

/// The longest standard area.
pub const MAX_SIZE: usize = 2688 + 8;

/// Length of the standard area for these components.
pub fn standard_size(components: u64) -> usize {
    COMPONENTS
        .iter()
        .filter(|component| components & component.bit() != 0)
        .map(|component| component.offset + component.size)
        .max()
        .unwrap_or(EXTENDED)
}

/// Length of the compacted area for these components.
pub fn compacted_size(components: u64) -> usize {
    EXTENDED
        + COMPONENTS
            .iter()
            .filter(|component| components & component.bit() != 0)
            .map(|component| component.size)
            .sum::<usize>()
}
