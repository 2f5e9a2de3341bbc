use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

struct Rig {
    pic: Arc<Pic>,
    interrupt: Arc<AtomicBool>,
}

impl Rig {
    /// Initialized as a PC is: vectors 0x20 and 0x28, nothing masked.
    fn new() -> Self {
        let interrupt: Arc<AtomicBool> = Arc::default();
        let wire = interrupt.clone();
        let pic = Pic::new(Arc::new(move |level: bool| wire.store(level, Ordering::Relaxed)));
        for (base, vector, cascade) in [(MASTER, 0x20, 4), (SLAVE, 0x28, 2)] {
            pic.write(base, &[0x11]);
            pic.write(base + 1, &[vector]);
            pic.write(base + 1, &[cascade]);
            pic.write(base + 1, &[1]);
            pic.write(base + 1, &[0]);
        }
        Self { pic, interrupt }
    }

    fn high(&self) -> bool {
        self.interrupt.load(Ordering::Relaxed)
    }

    fn read(&self, port: u64) -> u8 {
        let mut data = [0];
        self.pic.read(port, &mut data);
        data[0]
    }
}

#[test]
fn an_edge_is_served_once() {
    let rig = Rig::new();
    let line = rig.pic.line(4);
    line.set(true);
    assert!(rig.high());
    assert_eq!(rig.pic.acknowledge(), Some(0x24));
    assert!(!rig.high());
    assert_eq!(rig.pic.acknowledge(), None);
    rig.pic.write(MASTER, &[0x20]);
    assert!(!rig.high(), "the level alone is no request");
    line.set(false);
    line.pulse();
    assert!(rig.high(), "an edge is kept");
    assert_eq!(rig.pic.acknowledge(), Some(0x24));
    rig.pic.write(MASTER, &[0x20]);
    assert!(!rig.high());
}

#[test]
fn a_level_is_served_until_it_goes_away() {
    let rig = Rig::new();
    rig.pic.write(EDGE_LEVEL, &[0xff, 0xff]);
    assert_eq!((rig.read(0x4d0), rig.read(0x4d1)), (0xf8, 0xde));
    let line = rig.pic.line(11);
    line.set(true);
    assert_eq!(rig.pic.acknowledge(), Some(0x2b));
    assert!(!rig.high());
    rig.pic.write(SLAVE, &[0x20]);
    rig.pic.write(MASTER, &[0x20]);
    assert!(rig.high());
    line.set(false);
    assert!(!rig.high());
}

#[test]
fn a_slaves_request_that_is_masked_goes_away() {
    let rig = Rig::new();
    rig.pic.line(9).set(true);
    assert!(rig.high());
    rig.pic.write(SLAVE + 1, &[0xff]);
    assert!(!rig.high());
    assert_eq!(rig.pic.acknowledge(), None);
}

#[test]
fn priorities_nest() {
    let rig = Rig::new();
    rig.pic.line(5).set(true);
    assert_eq!(rig.pic.acknowledge(), Some(0x25));
    rig.pic.line(6).set(true);
    assert!(!rig.high());
    rig.pic.line(8).set(true);
    assert!(rig.high(), "the slave's inputs come before 3 to 7");
    assert_eq!(rig.pic.acknowledge(), Some(0x28));
    rig.pic.line(0).set(true);
    assert_eq!(rig.pic.acknowledge(), Some(0x20));
    rig.pic.write(MASTER, &[0x0b]);
    assert_eq!(rig.read(MASTER), 0b10_0101);
    rig.pic.write(MASTER, &[0x20]);
    rig.pic.write(SLAVE, &[0x20]);
    rig.pic.write(MASTER, &[0x62]);
    assert_eq!(rig.read(MASTER), 0b10_0000);
    assert!(!rig.high());
    rig.pic.write(MASTER, &[0x20]);
    assert_eq!(rig.pic.acknowledge(), Some(0x26));
}

#[test]
fn two_requests_at_the_slave_are_both_served() {
    let rig = Rig::new();
    rig.pic.line(9).set(true);
    rig.pic.line(12).set(true);
    assert_eq!(rig.pic.acknowledge(), Some(0x29));
    rig.pic.write(SLAVE, &[0x20]);
    rig.pic.write(MASTER, &[0x20]);
    assert!(rig.high());
    assert_eq!(rig.pic.acknowledge(), Some(0x2c));
}

#[test]
fn masks_hold_requests_back() {
    let rig = Rig::new();
    rig.pic.write(MASTER + 1, &[0xff]);
    assert_eq!(rig.read(MASTER + 1), 0xff);
    rig.pic.line(3).set(true);
    assert!(!rig.high());
    rig.pic.write(MASTER, &[0x0a]);
    assert_eq!(rig.read(MASTER), 8);
    rig.pic.write(MASTER + 1, &[0]);
    assert!(rig.high());
}

#[test]
fn rotation_moves_the_lowest_priority() {
    let rig = Rig::new();
    rig.pic.write(MASTER, &[0xc3]);
    rig.pic.line(1).set(true);
    rig.pic.line(4).set(true);
    assert_eq!(rig.pic.acknowledge(), Some(0x24));
    rig.pic.write(MASTER, &[0xa0]);
    assert_eq!(rig.pic.acknowledge(), Some(0x21));
}

#[test]
fn automatic_end_and_special_mask() {
    let rig = Rig::new();
    rig.pic.write(MASTER, &[0x11]);
    for word in [0x20, 4, 3, 0] {
        rig.pic.write(MASTER + 1, &[word]);
    }
    rig.pic.line(7).set(true);
    assert_eq!(rig.pic.acknowledge(), Some(0x27));
    rig.pic.write(MASTER, &[0x0b]);
    assert_eq!(rig.read(MASTER), 0);
    let rig = Rig::new();
    rig.pic.line(1).set(true);
    rig.pic.acknowledge();
    rig.pic.line(3).set(true);
    assert!(!rig.high());
    rig.pic.write(MASTER, &[0x68]);
    rig.pic.write(MASTER + 1, &[2]);
    assert!(rig.high());
}

#[test]
fn polling_acknowledges() {
    let rig = Rig::new();
    rig.pic.line(6).set(true);
    rig.pic.write(MASTER, &[0x0c]);
    assert_eq!(rig.read(MASTER), 0x86);
    assert!(!rig.high());
    rig.pic.write(MASTER, &[0x0c]);
    assert_eq!(rig.read(MASTER), 0);
}

#[test]
fn state_goes_through_a_format_and_back() {
    let rig = Rig::new();
    rig.pic.line(9).set(true);
    let saved = serde_json::to_string(&rig.pic.state()).unwrap();
    let other = Rig::new();
    other.pic.set_state(&serde_json::from_str(&saved).unwrap());
    assert!(other.high());
    assert_eq!(other.pic.acknowledge(), Some(0x29));
    other.pic.reset();
    assert!(!other.high());
}
