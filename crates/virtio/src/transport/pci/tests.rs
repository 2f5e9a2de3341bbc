use std::os::fd::OwnedFd;

use super::*;
use crate::device::{EVENT_INDEX, PACKED_RING, StartError, VERSION_1};
use crate::queue::driver::BUFFERS;
use crate::rng::Rng;
use crate::transport::guest::Guest;

/// A device that only remembers what was done to it.
#[derive(Default)]
struct Probe {
    session: Mutex<Option<Session>>,
    notified: Mutex<Vec<u16>>,
    config: Mutex<[u8; 4]>,
}

impl VirtioDevice for Probe {
    fn kind(&self) -> u16 {
        42
    }
    fn class(&self) -> u32 {
        0xff_0000
    }
    fn features(&self) -> u64 {
        0b101
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![16, 16]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = self.config.lock().unwrap().get(at).copied().unwrap_or(0);
        }
    }
    fn write_config(&self, offset: u64, data: &[u8]) {
        if let Some(byte) = self.config.lock().unwrap().get_mut(offset as usize) {
            *byte = data[0];
        }
    }
    fn start(&self, session: Session) -> Result<(), StartError> {
        *self.session.lock().unwrap() = Some(session);
        Ok(())
    }
    fn stop(&self) -> Vec<Option<Queue>> {
        self.session.lock().unwrap().take().map_or(Vec::new(), |session| session.queues)
    }
    fn notify(&self, queue: u16) {
        self.notified.lock().unwrap().push(queue);
    }
    fn doorbell(&self, _: u16) -> Option<Arc<OwnedFd>> {
        None
    }
}

impl Probe {
    fn running(&self) -> bool {
        self.session.lock().unwrap().is_some()
    }

    fn interrupt(&self) -> Arc<Interrupt> {
        self.session.lock().unwrap().as_ref().unwrap().interrupt.clone()
    }
}

fn rig() -> (Arc<Probe>, Guest) {
    let probe = Arc::new(Probe::default());
    (probe.clone(), Guest::new(probe))
}

#[test]
fn a_driver_finds_its_device() {
    let (_, guest) = rig();
    let mut id = [0; 4];
    guest.function.config_read(0, &mut id);
    assert_eq!(id, [0xf4, 0x1a, 0x6a, 0x10]);
    for (kind, offset) in [(1, 0), (2, 0x3000), (3, 0x1000), (4, 0x2000)] {
        let at = guest.capability(9, Some(kind));
        let mut body = [0; 4];
        guest.function.config_read(at + 8, &mut body);
        assert_eq!(u32::from_le_bytes(body), offset);
    }
    assert_eq!(guest.offered(), 0b101 | VERSION_1 | PACKED_RING | EVENT_INDEX | 1 << 28);
}

#[test]
fn features_are_settled_once_and_only_if_offered() {
    let (probe, guest) = rig();
    guest.set_status(3);
    guest.accept(VERSION_1 | 0b010);
    guest.set_status(11);
    assert_eq!(guest.status(), 3, "not offered");
    guest.accept(0b001);
    guest.set_status(11);
    assert_eq!(guest.status(), 3, "not without VERSION_1");
    guest.set_status(7);
    assert!(!probe.running(), "not before features are settled");
    guest.accept(VERSION_1 | 0b100);
    guest.set_status(11);
    assert_eq!(guest.status(), 11);
    guest.accept(VERSION_1);
    guest.set_status(15);
    let features = probe.session.lock().unwrap().as_ref().unwrap().features;
    assert_eq!(features, VERSION_1 | 0b100);
}

#[test]
fn queues_are_set_up_notified_and_reset() {
    let (probe, mut guest) = rig();
    guest.start(0, false, false);
    {
        let session = probe.session.lock().unwrap();
        let queues = &session.as_ref().unwrap().queues;
        assert_eq!(*queues[1].as_ref().unwrap().config(), guest.queues[1].config);
    }
    guest.notify(1);
    guest.notify(0);
    assert_eq!(*probe.notified.lock().unwrap(), [1, 0]);
    // What runs cannot be changed.
    guest.write(0x20, &[0; 8]);
    assert_eq!(guest.read::<8>(0x20), guest.queues[1].config.descriptors.to_le_bytes());
    guest.write(0x16, &7_u16.to_le_bytes());
    assert_eq!(guest.read::<2>(0x18), [0, 0], "no such queue");
    guest.set_status(0);
    assert!(!probe.running());
    assert_eq!(guest.status(), 0);
    guest.start(0b1, true, true);
    assert!(probe.running());
}

#[test]
fn a_queue_outside_of_memory_breaks_the_device() {
    let (probe, mut guest) = rig();
    guest.set_status(3);
    guest.accept(VERSION_1);
    guest.set_status(11);
    guest.set_up_queues(false, false);
    guest.set_status(0);
    guest.set_status(3);
    guest.accept(VERSION_1);
    guest.set_status(11);
    guest.write(0x20, &0xffff_ffff_0000_u64.to_le_bytes());
    guest.write(0x1c, &1_u16.to_le_bytes());
    guest.set_status(15);
    assert!(!probe.running());
    assert_eq!(guest.status() & 64, 64);
    guest.set_status(0);
    assert_eq!(guest.status(), 0);
}

