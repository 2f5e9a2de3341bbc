use super::*;

struct Rig {
    clock: Arc<Clock>,
    hpet: Arc<Hpet>,
    /// Rises and falls by line: 0 and 1 are the legacy ones, then pins 16 to 23.
    seen: Arc<Mutex<Vec<(usize, bool)>>>,
}

fn rig() -> Rig {
    let clock = Clock::manual();
    let seen: Arc<Mutex<Vec<(usize, bool)>>> = Arc::default();
    let line = |index: usize| -> Arc<dyn IrqLine> {
        let seen = seen.clone();
        let last = Mutex::new(false);
        Arc::new(move |level: bool| {
            if std::mem::replace(&mut *last.lock().unwrap(), level) != level {
                seen.lock().unwrap().push((index, level));
            }
        })
    };
    let lines = HpetLines { pins: (16..24).map(line).collect(), legacy: [line(0), line(1)] };
    Rig { hpet: Hpet::new(clock.clone(), lines), clock, seen }
}

impl Rig {
    fn get(&self, register: u64) -> u64 {
        let mut data = [0; 8];
        self.hpet.read(register, &mut data);
        u64::from_le_bytes(data)
    }

    fn set(&self, register: u64, value: u64) {
        self.hpet.write(register, &value.to_le_bytes());
    }

    fn rises(&self, line: usize) -> usize {
        let seen = std::mem::take(&mut *self.seen.lock().unwrap());
        seen.iter().filter(|&&event| event == (line, true)).count()
    }
}

const MS: u64 = 1_000_000;

#[test]
fn the_counter_runs_while_it_is_enabled() {
    let rig = rig();
    assert_eq!(rig.get(0) >> 32, 10_000_000);
    rig.clock.advance(MS);
    assert_eq!(rig.get(COUNTER), 0);
    rig.set(CONFIGURATION, ENABLE);
    rig.clock.advance(MS);
    assert_eq!(rig.get(COUNTER), 100_000);
    rig.set(CONFIGURATION, 0);
    rig.clock.advance(MS);
    assert_eq!(rig.get(COUNTER), 100_000);
    rig.set(COUNTER, 7);
    assert_eq!(rig.get(COUNTER), 7);
    let mut half = [0; 4];
    rig.hpet.read(4, &mut half);
    assert_eq!(u32::from_le_bytes(half), 10_000_000);
}

#[test]
fn a_one_shot_comparator() {
    let rig = rig();
    rig.set(0x120, INTERRUPTS | 20 << 9);
    rig.set(CONFIGURATION, ENABLE);
    rig.set(0x128, 100_000);
    rig.clock.advance(MS - 1000);
    assert_eq!(rig.rises(20), 0);
    rig.clock.advance(2000);
    assert_eq!(rig.rises(20), 1);
    rig.clock.advance(1000 * MS);
    assert_eq!(rig.rises(20), 0);
}

#[test]
fn a_periodic_comparator_in_the_interval_timers_place() {
    let rig = rig();
    rig.set(0x100, INTERRUPTS | PERIODIC | SET_VALUE);
    rig.set(0x108, 100_000);
    rig.set(0x108, 100_000);
    assert!(!rig.hpet.replaces_legacy());
    rig.set(CONFIGURATION, ENABLE | LEGACY);
    assert!(rig.hpet.replaces_legacy());
    rig.clock.advance(1000 * MS + 1000);
    assert_eq!(rig.rises(0), 1000);
    rig.set(CONFIGURATION, 0);
    assert_eq!(rig.clock.armed(), 0);
}

#[test]
fn a_level_stays_until_its_status_is_cleared() {
    let rig = rig();
    rig.set(0x140, INTERRUPTS | LEVEL | 16 << 9);
    rig.set(0x148, 10);
    rig.set(CONFIGURATION, ENABLE);
    rig.clock.advance(MS);
    assert_eq!(*rig.seen.lock().unwrap(), [(16, true)]);
    assert_eq!(rig.get(INTERRUPT_STATUS), 4);
    rig.set(INTERRUPT_STATUS, 4);
    assert_eq!(*rig.seen.lock().unwrap().last().unwrap(), (16, false));
    assert_eq!(rig.get(INTERRUPT_STATUS), 0);
}

#[test]
fn a_32_bit_comparator_matches_when_the_counter_comes_round() {
    let rig = rig();
    rig.set(0x100, INTERRUPTS | MODE_32_BIT | 16 << 9);
    rig.set(COUNTER, 0xffff_ff00);
    rig.set(0x108, 0x100);
    rig.set(CONFIGURATION, ENABLE);
    rig.clock.advance(0x1f0 * TICK);
    assert_eq!(rig.rises(16), 0);
    rig.clock.advance(0x20 * TICK);
    assert_eq!(rig.rises(16), 1);
}

#[test]
fn a_tiny_period_does_not_flood_the_host() {
    let rig = rig();
    rig.set(0x100, INTERRUPTS | PERIODIC | SET_VALUE | 16 << 9);
    rig.set(0x108, 1);
    rig.set(CONFIGURATION, ENABLE);
    rig.clock.advance(100 * MS);
    assert!(rig.rises(16) <= 2001);
}

#[test]
fn state_goes_through_a_format_and_back() {
    let first = rig();
    first.set(0x100, INTERRUPTS | 16 << 9);
    first.set(0x108, 100_000);
    first.set(CONFIGURATION, ENABLE);
    first.clock.advance(MS / 2);
    let saved = serde_json::to_string(&first.hpet.state()).unwrap();
    let second = rig();
    second.clock.set(MS / 2);
    second.hpet.set_state(&serde_json::from_str(&saved).unwrap());
    assert_eq!(second.get(COUNTER), 50_000);
    second.clock.advance(MS);
    assert_eq!(second.rises(16), 1);
    second.hpet.reset();
    assert_eq!((second.get(COUNTER), second.clock.armed()), (0, 0));
}
