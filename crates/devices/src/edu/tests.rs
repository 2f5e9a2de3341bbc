use guise_engine::memory::vm_memory::{Bytes, GuestAddress};
use guise_engine::{GuestMemory, Msi};

use super::*;

struct Rig {
    edu: Arc<Edu>,
    memory: GuestMemory,
    line: Arc<Mutex<bool>>,
    messages: Arc<Mutex<Vec<Msi>>>,
}

fn rig() -> Rig {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let (line, messages): (Arc<Mutex<bool>>, Arc<Mutex<Vec<Msi>>>) = Default::default();
    let (wire, sink) = (line.clone(), messages.clone());
    let edu = Edu::new(
        Arc::new(memory.clone()),
        Arc::new(move |message: Msi| sink.lock().unwrap().push(message)),
        Arc::new(move |level: bool| *wire.lock().unwrap() = level),
    );
    Rig { edu: edu.unwrap(), memory, line, messages }
}

impl Rig {
    fn get(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.edu.bar_read(0, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&self, offset: u64, value: u32) {
        self.edu.bar_write(0, offset, &value.to_le_bytes());
    }

    fn set_wide(&self, offset: u64, value: u64) {
        self.edu.bar_write(0, offset, &value.to_le_bytes());
    }

    fn copy(&self, source: u64, destination: u64, count: u64, command: u32) {
        self.set_wide(DMA_SOURCE, source);
        self.set_wide(DMA_DESTINATION, destination);
        self.set_wide(DMA_COUNT, count);
        self.set(DMA_COMMAND, command);
    }

    fn command_register(&self, value: u16) {
        self.edu.config_write(4, &value.to_le_bytes());
    }

    fn line(&self) -> bool {
        *self.line.lock().unwrap()
    }
}

const MASTER: u16 = 1 << 2;

#[test]
fn it_tells_who_it_is_and_that_it_lives() {
    let rig = rig();
    assert_eq!(rig.get(IDENTITY), 0x0100_00ed);
    rig.set(LIVENESS, 0x1234_5678);
    assert_eq!(rig.get(LIVENESS), 0xedcb_a987);
    // Other widths are not for registers like these.
    let mut narrow = [0; 2];
    rig.edu.bar_read(0, IDENTITY, &mut narrow);
    assert_eq!(narrow, [0xff; 2]);
    rig.set_wide(LIVENESS, 5);
    assert_eq!(rig.get(LIVENESS), 0xedcb_a987);
}

#[test]
fn factorials_are_those_of_32_bits() {
    let rig = rig();
    for (of, result) in [(0, 1), (1, 1), (5, 120), (13, 1_932_053_504), (34, 0), (u32::MAX, 0)] {
        rig.set(FACTORIAL, of);
        assert_eq!(rig.get(FACTORIAL), result, "{of}");
    }
    assert!(!rig.line());
    rig.set(STATUS, 0xff);
    assert_eq!(rig.get(STATUS), 0x80, "only one bit is the driver's");
    rig.set(FACTORIAL, 3);
    assert!(rig.line());
    assert_eq!(rig.get(INTERRUPT_STATUS), 1);
}

#[test]
fn an_interrupt_lasts_until_all_of_it_is_acknowledged() {
    let rig = rig();
    rig.set(INTERRUPT_RAISE, 0);
    assert!(!rig.line());
    rig.set(INTERRUPT_RAISE, 0x30);
    assert!(rig.line());
    rig.set(INTERRUPT_ACKNOWLEDGE, 0x10);
    assert!(rig.line());
    // The wire can be disabled, and then shows again what there is.
    rig.command_register(1 << 10);
    assert!(!rig.line());
    rig.command_register(0);
    assert!(rig.line());
    rig.set(INTERRUPT_ACKNOWLEDGE, 0x20);
    assert!(!rig.line());
    assert!(rig.messages.lock().unwrap().is_empty());
}

#[test]
fn a_message_takes_the_wires_place() {
    let rig = rig();
    rig.set(INTERRUPT_RAISE, 1);
    let mut at = [0];
    rig.edu.config().read(0x34, &mut at);
    let at = u16::from(at[0]);
    rig.edu.config_write(at + 4, &0xfee0_1000_u32.to_le_bytes());
    rig.edu.config_write(at + 12, &0x41_u16.to_le_bytes());
    rig.edu.config_write(at + 2, &1_u16.to_le_bytes());
    assert!(!rig.line());
    rig.set(INTERRUPT_RAISE, 2);
    assert_eq!(*rig.messages.lock().unwrap(), [Msi { address: 0xfee0_1000, data: 0x41 }]);
    assert_eq!(rig.get(INTERRUPT_STATUS), 3);
    assert!(!rig.line());
}

#[test]
fn data_goes_there_and_back() {
    let rig = rig();
    rig.memory.write_slice(b"to and fro", GuestAddress(0x5000)).unwrap();
    // Without being bus master it reaches nothing.
    rig.copy(0x5000, BUFFER + 16, 10, 1);
    rig.copy(BUFFER + 16, 0x6000, 10, 3);
    let copied = || {
        let mut copied = [0; 10];
        rig.memory.read_slice(&mut copied, GuestAddress(0x6000)).unwrap();
        copied
    };
    assert_eq!(copied(), [0; 10]);
    rig.command_register(MASTER);
    rig.copy(0x5000, BUFFER + 16, 10, 1);
    // Bits of an address that it has no lines for are ignored.
    rig.copy(BUFFER + 16, 0x7000_0000_6000, 10, 7);
    assert_eq!(&copied(), b"to and fro");
    assert_eq!(rig.get(DMA_COMMAND), 6, "it has ended");
    assert_eq!(rig.get(INTERRUPT_STATUS), 0x100);
    assert!(rig.line());
}

#[test]
fn copies_that_make_no_sense_change_nothing() {
    let rig = rig();
    rig.command_register(MASTER);
    rig.memory.write_slice(&[7; 16], GuestAddress(0x5000)).unwrap();
    for (start, count) in [
        (BUFFER - 1, 4),
        (BUFFER + 4093, 4),
        (BUFFER, 4097),
        (0, 4),
        (u64::MAX, 4),
        (BUFFER, u64::MAX),
    ] {
        rig.copy(0x5000, start, count, 1);
        assert!(rig.edu.lock().buffer.iter().all(|byte| *byte == 0), "{start:#x}+{count:#x}");
        rig.copy(start, 0x5000, count, 3);
    }
    let mut data = [0; 16];
    rig.memory.read_slice(&mut data, GuestAddress(0x5000)).unwrap();
    assert_eq!(data, [7; 16]);
    // From where there is no memory come ones.
    rig.copy(0x800_0000, BUFFER, 4, 1);
    assert_eq!(rig.edu.lock().buffer[..5], [0xff, 0xff, 0xff, 0xff, 0]);
    rig.copy(BUFFER, 0x800_0000, 4, 3);
}

#[test]
fn a_saved_device_is_the_same_elsewhere() {
    let (first, second) = (rig(), rig());
    first.command_register(MASTER);
    first.memory.write_slice(&[9; 8], GuestAddress(0x5000)).unwrap();
    first.copy(0x5000, BUFFER, 8, 1);
    first.set(LIVENESS, 1);
    first.set(STATUS, 0x80);
    first.set(FACTORIAL, 4);
    let json = serde_json::to_string(&first.edu.state()).unwrap();
    second.edu.set_state(&serde_json::from_str(&json).unwrap()).unwrap();
    assert_eq!(second.edu.state(), first.edu.state());
    assert!(second.line(), "the wire is as it was");
    let mut other = first.edu.state();
    other.registers.buffer.pop();
    assert!(second.edu.set_state(&other).is_err());
    second.edu.reset();
    assert!(!second.line());
    assert_eq!(second.get(LIVENESS), 0);
}
