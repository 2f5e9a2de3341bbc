use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Real time that is as far as the machine's.
struct TestWall {
    clock: Arc<Clock>,
    start: i64,
}

impl WallClock for TestWall {
    fn now(&self) -> i64 {
        self.start + self.clock.now() as i64
    }
}

struct Rig {
    clock: Arc<Clock>,
    rtc: Arc<Rtc>,
    line: Arc<AtomicBool>,
}

/// 2024-02-29 23:59:58.5, a Thursday.
const START: i64 = 1_709_251_198;
const MS: u64 = 1_000_000;

fn rig() -> Rig {
    let clock = Clock::manual();
    let line: Arc<AtomicBool> = Arc::default();
    let wire = line.clone();
    let wall = TestWall { clock: clock.clone(), start: START * SECOND + SECOND / 2 };
    let rtc = Rtc::new(
        clock.clone(),
        wall,
        Arc::new(move |level: bool| wire.store(level, Ordering::Relaxed)),
    );
    Rig { clock, rtc, line }
}

impl Rig {
    fn get(&self, index: usize) -> u8 {
        self.rtc.write(0x70, &[index as u8]);
        let mut data = [0];
        self.rtc.read(0x71, &mut data);
        data[0]
    }

    fn set(&self, index: usize, value: u8) {
        self.rtc.write(0x70, &[index as u8]);
        self.rtc.write(0x71, &[value]);
    }

    fn time(&self) -> [u8; 8] {
        [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS, WEEKDAY].map(|at| self.get(at))
    }

    fn high(&self) -> bool {
        self.line.load(Ordering::Relaxed)
    }
}

#[test]
fn the_time_is_the_hosts() {
    let rig = rig();
    assert_eq!(rig.time(), [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58, 5]);
    rig.clock.advance(2000 * MS);
    assert_eq!(rig.time(), [0x20, 0x24, 0x03, 0x01, 0x00, 0x00, 0x00, 6]);
    assert_eq!(rig.get(REGISTER_D), 0x80);
}

#[test]
fn formats() {
    let rig = rig();
    rig.set(REGISTER_B, BINARY);
    assert_eq!(rig.time(), [20, 24, 2, 29, 11 | 0x80, 59, 58, 5]);
    rig.clock.advance(2000 * MS);
    assert_eq!(rig.get(HOURS), 12);
    rig.set(REGISTER_B, BINARY | HOURS_24);
    assert_eq!(rig.get(HOURS), 0);
}

#[test]
fn the_guest_sets_the_time() {
    let rig = rig();
    rig.set(REGISTER_B, SET | HOURS_24);
    for (index, value) in [(SECONDS, 0x30), (HOURS, 0x12), (YEAR, 0x99), (CENTURY, 0x19)] {
        rig.set(index, value);
    }
    rig.clock.advance(5000 * MS);
    assert_eq!(rig.get(SECONDS), 0x30, "stopped");
    rig.set(REGISTER_B, HOURS_24);
    rig.clock.advance(1000 * MS);
    // There was no 29 February.
    assert_eq!(rig.time()[..7], [0x19, 0x99, 0x03, 0x01, 0x12, 0x59, 0x31]);
    rig.set(MINUTES, 0x05);
    assert_eq!(rig.time()[4..7], [0x12, 0x05, 0x31]);
}

#[test]
fn years_that_are_too_far_are_cut() {
    let rig = rig();
    rig.set(REGISTER_B, SET | BINARY | HOURS_24);
    rig.set(CENTURY, 0xff);
    rig.set(YEAR, 0xff);
    rig.set(REGISTER_B, BINARY | HOURS_24 | UPDATE_ENDED | ALARM | PERIODIC);
    assert_eq!((rig.get(CENTURY), rig.get(YEAR)), (22, 55));
    rig.clock.advance(2000 * MS);
    assert!(rig.high());
}

