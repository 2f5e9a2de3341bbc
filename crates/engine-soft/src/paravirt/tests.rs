//! Clocks are where the guest looks for them, and run as fast as they should.

use super::hypercall::{Call, decide};
use super::*;

struct Memory(Vec<u8>);

impl PhysicalMemory for Memory {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> bool {
        let Ok(start) = usize::try_from(address) else { return false };
        let Some(source) = self.0.get(start..start.saturating_add(bytes.len())) else {
            return false;
        };
        bytes.copy_from_slice(source);
        true
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        let Ok(start) = usize::try_from(address) else { return false };
        let Some(target) = self.0.get_mut(start..start.saturating_add(bytes.len())) else {
            return false;
        };
        target.copy_from_slice(bytes);
        true
    }
}

impl Memory {
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }
}

/// Time as a guest computes it from its page.
fn guest_time(memory: &Memory, page: usize, tsc: u64) -> u64 {
    let ticks = u128::from(tsc - memory.u64(page + 8));
    let shift = memory.0[page + 28] as i8;
    let shifted = if shift >= 0 { ticks << shift } else { ticks >> -shift };
    memory.u64(page + 16) + ((shifted * u128::from(memory.u32(page + 24))) >> 32) as u64
}

#[test]
fn the_clock_runs_at_its_rate() {
    for khz in [1, 1000, 999_999, 1_000_000, 1_000_001, 2_500_000, 5_123_456] {
        let clock = Clock::new(khz, 1000);
        let hour = khz * 1000 * 3600;
        let error = clock.now(1000 + hour).abs_diff(3_600_000_000_000);
        assert!(error < 3_600_000, "{khz}: {error} ns an hour");
    }
}

#[test]
fn a_page_tells_the_same_time_as_the_clock() {
    let clock = Clock::new(2_400_000, 5000);
    let mut memory = Memory(vec![0; 4096]);
    let mut vcpu = Paravirt::default();
    assert_eq!(vcpu.write_msr(MSR_SYSTEM_TIME_NEW, 0x101, &clock, &mut memory), Some(true));
    assert_eq!(vcpu.read_msr(MSR_SYSTEM_TIME), Some(0x101));
    assert_eq!(memory.u32(0x100) & 1, 0);
    assert_ne!(memory.u32(0x100), 0);
    assert_eq!(memory.0[0x100 + 29], 1);
    for tsc in [5000, 2_400_005_000, 1 << 50] {
        assert_eq!(guest_time(&memory, 0x100, tsc), clock.now(tsc));
    }
    // A snapshot goes on where it was, with another TSC.
    let state = clock.state(2_400_005_000);
    assert!(state.clock_ns.abs_diff(1_000_000_000) < 10);
    clock.restore(&state, 77);
    vcpu.restore_msr(MSR_SYSTEM_TIME_NEW, 0x101, &clock, &mut memory);
    assert_eq!(guest_time(&memory, 0x100, 77), state.clock_ns);
}

#[test]
fn a_page_tells_the_time_by_its_own_vcpus_tsc() {
    const AHEAD: u64 = 60_000_000_000_000;
    let clock = Clock::new(2_500_000, 5000);
    let mut memory = Memory(vec![0; 4096]);
    let mut vcpu = Paravirt::default();
    vcpu.set_tsc_offset(AHEAD, &clock, &mut memory);
    assert_eq!(memory.0, vec![0; 4096], "there is no page yet");
    vcpu.write_msr(MSR_SYSTEM_TIME_NEW, 0x101, &clock, &mut memory);
    assert_eq!(guest_time(&memory, 0x100, AHEAD + 1_000_000), clock.now(1_000_000));
    vcpu.set_tsc_offset(7, &clock, &mut memory);
    assert_eq!(guest_time(&memory, 0x100, 1_000_007), clock.now(1_000_000));
}

