//! Exceptions of the guest's processor, on their way to be delivered.

pub const DIVIDE_ERROR: u8 = 0;
pub const DEBUG: u8 = 1;
pub const NMI: u8 = 2;
pub const BREAKPOINT: u8 = 3;
pub const OVERFLOW: u8 = 4;
pub const BOUND_RANGE: u8 = 5;
pub const INVALID_OPCODE: u8 = 6;
pub const DEVICE_NOT_AVAILABLE: u8 = 7;
pub const DOUBLE_FAULT: u8 = 8;
pub const INVALID_TSS: u8 = 10;
pub const SEGMENT_NOT_PRESENT: u8 = 11;
pub const STACK_FAULT: u8 = 12;
pub const GENERAL_PROTECTION: u8 = 13;
pub const PAGE_FAULT: u8 = 14;
pub const X87_FLOATING_POINT: u8 = 16;
pub const ALIGNMENT_CHECK: u8 = 17;
pub const MACHINE_CHECK: u8 = 18;
pub const SIMD_FLOATING_POINT: u8 = 19;

/// An exception that an instruction caused, before its delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    pub vector: u8,
    pub error_code: Option<u32>,
    /// The linear address, for a page fault: what CR2 becomes.
    pub address: u64,
}

impl Exception {
    /// One that pushes no error code.
    pub const fn plain(vector: u8) -> Exception {
        Exception { vector, error_code: None, address: 0 }
    }

    pub const fn with_code(vector: u8, error_code: u32) -> Exception {
        Exception { vector, error_code: Some(error_code), address: 0 }
    }

    pub const fn page_fault(address: u64, error_code: u32) -> Exception {
        Exception { vector: PAGE_FAULT, error_code: Some(error_code), address }
    }

    pub const fn general_protection(error_code: u32) -> Exception {
        Exception::with_code(GENERAL_PROTECTION, error_code)
    }

    pub const fn invalid_opcode() -> Exception {
        Exception::plain(INVALID_OPCODE)
    }
}