#[test]
fn interrupts_are_messages_or_a_line() {
    let (probe, mut guest) = rig();
    guest.start(0, false, false);
    probe.interrupt().signal_queue(1);
    probe.interrupt().signal_queue(0);
    assert_eq!(*guest.messages.lock().unwrap(), [0x42, 0x41]);
    // The configuration has no message.
    probe.interrupt().signal_configuration();
    assert_eq!(guest.messages.lock().unwrap().len(), 2);
    let control = guest.capability(0x11, None) + 2;
    guest.function.config_write(control, &[0, 0]);
    probe.interrupt().signal_queue(0);
    assert!(*guest.line.lock().unwrap());
    probe.interrupt().signal_configuration();
    assert_eq!(guest.read::<1>(0x1000), [3]);
    assert!(!*guest.line.lock().unwrap());
    assert_eq!(guest.read::<1>(0x1000), [0]);
    probe.interrupt().signal_queue(0);
    guest.function.config_write(4, &0x406_u16.to_le_bytes());
    assert!(!*guest.line.lock().unwrap(), "INTx is disabled");
    guest.function.config_write(4, &0x006_u16.to_le_bytes());
    assert!(*guest.line.lock().unwrap());
}

#[test]
fn the_configuration_has_a_generation() {
    let (probe, mut guest) = rig();
    guest.start(0, false, false);
    guest.write(0x10, &0_u16.to_le_bytes());
    guest.write(0x2001, &[7]);
    assert_eq!(guest.config::<4>(0), [0, 7, 0, 0]);
    let [before] = guest.read::<1>(0x15);
    probe.interrupt().signal_configuration();
    assert_eq!(guest.read::<1>(0x15), [before + 1]);
    assert_eq!(*guest.messages.lock().unwrap(), [0x40]);
}

#[test]
fn everything_can_be_reached_through_configuration_space() {
    let (_, guest) = rig();
    let window = guest.capability(9, Some(5));
    let function = &guest.function;
    function.config_write(window + 4, &[0]);
    function.config_write(window + 8, &0x14_u32.to_le_bytes());
    function.config_write(window + 12, &1_u32.to_le_bytes());
    function.config_write(window + 16, &[3, 0, 0, 0]);
    assert_eq!(guest.status(), 3);
    let mut data = [0; 4];
    function.config_read(window + 16, &mut data);
    assert_eq!(data[0], 3);
    // Nonsense is ignored.
    function.config_write(window + 12, &3_u32.to_le_bytes());
    function.config_write(window + 16, &[0; 4]);
    function.config_write(window + 4, &[5]);
    function.config_write(window + 16, &[0; 4]);
    assert_eq!(guest.status(), 3);
}

#[test]
fn a_running_device_is_saved_and_goes_on_here_and_elsewhere() {
    for packed in [false, true] {
        let mut guest = Guest::new(Rng::new());
        guest.start(0, packed, false);
        let one = |guest: &mut Guest| {
            guest.queues[0].add(&[(BUFFERS, 16, true)]);
            guest.notify(0);
            assert_eq!(guest.queues[0].wait_used().1, 16);
        };
        one(&mut guest);
        guest.function.state();
        one(&mut guest);
        let saved = serde_json::to_string(&guest.function.state()).unwrap();
        let queues = std::mem::take(&mut guest.queues);
        let memory = guest.memory.clone();
        drop(guest);
        let mut again = Guest::in_memory(Rng::new(), memory);
        again.function.set_state(&serde_json::from_str(&saved).unwrap()).unwrap();
        again.queues = queues;
        assert_eq!(again.status(), 15);
        one(&mut again);
        assert_eq!(*again.messages.lock().unwrap(), [0x41]);
    }
}

#[test]
fn a_saved_device_fits_only_its_own_kind() {
    let (_, guest) = rig();
    let other = Guest::new(Rng::new());
    let result = guest.function.set_state(&other.function.state());
    assert!(matches!(result, Err(StateError::Device)));
}

#[test]
fn random_accesses_do_no_harm() {
    let mut seed = 0x0bad_5eed_u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..20 {
        let mut guest = Guest::new(Rng::new());
        for _ in 0..2_000 {
            let (random, value) = (next(), next());
            let length = [1, 2, 4, 8, 3][(random % 5) as usize];
            let data = value.to_le_bytes();
            match random >> 8 & 15 {
                0..6 => guest.write(random >> 16 & 0x3f, &data[..length]),
                6 => guest.write(random >> 16 & 0x7fff, &data[..length]),
                7..9 => _ = guest.read::<8>(random >> 16 & 0x7fff),
                9 => guest.function.config_write((random >> 16) as u16 & 0xff, &data[..length]),
                10 => guest.function.config_read((random >> 16) as u16 & 0xfff, &mut [0; 4]),
                11 if value % 40 == 0 => guest.start(0, value & 64 != 0, value & 128 != 0),
                12 => guest.notify(0),
                13 if value % 40 == 0 => _ = guest.function.state(),
                14 if value % 40 == 0 => guest.function.reset(),
                _ if !guest.queues.is_empty() => {
                    let config = guest.queues[0].config;
                    let at = [config.descriptors, config.driver, config.device];
                    let at = at[(random >> 16) as usize % 3] + (value & 0x7e);
                    guest.queues[0].put(at, &data[..length]);
                }
                _ => {}
            }
        }
    }
}
