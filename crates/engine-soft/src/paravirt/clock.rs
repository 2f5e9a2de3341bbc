//! kvm-clock: the guest computes the time from its TSC and a page that says how.
//!
//! All vCPUs' pages hold the same line through time (one TSC, one moment), so that
//! clocks of different vCPUs never disagree, which the stable bit promises. In each page
//! the moment is told in that vCPU's own TSC, which may be ahead of the VM's. The
//! version in the page is odd while it is being written.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use guise_engine::VmState;

use super::PhysicalMemory;

const ENABLED: u64 = 1;
const STABLE: u8 = 1;
const NANOS: u64 = 1_000_000_000;

/// A line: when the VM's TSC was `tsc`, it was `ns`.
#[derive(Clone, Copy, Debug)]
struct Line {
    tsc: u64,
    ns: u64,
    /// The time of day when it was 0.
    start: u64,
}

/// The clock that the vCPUs of a VM share.
#[derive(Debug)]
pub struct Clock {
    khz: u64,
    multiplier: u32,
    shift: i8,
    line: Mutex<Line>,
}

/// Nanoseconds are `(ticks << shift) * multiplier >> 32`.
fn scale(khz: u64) -> (u32, i8) {
    let (mut shift, mut scaled) = (0i8, NANOS as u128);
    let mut frequency = u128::from(khz.max(1)) * 1000;
    while frequency > scaled * 2 {
        frequency >>= 1;
        shift -= 1;
    }
    while frequency <= scaled {
        frequency <<= 1;
        shift += 1;
    }
    // Now half of the frequency is at most a billion, so the quotient fits.
    scaled <<= 32;
    ((scaled / frequency).min(u128::from(u32::MAX)) as u32, shift)
}

impl Clock {
    /// A clock that is 0 when the VM's TSC is `tsc`.
    pub fn new(tsc_khz: u64, tsc: u64) -> Clock {
        let (multiplier, shift) = scale(tsc_khz);
        Clock {
            khz: tsc_khz,
            multiplier,
            shift,
            line: Mutex::new(Line { tsc, ns: 0, start: realtime() }),
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nanoseconds(&self, ticks: u64) -> u64 {
        let ticks = u128::from(ticks);
        let shifted = if self.shift >= 0 { ticks << self.shift } else { ticks >> -self.shift };
        ((shifted * u128::from(self.multiplier)) >> 32) as u64
    }

    /// Nanoseconds since the machine started, when the VM's TSC is `tsc`.
    pub fn now(&self, tsc: u64) -> u64 {
        let line = *self.line();
        line.ns.wrapping_add(self.nanoseconds(tsc.saturating_sub(line.tsc)))
    }

    /// What snapshots carry.
    pub fn state(&self, tsc: u64) -> VmState {
        VmState {
            version: VmState::VERSION,
            clock_ns: self.now(tsc),
            realtime_ns: realtime(),
            tsc_khz: self.khz,
        }
    }

    /// Goes on from a snapshot, at this TSC of the VM. The vCPUs' MSRs are restored after
    /// this.
    pub fn restore(&self, state: &VmState, tsc: u64) {
        let start = realtime().saturating_sub(state.clock_ns);
        *self.line() = Line { tsc, ns: state.clock_ns, start };
    }

    /// Writes the time of day at which this clock was 0.
    pub(super) fn publish_wall_clock(&self, address: u64, memory: &mut dyn PhysicalMemory) {
        let start = self.line().start;
        let mut version = [0; 4];
        if !memory.read(address, &mut version) {
            return;
        }
        let next = u32::from_le_bytes(version).wrapping_add(1) | 1;
        memory.write(address, &next.to_le_bytes());
        memory.write(address.wrapping_add(4), &((start / NANOS) as u32).to_le_bytes());
        memory.write(address.wrapping_add(8), &((start % NANOS) as u32).to_le_bytes());
        memory.write(address, &next.wrapping_add(1).to_le_bytes());
    }
}

fn realtime() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

/// One vCPU's page of kvm-clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct VcpuClock {
    msr: u64,
    /// How far this vCPU's TSC is ahead of the VM's.
    tsc_offset: u64,
}

impl VcpuClock {
    pub fn msr(&self) -> u64 {
        self.msr
    }

    pub fn set_msr(&mut self, value: u64, clock: &Clock, memory: &mut dyn PhysicalMemory) {
        self.msr = value;
        self.publish(clock, memory);
    }

    /// The vCPU's TSC has been set.
    pub fn set_tsc_offset(&mut self, offset: u64, clock: &Clock, memory: &mut dyn PhysicalMemory) {
        self.tsc_offset = offset;
        self.publish(clock, memory);
    }

    fn publish(&self, clock: &Clock, memory: &mut dyn PhysicalMemory) {
        if self.msr & ENABLED != 0 {
            publish(self.msr & !ENABLED, self.tsc_offset, clock, memory);
        }
    }
}

fn publish(address: u64, tsc_offset: u64, clock: &Clock, memory: &mut dyn PhysicalMemory) {
    let mut version = [0; 4];
    if !memory.read(address, &mut version) {
        return;
    }
    let line = *clock.line();
    let next = u32::from_le_bytes(version).wrapping_add(1) | 1;
    let mut page = [0; 32];
    page[0..4].copy_from_slice(&next.to_le_bytes());
    page[8..16].copy_from_slice(&line.tsc.wrapping_add(tsc_offset).to_le_bytes());
    page[16..24].copy_from_slice(&line.ns.to_le_bytes());
    page[24..28].copy_from_slice(&clock.multiplier.to_le_bytes());
    page[28] = clock.shift as u8;
    page[29] = STABLE;
    memory.write(address, &page);
    memory.write(address, &next.wrapping_add(1).to_le_bytes());
}
