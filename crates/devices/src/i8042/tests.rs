use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

struct Rig {
    controller: Arc<I8042>,
    lines: [Arc<AtomicBool>; 2],
    requests: Arc<Mutex<Vec<PowerRequest>>>,
}

fn rig() -> Rig {
    let lines: [Arc<AtomicBool>; 2] = Default::default();
    let wire = |index: usize| -> Arc<dyn IrqLine> {
        let line = lines[index].clone();
        Arc::new(move |level: bool| line.store(level, Ordering::Relaxed))
    };
    let requests: Arc<Mutex<Vec<PowerRequest>>> = Arc::default();
    let sink = requests.clone();
    let power = Arc::new(move |request| sink.lock().unwrap().push(request));
    Rig { controller: I8042::new(wire(0), wire(1), power), lines, requests }
}

impl Rig {
    fn read(&self, port: u64) -> u8 {
        let mut data = [0];
        self.controller.read(port, &mut data);
        data[0]
    }

    fn write(&self, port: u64, byte: u8) {
        self.controller.write(port, &[byte]);
    }

    fn command(&self, command: u8, parameter: u8) {
        self.write(COMMAND, command);
        self.write(DATA, parameter);
    }

    /// All that waits at the data port.
    fn drain(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.read(COMMAND) & OUTPUT_FULL != 0 {
            bytes.push(self.read(DATA));
        }
        bytes
    }

    fn lines(&self) -> [bool; 2] {
        [0, 1].map(|index: usize| self.lines[index].load(Ordering::Relaxed))
    }
}

#[test]
fn a_kernel_finds_the_controller() {
    let rig = rig();
    assert!(rig.drain().is_empty());
    rig.write(COMMAND, 0xaa);
    assert_eq!(rig.drain(), [0x55]);
    rig.write(COMMAND, 0xab);
    assert_eq!(rig.drain(), [0x00]);
    rig.command(0x60, 0x65);
    rig.write(COMMAND, 0x20);
    assert_eq!(rig.drain(), [0x65]);
    // How Linux tells a mouse port: a byte through the loop comes back from there.
    rig.command(0xd3, 0x5a);
    assert_eq!(rig.read(COMMAND) & (OUTPUT_FULL | FROM_MOUSE), OUTPUT_FULL | FROM_MOUSE);
    assert_eq!(rig.drain(), [0x5a]);
    rig.write(COMMAND, 0xa7);
    rig.write(COMMAND, 0x20);
    assert_eq!(rig.drain(), [0x65 | DISABLE_MOUSE]);
}

#[test]
fn the_keyboard_answers() {
    let rig = rig();
    rig.command(0x60, INTERRUPT_KEYBOARD);
    for (byte, answer) in [
        (0xff, vec![0xfa, 0xaa]),
        (0xf2, vec![0xfa, 0xab, 0x83]),
        (0xed, vec![0xfa]),
        (0x07, vec![0xfa]),
        (0xf0, vec![0xfa]),
        (0x00, vec![0xfa, 0x02]),
        (0xee, vec![0xee]),
        (0xf4, vec![0xfa]),
        (0x55, vec![0xfe]),
    ] {
        rig.write(DATA, byte);
        assert_eq!(rig.drain(), answer, "{byte:#x}");
    }
}

#[test]
fn the_mouse_answers_on_its_own_line() {
    let rig = rig();
    rig.command(0x60, INTERRUPT_KEYBOARD | INTERRUPT_MOUSE);
    rig.command(0xd4, 0xff);
    assert_eq!(rig.lines(), [false, true]);
    assert_eq!(rig.drain(), [0xfa, 0xaa, 0x00]);
    assert_eq!(rig.lines(), [false, false]);
    rig.command(0xd4, 0xe8);
    rig.command(0xd4, 0x03);
    rig.command(0xd4, 0xe9);
    assert_eq!(rig.drain(), [0xfa, 0xfa, 0xfa, 0x00, 0x03, 100]);
}

#[test]
fn keys_are_translated_unless_the_guest_objects() {
    let rig = rig();
    rig.command(0x60, INTERRUPT_KEYBOARD | TRANSLATE);
    rig.controller.key(0x1e, false, true);
    assert_eq!(rig.lines(), [true, false]);
    rig.controller.key(0x1e, false, false);
    rig.controller.key(0x48, true, true);
    rig.controller.key(0x48, true, false);
    assert_eq!(rig.drain(), [0x1e, 0x9e, 0xe0, 0x48, 0xe0, 0xc8]);
    rig.command(0x60, 0);
    rig.controller.key(0x1e, false, true);
    rig.controller.key(0x1e, false, false);
    assert_eq!(rig.drain(), [0x1c, 0xf0, 0x1c]);
    rig.controller.key(0xff, false, true);
    assert!(rig.drain().is_empty());
}

#[test]
fn every_key_survives_translation() {
    for code in 1..0x80 {
        if let Some(two) = to_set_2(code) {
            assert_eq!(to_set_1(two), code);
        }
    }
    assert!((1..0x59).all(|code| to_set_2(code).is_some()));
}

#[test]
fn a_disabled_keyboard_keeps_its_bytes() {
    let rig = rig();
    rig.write(COMMAND, 0xad);
    rig.controller.key(0x1e, false, true);
    assert!(rig.drain().is_empty());
    rig.write(COMMAND, 0xae);
    assert_eq!(rig.drain(), [0x1e]);
}

#[test]
fn the_machine_is_reset_in_three_ways() {
    let rig = rig();
    rig.write(COMMAND, 0xff);
    assert!(rig.requests.lock().unwrap().is_empty());
    rig.write(COMMAND, 0xfe);
    rig.command(0xd1, 0xde);
    rig.write(SYSTEM_CONTROL, 3);
    assert_eq!(*rig.requests.lock().unwrap(), [PowerRequest::Reset; 3]);
}

#[test]
fn address_line_20() {
    let rig = rig();
    assert_eq!(rig.read(SYSTEM_CONTROL), 2);
    rig.write(COMMAND, 0xdd);
    assert_eq!(rig.read(SYSTEM_CONTROL), 0);
    rig.command(0xd1, 0xdf);
    rig.write(COMMAND, 0xd0);
    assert_eq!(rig.drain(), [0xdf]);
}

#[test]
fn queues_are_bounded() {
    let rig = rig();
    for _ in 0..1000 {
        rig.controller.key(0x1e, false, true);
        rig.command(0xd4, 0xe9);
        rig.write(COMMAND, 0x20);
    }
    assert!(rig.drain().len() <= 3 * QUEUE + 1);
}

#[test]
fn state_goes_through_a_format_and_back() {
    let rig = rig();
    rig.controller.key(0x48, true, false);
    let saved = serde_json::to_string(&rig.controller.state()).unwrap();
    let other = self::rig();
    other.controller.set_state(&serde_json::from_str(&saved).unwrap());
    assert_eq!(other.lines(), [true, false]);
    assert_eq!(other.drain(), [0xe0, 0xc8]);
    other.controller.reset();
    assert_eq!(other.controller.state(), I8042State::new());
}
