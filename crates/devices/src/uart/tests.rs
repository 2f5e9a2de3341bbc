use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Rig {
    uart: Arc<Uart>,
    line: Arc<AtomicBool>,
    output: Output,
}

fn rig() -> Rig {
    let line: Arc<AtomicBool> = Arc::default();
    let wire = line.clone();
    let output = Output::default();
    let uart = Uart::new(
        Arc::new(move |level: bool| wire.store(level, Ordering::Relaxed)),
        Box::new(output.clone()),
    );
    Rig { uart, line, output }
}

impl Rig {
    fn get(&self, register: u64) -> u8 {
        let mut data = [0];
        self.uart.read(register, &mut data);
        data[0]
    }

    fn set(&self, register: u64, value: u8) {
        self.uart.write(register, &[value]);
    }

    fn high(&self) -> bool {
        self.line.load(Ordering::Relaxed)
    }
}

#[test]
fn bytes_go_out() {
    let rig = rig();
    for byte in b"hello" {
        assert_eq!(rig.get(LINE_STATUS), STATUS_EMPTY);
        rig.set(DATA, *byte);
    }
    assert_eq!(*rig.output.0.lock().unwrap(), b"hello");
    assert_eq!(rig.get(MODEM_STATUS), 0xb0);
}

#[test]
fn bytes_come_in_as_far_as_there_is_room() {
    let rig = rig();
    assert_eq!(rig.uart.input(b"ab"), 1);
    rig.set(INTERRUPT_ID, 0xc7);
    assert_eq!(rig.get(INTERRUPT_ID), 0xc1);
    let data = [b'x'; 20];
    assert_eq!(rig.uart.input(&data), 16);
    assert_eq!(rig.uart.input(&data), 0);
    assert!(!rig.uart.wait_for_room(Duration::from_millis(1)));
    assert_eq!(rig.get(LINE_STATUS) & STATUS_READY, STATUS_READY);
    assert_eq!(rig.get(DATA), b'x');
    assert!(rig.uart.wait_for_room(Duration::ZERO));
    assert_eq!(rig.uart.input(&data), 1);
    rig.set(INTERRUPT_ID, 0x03);
    assert_eq!(rig.get(LINE_STATUS), STATUS_EMPTY);
    assert_eq!(rig.get(DATA), 0);
}

#[test]
fn a_waiting_host_is_told_of_room() {
    let rig = rig();
    rig.uart.input(b"a");
    std::thread::scope(|scope| {
        let uart = &rig.uart;
        let waiter = scope.spawn(|| uart.wait_for_room(Duration::from_secs(60)));
        assert_eq!(rig.get(DATA), b'a');
        assert!(waiter.join().unwrap());
    });
}

#[test]
fn interrupts_need_their_enable_and_out2() {
    let rig = rig();
    rig.set(INTERRUPT_ENABLE, ENABLE_RECEIVED);
    rig.uart.input(b"a");
    assert!(!rig.high());
    rig.set(MODEM_CONTROL, OUT2);
    assert!(rig.high());
    assert_eq!(rig.get(INTERRUPT_ID), ID_RECEIVED);
    rig.get(DATA);
    assert!(!rig.high());
    assert_eq!(rig.get(INTERRUPT_ID), ID_NONE);
}

#[test]
fn the_trigger_level_tells_received_from_timeout() {
    let rig = rig();
    rig.set(MODEM_CONTROL, OUT2);
    rig.set(INTERRUPT_ENABLE, ENABLE_RECEIVED);
    rig.set(INTERRUPT_ID, 0x81);
    rig.uart.input(b"1234567");
    assert!(rig.high());
    assert_eq!(rig.get(INTERRUPT_ID), 0xc0 | ID_TIMEOUT);
    rig.uart.input(b"8");
    assert_eq!(rig.get(INTERRUPT_ID), 0xc0 | ID_RECEIVED);
}

#[test]
fn the_empty_transmitter_interrupts_until_it_is_identified() {
    let rig = rig();
    rig.set(MODEM_CONTROL, OUT2);
    rig.set(INTERRUPT_ENABLE, ENABLE_EMPTY);
    assert!(rig.high());
    assert_eq!(rig.get(INTERRUPT_ID), ID_EMPTY);
    assert!(!rig.high());
    rig.set(DATA, b'x');
    assert!(rig.high());
    rig.set(INTERRUPT_ENABLE, 0);
    assert!(!rig.high());
}

#[test]
fn loopback_returns_data_and_modem_lines() {
    let rig = rig();
    rig.set(MODEM_CONTROL, LOOPBACK | 0x0a);
    assert_eq!(rig.get(MODEM_STATUS) & 0xf0, 0x90);
    rig.set(DATA, b'a');
    rig.set(DATA, b'b');
    assert_eq!(rig.get(LINE_STATUS), STATUS_EMPTY | STATUS_READY | STATUS_OVERRUN);
    assert_eq!(rig.get(LINE_STATUS) & STATUS_OVERRUN, 0);
    assert_eq!(rig.get(DATA), b'a');
    assert_eq!(rig.uart.input(b"x"), 0);
    assert!(rig.output.0.lock().unwrap().is_empty());
}

#[test]
fn modem_changes_interrupt() {
    let rig = rig();
    rig.set(INTERRUPT_ENABLE, ENABLE_MODEM);
    rig.set(MODEM_CONTROL, LOOPBACK);
    rig.set(MODEM_CONTROL, OUT2);
    assert!(rig.high());
    assert_eq!(rig.get(INTERRUPT_ID), ID_MODEM);
    assert_eq!(rig.get(MODEM_STATUS) & 0x0f, 0x0b);
    assert!(!rig.high());
}

#[test]
fn scratch_and_divisor() {
    let rig = rig();
    rig.set(SCRATCH, 0x5a);
    assert_eq!(rig.get(SCRATCH), 0x5a);
    rig.set(LINE_CONTROL, 0x83);
    rig.set(DATA, 1);
    rig.set(INTERRUPT_ENABLE, 2);
    assert_eq!((rig.get(DATA), rig.get(INTERRUPT_ENABLE)), (1, 2));
    rig.set(LINE_CONTROL, 3);
    assert_eq!(rig.get(INTERRUPT_ENABLE), 0);
    assert!(rig.output.0.lock().unwrap().is_empty());
}

#[test]
fn state_goes_through_a_format_and_back() {
    let rig = rig();
    rig.set(MODEM_CONTROL, OUT2);
    rig.set(INTERRUPT_ENABLE, ENABLE_RECEIVED);
    rig.uart.input(b"a");
    let saved = serde_json::to_string(&rig.uart.state()).unwrap();
    let other = self::rig();
    other.uart.set_state(&serde_json::from_str(&saved).unwrap());
    assert!(other.high());
    assert_eq!(other.get(DATA), b'a');
    other.uart.reset();
    assert!(!other.high());
}
