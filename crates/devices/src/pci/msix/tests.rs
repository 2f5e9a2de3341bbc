use super::*;

fn table(vectors: u16) -> (Arc<Msix>, Arc<Mutex<Vec<Msi>>>) {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let sink = sent.clone();
    let msix = Msix::new(vectors, Arc::new(move |msi: Msi| sink.lock().unwrap().push(msi)));
    (msix, sent)
}

fn program(msix: &Msix, vector: u64, address: u64, data: u32, masked: bool) {
    msix.table_write(vector * 16, &address.to_le_bytes());
    msix.table_write(vector * 16 + 8, &data.to_le_bytes());
    msix.table_write(vector * 16 + 12, &u32::from(masked).to_le_bytes());
}

#[test]
fn messages_are_sent_as_the_table_says() {
    let (msix, sent) = table(2);
    msix.set_control(true, false);
    program(&msix, 1, 0xfee0_1000, 0x4031, false);
    msix.notify(1);
    msix.notify(0);
    msix.notify(2);
    assert_eq!(*sent.lock().unwrap(), [Msi { address: 0xfee0_1000, data: 0x4031 }]);
    let mut data = [0; 8];
    msix.table_read(16, &mut data);
    assert_eq!(u64::from_le_bytes(data), 0xfee0_1000);
}

#[test]
fn a_masked_message_waits() {
    let (msix, sent) = table(70);
    msix.set_control(true, false);
    program(&msix, 69, 0xfee0_0000, 1, true);
    msix.notify(69);
    let mut pending = [0; 8];
    msix.pending_read(8, &mut pending);
    assert_eq!(u64::from_le_bytes(pending), 1 << 5);
    assert!(sent.lock().unwrap().is_empty());
    program(&msix, 69, 0xfee0_0000, 2, false);
    assert_eq!(*sent.lock().unwrap(), [Msi { address: 0xfee0_0000, data: 2 }]);
    msix.set_control(true, true);
    msix.notify(69);
    msix.notify(69);
    msix.set_control(true, false);
    assert_eq!(sent.lock().unwrap().len(), 2);
}

#[test]
fn nothing_is_sent_while_disabled() {
    let (msix, sent) = table(1);
    program(&msix, 0, 0xfee0_0000, 1, false);
    msix.notify(0);
    msix.set_control(true, false);
    assert!(sent.lock().unwrap().is_empty());
}

#[test]
fn state_goes_through_a_format_and_back() {
    let (msix, _) = table(3);
    msix.set_control(true, true);
    program(&msix, 2, 0xfee0_2000, 7, false);
    msix.notify(2);
    let saved = serde_json::to_string(&msix.state()).unwrap();
    let (other, sent) = table(3);
    other.set_state(&serde_json::from_str(&saved).unwrap()).unwrap();
    other.set_control(true, false);
    assert_eq!(*sent.lock().unwrap(), [Msi { address: 0xfee0_2000, data: 7 }]);
    assert_eq!(table(4).0.set_state(&msix.state()), Err(ForeignMsix));
}

#[test]
fn accesses_past_the_table_are_harmless() {
    let (msix, _) = table(1);
    msix.table_write(12, &[0; 8]);
    msix.table_write(u64::MAX - 20, &[0; 8]);
    let mut data = [1; 8];
    msix.table_read(16, &mut data);
    assert_eq!(data, [0; 8]);
    msix.pending_read(100, &mut data);
    assert_eq!(data, [0; 8]);
}