#[test]
fn periodic_interrupts() {
    let rig = rig();
    rig.set(REGISTER_B, PERIODIC | HOURS_24);
    let mut count = 0;
    for _ in 0..10_000 {
        rig.clock.advance(MS / 10);
        if rig.high() {
            assert_eq!(rig.get(REGISTER_C) & (REQUEST | PERIODIC), REQUEST | PERIODIC);
            assert!(!rig.high());
            count += 1;
        }
    }
    assert!((1020..=1025).contains(&count), "{count} of 1024");
    rig.set(REGISTER_B, HOURS_24);
    assert_eq!(rig.clock.armed(), 0);
}

#[test]
fn update_interrupts_and_the_warning_before_them() {
    let rig = rig();
    rig.set(REGISTER_B, UPDATE_ENDED | HOURS_24);
    rig.clock.advance(499 * MS);
    assert_eq!((rig.high(), rig.get(REGISTER_A) & UPDATING), (false, 0));
    rig.clock.advance(MS - MS / 10);
    assert_eq!(rig.get(REGISTER_A) & UPDATING, UPDATING);
    rig.clock.advance(MS);
    assert!(rig.high());
    assert_eq!(rig.get(REGISTER_A) & UPDATING, 0);
    rig.get(REGISTER_C);
    assert!(!rig.high());
    rig.clock.advance(1000 * MS);
    assert!(rig.high());
}

#[test]
fn flags_can_be_polled() {
    let rig = rig();
    rig.get(REGISTER_C);
    assert_eq!(rig.get(REGISTER_C) & UPDATE_ENDED, 0);
    rig.clock.advance(600 * MS);
    let flags = rig.get(REGISTER_C);
    assert_eq!(flags & (UPDATE_ENDED | PERIODIC | REQUEST), UPDATE_ENDED | PERIODIC);
}

#[test]
fn alarms() {
    let rig = rig();
    rig.set(HOURS_ALARM, 0x01);
    rig.set(MINUTES_ALARM, 0x30);
    rig.set(SECONDS_ALARM, 0x15);
    rig.set(REGISTER_B, ALARM | HOURS_24);
    rig.clock.advance((90 * 60 + 16) * 1000 * MS);
    assert!(!rig.high());
    rig.clock.advance(1000 * MS);
    assert!(rig.high());
    assert_eq!(rig.get(REGISTER_C) & (ALARM | REQUEST), ALARM | REQUEST);
    for alarm in [SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM] {
        rig.set(alarm, 0xff);
    }
    rig.clock.advance(1000 * MS);
    assert!(rig.high(), "every second");
    rig.get(REGISTER_C);
    rig.set(HOURS_ALARM, 0x99);
    rig.clock.advance(90_000 * 1000 * MS);
    assert!(!rig.high(), "there is no such hour");
}

#[test]
fn memory_is_kept() {
    let rig = rig();
    rig.set(0x40, 0xaa);
    rig.rtc.set_memory(0x41, 0xbb);
    rig.rtc.write(0x72, &[5]);
    rig.rtc.write(0x73, &[0xcc]);
    assert_eq!((rig.get(0x40), rig.get(0x41)), (0xaa, 0xbb));
    let saved = serde_json::to_string(&rig.rtc.state()).unwrap();
    let other = self::rig();
    other.rtc.set_state(&serde_json::from_str(&saved).unwrap()).unwrap();
    assert_eq!(other.get(0x40), 0xaa);
    let mut data = [0];
    other.rtc.read(0x73, &mut data);
    assert_eq!(data, [0xcc]);
    let mut broken = rig.rtc.state();
    broken.memory.pop();
    assert_eq!(other.rtc.set_state(&broken), Err(MemorySize(255)));
}

#[test]
fn dates_go_there_and_back() {
    for days in (-200_000..200_000_i64).step_by(13) {
        let seconds = days * 86_400 + days.rem_euclid(86_400);
        let time = DateTime::from_seconds(seconds);
        assert_eq!(time.to_seconds(), seconds, "{time:?}");
    }
    let epoch = DateTime::from_seconds(0);
    assert_eq!((epoch.year, epoch.month, epoch.day, epoch.weekday()), (1970, 1, 1, 5));
}
