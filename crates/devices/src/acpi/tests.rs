use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

struct Rig {
    clock: Arc<Clock>,
    acpi: Arc<Acpi>,
    line: Arc<AtomicBool>,
    requests: Arc<Mutex<Vec<PowerRequest>>>,
}

fn rig() -> Rig {
    let clock = Clock::manual();
    let line: Arc<AtomicBool> = Arc::default();
    let wire = line.clone();
    let requests: Arc<Mutex<Vec<PowerRequest>>> = Arc::default();
    let sink = requests.clone();
    let acpi = Acpi::new(
        clock.clone(),
        Arc::new(move |level: bool| wire.store(level, Ordering::Relaxed)),
        Arc::new(move |request| sink.lock().unwrap().push(request)),
    );
    Rig { clock, acpi, line, requests }
}

impl Rig {
    fn read16(&self, offset: u64) -> u16 {
        let mut data = [0; 2];
        self.acpi.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    fn write16(&self, offset: u64, value: u16) {
        self.acpi.write(offset, &value.to_le_bytes());
    }

    fn timer(&self) -> u32 {
        let mut data = [0; 4];
        self.acpi.read(PM_TIMER, &mut data);
        u32::from_le_bytes(data)
    }

    fn high(&self) -> bool {
        self.line.load(Ordering::Relaxed)
    }
}

#[test]
fn sleeping_in_s5_is_power_off() {
    let rig = rig();
    assert_eq!(rig.read16(PM1_CONTROL), SCI_ENABLE);
    rig.write16(PM1_CONTROL, 5 << 10);
    rig.write16(PM1_CONTROL, 3 << 10 | SLEEP_ENABLE);
    assert!(rig.requests.lock().unwrap().is_empty());
    rig.write16(PM1_CONTROL, 5 << 10 | SLEEP_ENABLE);
    assert_eq!(*rig.requests.lock().unwrap(), [PowerRequest::PowerOff]);
    assert_eq!(rig.read16(PM1_CONTROL), 5 << 10 | SCI_ENABLE);
}

#[test]
fn the_reset_register() {
    let rig = rig();
    rig.acpi.write(RESET, &[0]);
    assert!(rig.requests.lock().unwrap().is_empty());
    rig.acpi.write(RESET, &[RESET_VALUE]);
    assert_eq!(*rig.requests.lock().unwrap(), [PowerRequest::Reset]);
}

#[test]
fn the_power_button_interrupts_until_it_is_acknowledged() {
    let rig = rig();
    rig.acpi.press_power_button();
    assert!(!rig.high());
    rig.write16(PM1_EVENT + 2, POWER_BUTTON);
    assert!(rig.high());
    assert_eq!(rig.read16(PM1_EVENT), POWER_BUTTON);
    rig.write16(PM1_EVENT, POWER_BUTTON);
    assert_eq!((rig.high(), rig.read16(PM1_EVENT)), (false, 0));
}

#[test]
fn general_purpose_events() {
    let rig = rig();
    rig.acpi.write(GPE + 4, &[2, 0, 0, 0x80]);
    rig.acpi.raise_event(0);
    assert!(!rig.high());
    rig.acpi.raise_event(31);
    rig.acpi.raise_event(1);
    assert!(rig.high());
    let mut data = [0; 8];
    rig.acpi.read(GPE, &mut data);
    assert_eq!(data, [3, 0, 0, 0x80, 2, 0, 0, 0x80]);
    rig.acpi.write(GPE, &[2]);
    assert!(rig.high());
    rig.acpi.write(GPE + 3, &[0x80]);
    assert!(!rig.high());
}

#[test]
fn the_timer_runs_at_its_frequency() {
    let rig = rig();
    rig.clock.advance(1_000_000_000);
    assert_eq!(rig.timer(), 3_579_545);
    let mut byte = [0];
    rig.acpi.read(PM_TIMER + 1, &mut byte);
    assert_eq!(byte[0], (3_579_545_u32 >> 8) as u8);
    rig.acpi.write(PM_TIMER, &[0; 4]);
    assert_eq!(rig.timer(), 3_579_545);
}

#[test]
fn the_timers_carry_interrupts() {
    let rig = rig();
    assert_eq!(rig.clock.armed(), 0);
    rig.write16(PM1_EVENT + 2, TIMER_CARRY);
    rig.clock.advance(599_000_000_000);
    assert!(!rig.high());
    rig.clock.advance(2_000_000_000);
    assert!(rig.high());
    rig.write16(PM1_EVENT, TIMER_CARRY);
    assert!(!rig.high());
    rig.clock.advance(599_000_000_000);
    assert!(rig.high());
}

#[test]
fn state_goes_through_a_format_and_back() {
    let rig = rig();
    rig.write16(PM1_EVENT + 2, POWER_BUTTON);
    rig.acpi.press_power_button();
    let saved = serde_json::to_string(&rig.acpi.state()).unwrap();
    let other = self::rig();
    other.acpi.set_state(&serde_json::from_str(&saved).unwrap());
    assert!(other.high());
    other.acpi.reset();
    assert!(!other.high());
}

#[test]
fn odd_accesses_are_harmless() {
    let rig = rig();
    let mut data = [0; 8];
    rig.acpi.read(LENGTH - 2, &mut data);
    assert_eq!(data[2..], [0xff; 6]);
    rig.acpi.write(LENGTH - 2, &[0xff; 8]);
    rig.acpi.write(u64::MAX, &[0xff; 8]);
}
