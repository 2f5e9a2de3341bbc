//! MSRs that describe or configure the processor and have no further effect here:
//! which there are, what they begin as, and which values a guest may write.
//!
//! MSRs that the engine acts on (EFER, the APIC's, SYSCALL's, …) are not here.

use super::Model;
use crate::extensions::Register::Ecx;

/// What a register is to RDMSR and WRMSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Msr {
    /// Reads as this; a write is #GP.
    Constant(u64),
    /// Reads as this; a write has no effect.
    Ignoring(u64),
    /// A command: a read is #GP, a write of any of these bits has no effect.
    Command { bits: u64 },
    /// Holds what was written; a write of other bits than these is #GP.
    Register { initial: u64, bits: u64 },
    /// Page attributes: eight memory types.
    PageAttributes,
    /// A memory type in the low byte, other bits as given.
    MemoryType { bits: u64 },
    /// Eight memory types.
    FixedRange,
}

pub const IA32_ARCH_CAPABILITIES: u32 = 0x10a;
pub const IA32_PKRS: u32 = 0x6e1;

/// RDCL_NO, IBRS_ALL, SKIP_L1DFL, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO,
/// FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO: there is no speculation
/// in the guest's terms, so none of these attacks on its kernel works.
const NOT_VULNERABLE: u64 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27
    | 1 << 62;

/// The power-up value of PAT.
pub const PAT_INITIAL: u64 = 0x0007_0406_0007_0406;

/// Variable ranges of the MTRRs.
const MTRR_RANGES: u32 = 8;

impl Model {
    /// What this register is, or none where it is not one of these.
    pub fn msr(&self, number: u32) -> Option<Msr> {
        use Msr::*;
        let physical = (1u64 << super::PHYSICAL_BITS) - 1;
        Some(match number {
            // Platform id, SMI count, machine check capabilities (no banks).
            0x17 | 0x34 | 0x179 => Constant(0),
            // IA32_FEATURE_CONTROL: locked, nothing enabled.
            0x3a => Constant(1),
            // IA32_SPEC_CTRL: IBRS, STIBP, SSBD, BHI_DIS_S; IA32_PRED_CMD: IBPB.
            0x48 => {
                let branch_history = self.bits(7, 2, crate::extensions::Register::Edx) >> 4 & 1;
                Register { initial: 0, bits: 7 | u64::from(branch_history) << 10 }
            }
            0x49 => Command { bits: 1 },
            // IA32_BIOS_UPDT_TRIG and IA32_BIOS_SIGN_ID: the newest microcode.
            0x79 => Command { bits: !0 },
            0x8b => Ignoring(0xffff_ffff_0000_0000),
            // MSR_PLATFORM_INFO without a ratio.
            0xce => Constant(0),
            // IA32_MTRRCAP: fixed ranges and write combining.
            0xfe => Constant(u64::from(MTRR_RANGES) | 1 << 8 | 1 << 10),
            IA32_ARCH_CAPABILITIES => Constant(NOT_VULNERABLE),
            // IA32_MCG_STATUS.
            0x17a => Register { initial: 0, bits: 7 },
            // IA32_MISC_ENABLE: fast strings; nothing else can be switched. KVM says with
            // two more bits that branch traces and precise events are not there.
            0x1a0 => Register { initial: 1, bits: 1 | 3 << 11 | 1 << 22 },
            0x200..0x210 if number & 1 == 0 => MemoryType { bits: physical & !0xfff },
            0x200..0x210 => Register { initial: 0, bits: physical & !0xfff | 1 << 11 },
            0x250 | 0x258 | 0x259 | 0x268..=0x26f => FixedRange,
            0x277 => PageAttributes,
            0x2ff => MemoryType { bits: 3 << 10 },
            // IA32_PKRS: two bits for each key.
            IA32_PKRS if self.tells(7, Ecx, 31) => Register { initial: 0, bits: 0xffff_ffff },
            // IA32_XSS: no supervisor components.
            0xda0 if self.bits(0xd, 1, crate::extensions::Register::Eax) & 8 != 0 => {
                Register { initial: 0, bits: 0 }
            }
            _ => return None,
        })
    }

    /// All that hold something, for saving.
    pub fn stateful_msrs(&self) -> impl Iterator<Item = u32> + '_ {
        let keys = self.tells(7, Ecx, 31).then_some(IA32_PKRS);
        [0x48, 0x17a, 0x1a0, 0x250, 0x258, 0x259, 0x277, 0x2ff]
            .into_iter()
            .chain(keys)
            .chain(0x200..0x210)
            .chain(0x268..0x270)
    }
}

fn is_memory_type(value: u8) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

impl Msr {
    /// What it reads as before it is written.
    pub fn initial(self) -> u64 {
        match self {
            Msr::Constant(value) | Msr::Ignoring(value) => value,
            Msr::Register { initial, .. } => initial,
            Msr::PageAttributes => PAT_INITIAL,
            Msr::Command { .. } | Msr::MemoryType { .. } | Msr::FixedRange => 0,
        }
    }

    pub fn can_read(self) -> bool {
        !matches!(self, Msr::Command { .. })
    }

    /// Whether the value is kept, where a write is allowed; none where it is #GP.
    pub fn write(self, value: u64) -> Option<bool> {
        let mut types = value.to_le_bytes().into_iter();
        let (valid, kept) = match self {
            Msr::Constant(_) => (false, false),
            Msr::Ignoring(_) => (true, false),
            Msr::Command { bits } => (value & !bits == 0, false),
            Msr::Register { bits, .. } => (value & !bits == 0, true),
            // Type 7 is UC-, which the MTRRs do not have.
            Msr::PageAttributes => (types.all(|each| each == 7 || is_memory_type(each)), true),
            Msr::MemoryType { bits } => {
                (value & !(bits | 0xff) == 0 && is_memory_type(value as u8), true)
            }
            Msr::FixedRange => (types.all(is_memory_type), true),
        };
        valid.then_some(kept)
    }
}
