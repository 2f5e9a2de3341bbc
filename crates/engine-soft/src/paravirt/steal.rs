//! Steal time: how long a vCPU was ready to run and the host ran something else.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::PhysicalMemory;

const ENABLED: u64 = 1;
/// The structure is 64 bytes and aligned so.
const RESERVED: u64 = 0x3e;
const PREEMPTED: u64 = 16;

/// One vCPU's steal-time page.
#[derive(Debug, Default)]
pub struct StealTime {
    msr: u64,
    /// The kernel's scheduling statistics of the vCPU's thread.
    statistics: Option<File>,
    /// What the guest was told, and the host's count at that time.
    steal: u64,
    seen: Option<u64>,
}

impl StealTime {
    pub fn msr(&self) -> u64 {
        self.msr
    }

    /// Whether the value is acceptable.
    pub fn set_msr(&mut self, value: u64, memory: &mut dyn PhysicalMemory) -> bool {
        if value & RESERVED != 0 {
            return false;
        }
        self.msr = value;
        self.statistics = None;
        self.seen = None;
        if value & ENABLED != 0 {
            // The count goes on from what the page says.
            let mut steal = [0; 8];
            memory.read(value & !ENABLED, &mut steal);
            self.steal = u64::from_le_bytes(steal);
            // Another host may have said that the vCPU is not running; then the guest
            // leaves it TLB flushes to do.
            memory.write((value & !ENABLED) + PREEMPTED, &[0]);
            self.update(memory);
        }
        true
    }

    pub fn update(&mut self, memory: &mut dyn PhysicalMemory) {
        if self.msr & ENABLED == 0 {
            return;
        }
        let Some(waited) = self.waited() else { return };
        let before = self.seen.replace(waited).unwrap_or(waited);
        // A thread's count can start anew when the vCPU moves to another thread.
        self.advance(waited.saturating_sub(before), memory);
    }

    /// Adds to what the guest is told.
    pub(super) fn advance(&mut self, nanoseconds: u64, memory: &mut dyn PhysicalMemory) {
        if nanoseconds == 0 {
            return;
        }
        let address = self.msr & !ENABLED;
        let mut version = [0; 4];
        if !memory.read(address + 8, &mut version) {
            return;
        }
        self.steal = self.steal.wrapping_add(nanoseconds);
        let next = u32::from_le_bytes(version).wrapping_add(1) | 1;
        memory.write(address + 8, &next.to_le_bytes());
        memory.write(address, &self.steal.to_le_bytes());
        memory.write(address + 8, &next.wrapping_add(1).to_le_bytes());
    }

    /// Nanoseconds that this thread has waited for a processor.
    fn waited(&mut self) -> Option<u64> {
        if self.statistics.is_none() {
            self.statistics = File::open("/proc/thread-self/schedstat").ok();
        }
        let mut text = [0; 96];
        let length = self.statistics.as_ref()?.read_at(&mut text, 0).ok()?;
        parse(&text[..length])
    }
}

/// The second of the three numbers.
pub(super) fn parse(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}
