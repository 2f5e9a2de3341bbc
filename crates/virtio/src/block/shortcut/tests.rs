use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use guise_disk::Result as DiskResult;
use guise_disk::format::FormatKind;
use guise_disk::graph::{Image, OpenOptions};
use guise_disk::storage::{FileOptions, FileStorage, Storage, StorageRun};

use crate::block::{Block, BlockOptions};
use crate::queue::driver::BUFFERS;
use crate::rate::Rate;
use crate::transport::guest::Guest;
use guise_disk::device::BlockDevice;

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;
const SIZE: usize = 1 << 20;

/// A file of which it can be said whether reads take waiting.
struct Cached {
    file: FileStorage,
    is_at_hand: bool,
    at_hand: AtomicUsize,
    others: AtomicUsize,
}

impl Storage for Cached {
    fn name(&self) -> &str {
        self.file.name()
    }
    fn len(&self) -> DiskResult<u64> {
        self.file.len()
    }
    fn writable(&self) -> bool {
        true
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> DiskResult<()> {
        self.others.fetch_add(1, Ordering::SeqCst);
        self.file.read_at(offset, buffer)
    }
    fn read_at_hand(&self, mut offset: u64, pieces: &mut [IoSliceMut<'_>]) -> DiskResult<bool> {
        for piece in pieces.iter_mut().filter(|_| self.is_at_hand) {
            self.file.read_at(offset, piece)?;
            offset += piece.len() as u64;
        }
        self.at_hand.fetch_add(usize::from(self.is_at_hand), Ordering::SeqCst);
        Ok(self.is_at_hand)
    }
    fn write_at(&self, offset: u64, buffer: &[u8]) -> DiskResult<()> {
        self.file.write_at(offset, buffer)
    }
    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> DiskResult<()> {
        self.file.write_zeroes(offset, length, unmap)
    }
    fn discard(&self, offset: u64, length: u64) -> DiskResult<()> {
        self.file.discard(offset, length)
    }
    fn flush(&self) -> DiskResult<()> {
        self.file.flush()
    }
    fn set_len(&self, length: u64) -> DiskResult<()> {
        self.file.set_len(length)
    }
    fn allocate(&self, offset: u64, length: u64) -> DiskResult<()> {
        self.file.allocate(offset, length)
    }
    fn run_at(&self, offset: u64) -> DiskResult<StorageRun> {
        self.file.run_at(offset)
    }
    fn allocated_bytes(&self) -> DiskResult<u64> {
        self.file.allocated_bytes()
    }
}

struct Rig {
    guest: Guest,
    storage: std::sync::Arc<Cached>,
    _file: tempfile::NamedTempFile,
}

fn rig(is_at_hand: bool, packed: bool, event_index: bool, rate: Rate) -> Rig {
    let file = tempfile::NamedTempFile::new().unwrap();
    let contents: Vec<u8> = (0..SIZE).map(|at| (at / 512) as u8).collect();
    file.as_file().write_all_at(&contents, 0).unwrap();
    let options = FileOptions { share: guise_disk::storage::Share::Freely, ..FileOptions::write() };
    let storage = std::sync::Arc::new(Cached {
        file: FileStorage::open(file.path(), options).unwrap(),
        is_at_hand,
        at_hand: AtomicUsize::new(0),
        others: AtomicUsize::new(0),
    });
    let open = OpenOptions { format: Some(FormatKind::Raw), write: true, ..OpenOptions::default() };
    let image = Image::over(storage.clone(), file.path(), &open).unwrap();
    let device = BlockDevice::over(std::sync::Arc::new(image));
    let options = BlockOptions { rate, ..BlockOptions::default() };
    let mut guest = Guest::new(Block::new(device, options));
    guest.start(0, packed, event_index);
    Rig { guest, storage, _file: file }
}

impl Rig {
    fn add(&mut self, kind: u32, sector: u64, at: u64, length: u32) {
        let queue = &mut self.guest.queues[0];
        let header = HEADER + 0x20 * (sector % 8);
        queue.put(header, &kind.to_le_bytes());
        queue.put(header + 8, &sector.to_le_bytes());
        queue.put(STATUS, &[0xee]);
        queue.add(&[(header, 16, false), (at, length, kind == 0), (STATUS, 1, true)]);
    }

    fn interrupts(&self) -> usize {
        self.guest.messages.lock().unwrap().len()
    }

    fn counts(&self) -> (usize, usize) {
        let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        (count(&self.storage.at_hand), count(&self.storage.others))
    }
}

#[test]
fn what_is_at_hand_is_there_when_the_notification_is_over() {
    for (packed, event_index) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut rig = rig(true, packed, event_index, Rate::default());
        let mut done = 0;
        for round in 0..40_u64 {
            // With event indices: the next one, wherever the driver is.
            let position = round as u16;
            let places = 3 * position;
            match (packed, event_index) {
                (_, false) => {}
                (false, true) => rig.guest.queues[0].want_interrupt_at(position, false),
                (true, true) => {
                    rig.guest.queues[0]
                        .want_interrupt_at(places % 8, (places / 8).is_multiple_of(2));
                }
            }
            rig.add(0, round, DATA, 1024);
            rig.guest.notify(0);
            let at_hand = rig.counts().0;
            let queue = &mut rig.guest.queues[0];
            // The thread may be awake still from the time before.
            let short = std::mem::replace(&mut done, at_hand) < at_hand;
            let used = if short { queue.used() } else { Some(queue.wait_used()) };
            assert_eq!(used.map(|(_, length)| length), Some(1025), "{packed} {event_index}");
            assert_eq!(queue.get::<1>(STATUS), [0]);
            assert_eq!(queue.get::<1>(DATA + 512), [round as u8 + 1]);
            if short {
                assert_eq!(rig.interrupts() as u64, round + 1, "{packed} {event_index}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(done > 10, "{done} of 40 were short");
    }
}

#[test]
fn what_takes_waiting_goes_the_long_way() {
    let mut rig = rig(false, false, true, Rate::default());
    rig.add(0, 5, DATA, 512);
    rig.guest.notify(0);
    assert_eq!(rig.guest.queues[0].wait_used().1, 513);
    assert_eq!(rig.guest.queues[0].get::<1>(DATA), [5]);
    assert_eq!(rig.counts(), (0, 1));
}

#[test]
fn several_at_once_large_ones_and_writes_go_the_long_way() {
    let mut rig = rig(true, false, false, Rate::default());
    for sector in [1, 2] {
        rig.add(0, sector, DATA + 512 * sector, 512);
    }
    rig.guest.notify(0);
    for _ in 0..2 {
        rig.guest.queues[0].wait_used();
    }
    rig.guest.queues[0].put(DATA, &[9; 512]);
    rig.add(1, 3, DATA, 512);
    rig.guest.notify(0);
    rig.guest.queues[0].wait_used();
    rig.add(0, 0, DATA, (super::MOST + 512) as u32);
    rig.guest.notify(0);
    rig.guest.queues[0].wait_used();
    assert_eq!(rig.guest.queues[0].get::<2>(DATA + 3 * 512 - 1), [2, 9], "what was written");
    assert_eq!(rig.counts().0, 0);
}

#[test]
fn a_disk_with_a_limit_has_no_short_way() {
    let rate = Rate { operations: Some(1000), ..Rate::default() };
    let mut rig = rig(true, false, false, rate);
    rig.add(0, 0, DATA, 512);
    rig.guest.notify(0);
    rig.guest.queues[0].wait_used();
    assert_eq!(rig.counts(), (0, 1));
}

#[test]
fn what_is_wrong_is_found_by_the_thread() {
    for packed in [false, true] {
        let mut rig = rig(true, packed, false, Rate::default());
        rig.add(0, SIZE as u64 / 512, DATA, 512);
        rig.guest.notify(0);
        assert_eq!(rig.guest.queues[0].wait_used().1, 1);
        assert_eq!(rig.guest.queues[0].get::<1>(STATUS), [1], "outside of the disk");
        // No room for a status.
        rig.guest.queues[0].add(&[(HEADER, 16, false)]);
        rig.guest.notify(0);
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while rig.guest.status() & 0x40 == 0 {
            assert!(std::time::Instant::now() < deadline, "the device goes on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn two_who_notify_at_once_lose_nothing() {
    let mut rig = rig(true, false, false, Rate::default());
    for round in 0..2000_u64 {
        rig.add(0, round % 64, DATA, 512);
        std::thread::scope(|scope| {
            let guest = &rig.guest;
            scope.spawn(|| guest.notify(0));
            guest.notify(0);
        });
        assert_eq!(rig.guest.queues[0].wait_used().1, 513, "{round}");
        assert_eq!(rig.guest.queues[0].get::<1>(DATA), [(round % 64) as u8]);
    }
}