#[test]
fn the_wall_clock_and_kvm_clock_give_the_time_of_day() {
    let clock = Clock::new(1_000_000, 0);
    let mut memory = Memory(vec![0; 64]);
    Paravirt::default().write_msr(MSR_WALL_CLOCK_NEW, 16, &clock, &mut memory);
    assert_eq!(memory.u32(16), 2);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(u64::from(memory.u32(20)).abs_diff(now.as_secs()) < 60);
    assert!(memory.u32(24) < 1_000_000_000);
}

#[test]
fn addresses_without_memory_do_no_harm() {
    let clock = Clock::new(1_000_000, 0);
    let mut memory = Memory(vec![0; 64]);
    let mut vcpu = Paravirt::default();
    for number in [MSR_WALL_CLOCK, MSR_SYSTEM_TIME, MSR_SYSTEM_TIME_NEW] {
        assert_eq!(vcpu.write_msr(number, !0, &clock, &mut memory), Some(true));
    }
    assert_eq!(vcpu.write_msr(MSR_STEAL_TIME, !0x3e, &clock, &mut memory), Some(true));
    assert_eq!(vcpu.write_msr(MSR_STEAL_TIME, 3, &clock, &mut memory), Some(false));
    assert_eq!(vcpu.write_msr(0x4b56_4d02, 0, &clock, &mut memory), None);
    vcpu.tick(&mut memory);
    assert_eq!(memory.0, vec![0; 64]);
}

#[test]
fn steal_time_adds_up() {
    let mut memory = Memory(vec![0; 128]);
    memory.0[64] = 100;
    let mut steal = StealTime::default();
    assert!(steal.set_msr(64 | 1, &mut memory));
    steal.advance(50, &mut memory);
    assert_eq!((memory.u64(64), memory.u32(72)), (150, 2));
    steal.advance(0, &mut memory);
    assert_eq!(memory.u32(72), 2);
    assert_eq!(super::steal::parse(b"123 456 7\n"), Some(456));
    assert_eq!(super::steal::parse(b"123"), None);
}

#[test]
fn hypercalls_are_decided() {
    let mut memory = Memory(vec![0; 64]);
    let mut call = Call { number: 5, arguments: [0, 3, 0, 0], long: true, privilege: 0, tsc: 42 };
    assert_eq!(decide(&call, &mut memory), Hypercall::Kick { apic_id: 3 });
    call.privilege = 3;
    assert_eq!(decide(&call, &mut memory), Hypercall::Done(-1));
    call.privilege = 0;
    call.number = 10;
    call.arguments = [0b101, 1, 1, 0xfd];
    let sent = Hypercall::SendIpi { first: 1, targets: 0b101 | 1 << 64, icr: 0xfd };
    assert_eq!(decide(&call, &mut memory), sent);
    call.long = false;
    let sent = Hypercall::SendIpi { first: 1, targets: 0b101 | 1 << 32, icr: 0xfd };
    assert_eq!(decide(&call, &mut memory), sent);
    call.arguments[3] = 0x5fd;
    assert_eq!(decide(&call, &mut memory), Hypercall::Done(-22));
    call.number = 9;
    call.arguments = [0, 0, 0, 0];
    assert_eq!(decide(&call, &mut memory), Hypercall::Done(0));
    assert_eq!(memory.u64(16), 42);
    call.arguments = [60, 0, 0, 0];
    assert_eq!(decide(&call, &mut memory), Hypercall::Done(-14));
    call.number = 99;
    assert_eq!(decide(&call, &mut memory), Hypercall::Done(-1000));
}

#[test]
fn what_another_engine_allowed_its_host_is_kept() {
    let clock = Clock::new(2_000_000, 0);
    let mut memory = Memory(vec![0; 64]);
    let mut vcpu = Paravirt::default();
    for number in ALLOWANCES {
        assert_eq!(vcpu.read_msr(number), None);
        assert_eq!(vcpu.restore_msr(number, 0x1001, &clock, &mut memory), Some(true));
        assert_eq!(vcpu.read_msr(number), Some(0x1001));
        assert_eq!(vcpu.write_msr(number, 0, &clock, &mut memory), Some(true));
        assert_eq!(vcpu.read_msr(number), Some(0));
    }
}
