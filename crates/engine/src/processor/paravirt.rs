//! What CPUID tells of the paravirtual interface that kernels know from KVM. Why each
//! of these is there is told where the software engine implements them; KVM has them
//! all.

const CLOCKSOURCE: u32 = 1 << 0;
const NO_IO_DELAY: u32 = 1 << 1;
const CLOCKSOURCE_2: u32 = 1 << 3;
const STEAL_TIME: u32 = 1 << 5;
const UNHALT: u32 = 1 << 7;
const SEND_IPI: u32 = 1 << 11;
const CLOCKSOURCE_STABLE: u32 = 1 << 24;

/// EAX of leaf 0x40000001.
pub const FEATURES: u32 =
    CLOCKSOURCE | NO_IO_DELAY | CLOCKSOURCE_2 | STEAL_TIME | UNHALT | SEND_IPI | CLOCKSOURCE_STABLE;
