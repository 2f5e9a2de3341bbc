use super::*;

fn rig() -> (Arc<IoApic>, Arc<Mutex<Vec<Msi>>>) {
    let sent: Arc<Mutex<Vec<Msi>>> = Arc::default();
    let sink = sent.clone();
    (IoApic::new(Arc::new(move |msi: Msi| sink.lock().unwrap().push(msi))), sent)
}

fn get(apic: &IoApic, register: u8) -> u32 {
    apic.write(SELECT, &[register, 0, 0, 0]);
    let mut data = [0; 4];
    apic.read(WINDOW, &mut data);
    u32::from_le_bytes(data)
}

fn set(apic: &IoApic, register: u8, value: u32) {
    apic.write(SELECT, &[register, 0, 0, 0]);
    apic.write(WINDOW, &value.to_le_bytes());
}

fn program(apic: &IoApic, pin: u8, low: u32, destination: u32) {
    set(apic, 0x11 + 2 * pin, destination << 24);
    set(apic, 0x10 + 2 * pin, low);
}

#[test]
fn identification() {
    let (apic, _) = rig();
    assert_eq!(get(&apic, 1), 0x0017_0020);
    set(&apic, 0, 0x0500_0000);
    assert_eq!((get(&apic, 0), get(&apic, 2)), (0x0500_0000, 0x0500_0000));
    assert_eq!((get(&apic, 0x3f), get(&apic, 0x40), get(&apic, 0xff)), (0, 0, 0));
    assert_eq!(get(&apic, 0x10), 0x0001_0000, "masked");
}

#[test]
fn an_edge_sends_one_message() {
    let (apic, sent) = rig();
    program(&apic, 4, 0x0831, 3);
    let line = apic.line(4);
    line.set(true);
    line.set(true);
    line.set(false);
    line.pulse();
    let msi = Msi { address: 0xfee0_3004, data: 0x4031 };
    assert_eq!(*sent.lock().unwrap(), [msi, msi]);
}

#[test]
fn an_edge_at_a_masked_pin_is_lost() {
    let (apic, sent) = rig();
    program(&apic, 4, 0x1_0031, 0);
    apic.line(4).set(true);
    program(&apic, 4, 0x31, 0);
    assert!(sent.lock().unwrap().is_empty());
}

#[test]
fn a_level_waits_for_its_end() {
    let (apic, sent) = rig();
    program(&apic, 10, 0x8041, 0);
    let line = apic.line(10);
    line.set(true);
    line.set(false);
    line.set(true);
    assert_eq!(sent.lock().unwrap().len(), 1);
    assert_eq!(get(&apic, 0x24) & 1 << 14, 1 << 14);
    apic.end_of_interrupt(0x40);
    assert_eq!(sent.lock().unwrap().len(), 1);
    apic.end_of_interrupt(0x41);
    assert_eq!(sent.lock().unwrap().len(), 2, "still high");
    line.set(false);
    apic.write(END_OF_INTERRUPT, &[0x41]);
    assert_eq!(sent.lock().unwrap().len(), 2);
    assert_eq!(get(&apic, 0x24) & 1 << 14, 0);
}

#[test]
fn a_level_at_a_masked_pin_is_sent_when_it_is_unmasked() {
    let (apic, sent) = rig();
    program(&apic, 10, 0x1_8041, 0);
    apic.line(10).set(true);
    assert!(sent.lock().unwrap().is_empty());
    program(&apic, 10, 0x8041, 0);
    assert_eq!(*sent.lock().unwrap(), [Msi { address: 0xfee0_0000, data: 0xc041 }]);
    // Going through edge mode is how kernels clear a stuck remote IRR.
    set(&apic, 0x24, 0x1_0041);
    set(&apic, 0x24, 0x8041);
    assert_eq!(sent.lock().unwrap().len(), 2);
}

#[test]
fn state_goes_through_a_format_and_back() {
    let (apic, _) = rig();
    program(&apic, 10, 0x8041, 0);
    apic.line(10).set(true);
    let saved = serde_json::to_string(&apic.state()).unwrap();
    let (other, sent) = rig();
    other.set_state(&serde_json::from_str(&saved).unwrap());
    assert_eq!(other.state(), apic.state());
    other.end_of_interrupt(0x41);
    assert_eq!(sent.lock().unwrap().len(), 1);
    other.reset();
    assert_eq!(get(&other, 0x24), 0x1_0000);
    apic.line(PINS).set(true);
}

#[test]
fn an_engine_is_told_of_routes() {
    let (ioapic, _) = rig();
    type Told = Vec<(u32, Option<Msi>)>;
    let told: Arc<Mutex<Told>> = Arc::default();
    let theirs = told.clone();
    ioapic.watch_routes(move |pin, msi| theirs.lock().unwrap().push((pin, msi)));
    assert_eq!(told.lock().unwrap().len(), PINS, "all are masked, and said to be");
    assert!(told.lock().unwrap().drain(..).all(|(_, msi)| msi.is_none()));
    set(&ioapic, 0x10 + 2 * 4, 0x31 | LEVEL_TRIGGERED as u32);
    let (pin, msi) = told.lock().unwrap().pop().unwrap();
    assert_eq!(pin, 4);
    assert_eq!(msi.unwrap().data & 0x80ff, 0x8031);
    set(&ioapic, 0x10 + 2 * 4, MASKED as u32);
    assert_eq!(told.lock().unwrap().pop(), Some((4, None)));
}

/// Where interrupts are remapped, an entry may be a handle.
#[test]
fn a_remappable_entry_sends_its_handle() {
    let sent: Arc<Mutex<Vec<Msi>>> = Arc::default();
    let sink = sent.clone();
    let apic = IoApic::remappable(Arc::new(move |msi: Msi| sink.lock().unwrap().push(msi)));
    // Handle 0x9234: bits 0 to 14 are on top, bit 15 is bit 11.
    set(&apic, 0x11 + 2 * 5, 0x1234 << 17 | 1 << 16);
    set(&apic, 0x10 + 2 * 5, 1 << 11 | 0x31);
    apic.line(5).set(true);
    let address = 0xfee0_0000 | 0x1234 << 5 | 1 << 4 | 1 << 2;
    assert_eq!(*sent.lock().unwrap(), [Msi { address, data: 0x4031 }]);
    // One in the format of old has the same message as ever.
    let (plain, plainly_sent) = rig();
    for apic in [&apic, &plain] {
        program(apic, 4, 0x0831, 3);
        apic.line(4).pulse();
    }
    assert_eq!(sent.lock().unwrap()[1..], plainly_sent.lock().unwrap()[..]);
    set(&plain, 0x11, 0xffff_ffff);
    assert_eq!(get(&plain, 0x11), 0xff00_0000);
}

#[test]
fn routes_are_told_again_on_demand() {
    let (apic, _) = rig();
    let told = Arc::new(Mutex::new(Vec::new()));
    let teller = told.clone();
    apic.watch_routes(move |pin, msi| teller.lock().unwrap().push((pin, msi)));
    program(&apic, 1, 0x31, 0);
    told.lock().unwrap().clear();
    apic.refresh_routes();
    let told = told.lock().unwrap();
    assert_eq!(told.len(), PINS);
    assert!(told[1].1.is_some_and(|msi| msi.data == 0x4031) && told[2].1.is_none());
}
