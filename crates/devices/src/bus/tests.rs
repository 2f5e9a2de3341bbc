use super::*;

/// Remembers accesses; reads as the low bytes of the offsets.
#[derive(Default)]
struct Recorder {
    seen: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Device for Recorder {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = offset as u8 + at as u8;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.seen.lock().unwrap().push((offset, data.to_vec()));
    }
}

#[test]
fn accesses_reach_the_range_that_holds_them() {
    let bus = Bus::new();
    let device = Arc::new(Recorder::default());
    bus.insert(0x100, 8, 0, device.clone()).unwrap();
    bus.insert(0x200, 8, 0x40, device.clone()).unwrap();
    let mut data = [0; 2];
    bus.read(0x102, &mut data);
    assert_eq!(data, [2, 3]);
    bus.read(0x204, &mut data);
    assert_eq!(data, [0x44, 0x45]);
    bus.write(0x207, &[9]);
    assert_eq!(*device.seen.lock().unwrap(), [(0x47, vec![9])]);
}

#[test]
fn holes_read_as_ones_and_straddling_accesses_are_split() {
    let bus = Bus::new();
    let device = Arc::new(Recorder::default());
    bus.insert(0x10, 2, 0, device.clone()).unwrap();
    bus.insert(0x14, 2, 8, device.clone()).unwrap();
    let mut data = [0; 8];
    bus.read(0x0f, &mut data);
    assert_eq!(data, [0xff, 0, 1, 0xff, 0xff, 8, 9, 0xff]);
    bus.write(0x0f, &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(*device.seen.lock().unwrap(), [(0, vec![2, 3]), (8, vec![6, 7])]);
}

#[test]
fn the_end_of_the_address_space_is_an_ordinary_place() {
    let bus = Bus::new();
    let device = Arc::new(Recorder::default());
    bus.insert(u64::MAX - 3, 4, 0, device.clone()).unwrap();
    bus.insert(0, 2, 0x80, device).unwrap();
    let mut data = [0; 8];
    bus.read(u64::MAX - 1, &mut data);
    assert_eq!(data, [2, 3, 0x80, 0x81, 0xff, 0xff, 0xff, 0xff]);
}

#[test]
fn overlaps_and_nonsense_are_refused() {
    let bus = Bus::new();
    let device = Arc::new(Recorder::default());
    bus.insert(0x10, 0x10, 0, device.clone()).unwrap();
    for (base, length) in [(0x0f, 2), (0x10, 1), (0x1f, 1), (0, 0x100)] {
        assert_eq!(
            bus.insert(base, length, 0, device.clone()),
            Err(BusError::Overlap { base, length, other: 0x10 })
        );
    }
    assert!(matches!(bus.insert(0, 0, 0, device.clone()), Err(BusError::Invalid { .. })));
    assert!(matches!(bus.insert(u64::MAX, 2, 0, device.clone()), Err(BusError::Invalid { .. })));
    bus.insert(0x20, 1, 0, device.clone()).unwrap();
    bus.insert(0x0f, 1, 0, device).unwrap();
}

#[test]
fn a_removed_range_is_free_again() {
    let bus = Bus::new();
    let device = Arc::new(Recorder::default());
    bus.insert(0x10, 4, 0, device.clone()).unwrap();
    assert!(bus.contains(0x13));
    assert!(!bus.remove(0x11));
    assert!(bus.remove(0x10));
    assert!(!bus.contains(0x10));
    bus.insert(0x12, 4, 0, device).unwrap();
}

#[test]
fn a_device_may_change_the_bus_while_it_is_accessed() {
    struct Mover {
        bus: Arc<Bus>,
        other: Arc<Recorder>,
    }
    impl Device for Mover {
        fn read(&self, _: u64, _: &mut [u8]) {}
        fn write(&self, _: u64, data: &[u8]) {
            self.bus.insert(u64::from(data[0]), 1, 0, self.other.clone()).unwrap();
        }
    }
    let bus = Arc::new(Bus::new());
    let mover = Mover { bus: bus.clone(), other: Arc::default() };
    bus.insert(0, 1, 0, Arc::new(mover)).unwrap();
    bus.write(0, &[0x77]);
    assert!(bus.contains(0x77));
}
