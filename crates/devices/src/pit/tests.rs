use super::*;

struct Rig {
    clock: Arc<Clock>,
    pit: Arc<Pit>,
    rises: Arc<Mutex<Vec<u64>>>,
}

fn rig() -> Rig {
    let clock = Clock::manual();
    let rises: Arc<Mutex<Vec<u64>>> = Arc::default();
    let (log, time) = (rises.clone(), clock.clone());
    let last = Mutex::new(false);
    let line = move |level: bool| {
        let old = std::mem::replace(&mut *last.lock().unwrap(), level);
        if level && !old {
            log.lock().unwrap().push(time.now());
        }
    };
    Rig { pit: Pit::new(clock.clone(), Arc::new(line)), clock, rises }
}

impl Rig {
    fn program(&self, channel: u8, mode: u8, count: u16) {
        self.pit.write(0x43, &[channel << 6 | 0x30 | mode << 1]);
        let [low, high] = count.to_le_bytes();
        self.pit.write(0x40 + u64::from(channel), &[low]);
        self.pit.write(0x40 + u64::from(channel), &[high]);
    }

    fn read(&self, port: u64) -> u8 {
        let mut data = [0];
        self.pit.read(port, &mut data);
        data[0]
    }

    fn count(&self, channel: u8) -> u16 {
        self.pit.write(0x43, &[channel << 6]);
        let port = 0x40 + u64::from(channel);
        u16::from_le_bytes([self.read(port), self.read(port)])
    }

    fn rises(&self) -> usize {
        std::mem::take(&mut *self.rises.lock().unwrap()).len()
    }
}

const MS: u64 = 1_000_000;

#[test]
fn a_rate_generator_interrupts_at_its_rate() {
    let rig = rig();
    rig.program(0, 2, 11932);
    rig.rises();
    rig.clock.advance(1000 * MS);
    assert_eq!(rig.rises(), 99);
    rig.clock.advance(MS);
    assert_eq!(rig.rises(), 1);
    let state = rig.pit.state();
    assert_eq!(state.channels[0].mode, 2);
}

#[test]
fn a_terminal_count_interrupts_once() {
    let rig = rig();
    rig.program(0, 0, 1193);
    assert_eq!(rig.rises(), 0);
    rig.clock.advance(MS / 2);
    assert_eq!(rig.count(0), 1193 - 596);
    rig.clock.advance(10 * MS);
    assert_eq!(rig.rises(), 1);
    rig.clock.advance(1000 * MS);
    assert_eq!((rig.rises(), rig.clock.armed()), (0, 0));
    rig.program(0, 0, 0);
    rig.clock.advance(54 * MS);
    assert_eq!(rig.rises(), 0);
    rig.clock.advance(MS);
    assert_eq!(rig.rises(), 1);
}

#[test]
fn a_strobe_interrupts_after_its_count() {
    let rig = rig();
    rig.program(0, 4, 1193);
    rig.rises();
    rig.clock.advance(2 * MS);
    assert_eq!((rig.rises(), rig.clock.armed()), (1, 0));
}

#[test]
fn channel_2_measures_time_as_kernels_use_it() {
    let rig = rig();
    rig.pit.write(CONTROL, &[0x01]);
    rig.program(2, 0, 59659);
    assert_eq!(rig.read(CONTROL) & 0x21, 0x01);
    rig.clock.advance(49 * MS);
    assert_eq!(rig.read(CONTROL) & 0x20, 0);
    rig.clock.advance(2 * MS);
    assert_eq!(rig.read(CONTROL) & 0x20, 0x20);
}

#[test]
fn the_gate_stops_and_starts_channel_2() {
    let rig = rig();
    rig.program(2, 0, 11932);
    rig.clock.advance(50 * MS);
    assert_eq!(rig.read(CONTROL) & 0x20, 0, "the gate is low");
    rig.pit.write(CONTROL, &[1]);
    rig.clock.advance(5 * MS);
    rig.pit.write(CONTROL, &[0]);
    rig.clock.advance(50 * MS);
    assert_eq!(rig.read(CONTROL) & 0x20, 0);
    assert!((5960..5970).contains(&rig.count(2)));
    rig.pit.write(CONTROL, &[1]);
    rig.clock.advance(6 * MS);
    assert_eq!(rig.read(CONTROL) & 0x20, 0x20);
    rig.program(2, 1, 1193);
    assert_eq!(rig.read(CONTROL) & 0x20, 0x20);
    for _ in 0..2 {
        rig.pit.write(CONTROL, &[0]);
        rig.pit.write(CONTROL, &[1]);
        assert_eq!(rig.read(CONTROL) & 0x20, 0);
        rig.clock.advance(2 * MS);
        assert_eq!(rig.read(CONTROL) & 0x20, 0x20);
    }
}

#[test]
fn a_square_wave_is_high_for_half_of_its_period() {
    let rig = rig();
    rig.pit.write(CONTROL, &[1]);
    rig.program(2, 3, 11932);
    rig.clock.advance(2 * MS);
    assert_eq!(rig.read(CONTROL) & 0x20, 0x20);
    assert!((7160..7162).contains(&rig.count(2)));
    rig.clock.advance(5 * MS);
    assert_eq!(rig.read(CONTROL) & 0x20, 0);
}

#[test]
fn read_back_latches_status_and_count() {
    let rig = rig();
    rig.program(0, 2, 1000);
    rig.pit.write(0x43, &[0xc2]);
    rig.clock.advance(MS);
    assert_eq!(rig.read(0x40), 0b1011_0100);
    assert_eq!(u16::from_le_bytes([rig.read(0x40), rig.read(0x40)]), 1000);
    rig.pit.write(0x43, &[0x10 | 4]);
    rig.pit.write(0x40, &[10]);
    assert_eq!(rig.read(0x40), 10);
}

#[test]
fn decimal_counts() {
    let rig = rig();
    rig.pit.write(CONTROL, &[1]);
    rig.pit.write(0x43, &[0xb1]);
    rig.pit.write(0x42, &[0x00, 0x42]);
    rig.pit.write(0x42, &[0x10]);
    rig.clock.advance(MS / 2);
    assert_eq!(rig.count(2), 0x0404);
}

#[test]
fn a_tiny_count_does_not_flood_the_host() {
    let rig = rig();
    rig.program(0, 2, 1);
    rig.rises();
    rig.clock.advance(100 * MS);
    assert!(rig.rises() <= 2000);
}

#[test]
fn state_goes_through_a_format_and_back() {
    let first = rig();
    first.program(0, 2, 11932);
    first.clock.advance(3 * MS);
    let saved = serde_json::to_string(&first.pit.state()).unwrap();
    let second = rig();
    second.clock.set(3 * MS);
    second.pit.set_state(&serde_json::from_str(&saved).unwrap());
    second.clock.advance(8 * MS);
    assert_eq!(second.rises(), 1);
    second.pit.reset();
    assert_eq!(second.clock.armed(), 0);
}
