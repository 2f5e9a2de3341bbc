//! Hypercalls: VMCALL and VMMCALL with a number in RAX.

use std::time::{SystemTime, UNIX_EPOCH};

use super::PhysicalMemory;

const KICK_CPU: u64 = 5;
const CLOCK_PAIRING: u64 = 9;
const SEND_IPI: u64 = 10;

const ENOSYS: i64 = -1000;
const EPERM: i64 = -1;
const EFAULT: i64 = -14;
const EOPNOTSUPP: i64 = -95;
const EINVAL: i64 = -22;

/// What a hypercall asks of the engine. RAX becomes the result afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hypercall {
    /// Nothing: this is the result.
    Done(i64),
    /// Wakes the vCPU with this local APIC from HLT, even if it has interrupts
    /// disabled. The result is 0.
    Kick { apic_id: u32 },
    /// Sends an interrupt (low half of an ICR) to local APICs `first + n` for each bit n
    /// in `targets`. The result is how many of them there are.
    SendIpi { first: u32, targets: u128, icr: u32 },
}

/// What the caller's registers say.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// RAX, RBX, RCX, RDX, RSI.
    pub number: u64,
    pub arguments: [u64; 4],
    /// 64-bit mode; else the upper halves do not count.
    pub long: bool,
    pub privilege: u8,
    /// The guest's TSC.
    pub tsc: u64,
}

/// Decides about a hypercall.
pub fn decide(call: &Call, memory: &mut dyn PhysicalMemory) -> Hypercall {
    let cut = |value: u64| if call.long { value } else { value & 0xffff_ffff };
    let [a, b, c, d] = call.arguments.map(cut);
    if call.privilege != 0 {
        return Hypercall::Done(EPERM);
    }
    match cut(call.number) {
        KICK_CPU => Hypercall::Kick { apic_id: b as u32 },
        CLOCK_PAIRING => Hypercall::Done(pair_clocks(a, b, call.tsc, memory)),
        SEND_IPI => send_ipi(a, b, c, d, call.long),
        _ => Hypercall::Done(ENOSYS),
    }
}

fn send_ipi(low: u64, high: u64, first: u64, icr: u64, long: bool) -> Hypercall {
    const NMI: u64 = 4;
    const FIXED: u64 = 0;
    let width = if long { 64 } else { 32 };
    let mode = icr >> 8 & 7;
    if first > u64::from(u32::MAX) || !matches!(mode, FIXED | NMI) {
        return Hypercall::Done(EINVAL);
    }
    let targets = u128::from(low) | u128::from(high) << width;
    Hypercall::SendIpi { first: first as u32, targets, icr: icr as u32 }
}

/// The host's time of day and the guest's TSC at the same moment, for PTP.
fn pair_clocks(address: u64, kind: u64, tsc: u64, memory: &mut dyn PhysicalMemory) -> i64 {
    const WALL_CLOCK: u64 = 0;
    if kind != WALL_CLOCK {
        return EOPNOTSUPP;
    }
    let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) else { return EOPNOTSUPP };
    let mut pairing = [0; 64];
    pairing[0..8].copy_from_slice(&now.as_secs().to_le_bytes());
    pairing[8..16].copy_from_slice(&u64::from(now.subsec_nanos()).to_le_bytes());
    pairing[16..24].copy_from_slice(&tsc.to_le_bytes());
    if memory.write(address, &pairing) { 0 } else { EFAULT }
}
