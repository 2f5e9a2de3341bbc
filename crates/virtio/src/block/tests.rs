use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use guise_disk::device::DeviceOptions;
use guise_disk::format::FormatKind;
use guise_disk::graph::{Image, OpenOptions};
use guise_disk::storage::{MemoryStorage, Storage, StorageRun};

use super::*;
use crate::queue::driver::{BUFFERS, Buffer as Piece};
use crate::transport::guest::Guest;

const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;

struct Rig {
    guest: Guest,
    image: tempfile::NamedTempFile,
}

fn rig(options: BlockOptions, features: u64, packed: bool) -> Rig {
    let image = tempfile::NamedTempFile::new().unwrap();
    let contents: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 512) as u8).collect();
    image.as_file().write_all_at(&contents, 0).unwrap();
    let readonly = features & READ_ONLY != 0;
    let open = DeviceOptions { readonly, ..DeviceOptions::new(image.path(), FormatKind::Raw) };
    let mut guest = Guest::new(Block::new(BlockDevice::open(&open).unwrap(), options));
    guest.start(features, packed, packed);
    Rig { guest, image }
}

impl Rig {
    /// Does a request; returns its status and the length written.
    fn request(&mut self, kind: u32, sector: u64, data: &[Piece]) -> (u8, u32) {
        self.request_on(0, kind, sector, data)
    }

    fn request_on(&mut self, index: u16, kind: u32, sector: u64, data: &[Piece]) -> (u8, u32) {
        let queue = &mut self.guest.queues[usize::from(index)];
        queue.put(HEADER, &kind.to_le_bytes());
        queue.put(HEADER + 8, &sector.to_le_bytes());
        queue.put(STATUS, &[0xee]);
        let mut chain = vec![(HEADER, 16, false)];
        chain.extend(data);
        chain.push((STATUS, 1, true));
        queue.add(&chain);
        self.guest.notify(index);
        let queue = &mut self.guest.queues[usize::from(index)];
        let (_, length) = queue.wait_used();
        (queue.get::<1>(STATUS)[0], length)
    }

    fn contents(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.image.as_file().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.guest.queues[0].put(address, bytes);
    }

    fn range(&self, sector: u64, sectors: u32, flags: u32) {
        self.put(DATA, &sector.to_le_bytes());
        self.put(DATA + 8, &sectors.to_le_bytes());
        self.put(DATA + 12, &flags.to_le_bytes());
    }
}

#[test]
fn reads_and_writes_reach_the_image() {
    for packed in [false, true] {
        let mut rig = rig(BlockOptions::default(), FLUSH, packed);
        let pieces = [(DATA, 700, true), (DATA + 0x2000, 324, true)];
        assert_eq!(rig.request(0, 7, &pieces), (0, 1025));
        assert_eq!(rig.guest.queues[0].get::<4>(DATA + 510), [7, 7, 8, 8]);
        assert_eq!(rig.guest.queues[0].get::<4>(DATA + 0x2000), [8; 4]);
        rig.put(DATA, &[0xaa; 512]);
        rig.put(DATA + 0x2000, &[0xbb; 512]);
        let pieces = [(DATA, 512, false), (DATA + 0x2000, 512, false)];
        assert_eq!(rig.request(1, 3, &pieces), (0, 1));
        assert_eq!(rig.request(4, 0, &[]), (0, 1));
        let contents = rig.contents(3 * 512 - 1, 1026);
        assert_eq!((contents[0], contents[1], contents[1024], contents[1025]), (2, 0xaa, 0xbb, 5));
    }
}

#[test]
fn what_lies_outside_fails_and_touches_nothing() {
    let mut rig = rig(BlockOptions::default(), 0, false);
    for (sector, length) in [(2048, 512), (2047, 1024), (u64::MAX, 512), (u64::MAX / 512, 512)] {
        assert_eq!(rig.request(0, sector, &[(DATA, length, true)]).0, 1);
        assert_eq!(rig.request(1, sector, &[(DATA, length, false)]).0, 1);
    }
    assert_eq!(rig.request(0, 0, &[(DATA, 100, true)]).0, 1, "not a whole sector");
    assert_eq!(rig.contents(2047 * 512, 4), [255; 4]);
    assert_eq!(rig.request(77, 0, &[]).0, 2, "no such request");
    assert_eq!(rig.request(0, 2047, &[(DATA, 512, true)]), (0, 513));
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut rig = rig(BlockOptions::default(), READ_ONLY, false);
    assert_eq!(rig.guest.offered() & (DISCARD | WRITE_ZEROES), 0);
    assert_eq!(rig.request(1, 1, &[(DATA, 512, false)]).0, 1);
    rig.range(0, 1, 0);
    assert_eq!(rig.request(13, 0, &[(DATA, 16, false)]).0, 1);
    assert_eq!(rig.contents(512, 1), [1]);
}

#[test]
fn ranges_are_zeroed_and_discarded() {
    let mut rig = rig(BlockOptions::default(), DISCARD | WRITE_ZEROES, false);
    for flags in [0, 1] {
        rig.range(8 + 8 * u64::from(flags), 8, flags);
        assert_eq!(rig.request(13, 0, &[(DATA, 16, false)]), (0, 1));
    }
    assert!(rig.contents(8 * 512, 16 * 512).iter().all(|&byte| byte == 0));
    assert_eq!((rig.contents(7 * 512, 1), rig.contents(24 * 512, 1)), (vec![7], vec![24]));
    rig.range(32, 8, 0);
    assert_eq!(rig.request(11, 0, &[(DATA, 16, false)]), (0, 1));
    for (sector, sectors, flags, status) in
        [(2048, 1, 0, 1), (0, 1, 2, 2), (0, u32::MAX, 0, 2), (u64::MAX, 1, 0, 1), (5, 0, 0, 0)]
    {
        rig.range(sector, sectors, flags);
        assert_eq!(rig.request(13, 0, &[(DATA, 16, false)]).0, status);
    }
    assert_eq!(rig.request(13, 0, &[(DATA, 17, false)]).0, 2);
    assert_eq!(rig.request(11, 0, &[(DATA, 16 * 33, false)]).0, 2);
}

#[test]
fn the_configuration_describes_the_disk() {
    let options = BlockOptions { serial: "volume-1".to_owned(), queues: 2, ..Default::default() };
    let mut rig = rig(options, MULTIPLE_QUEUES | TOPOLOGY, false);
    assert_eq!(rig.guest.config::<8>(0), 2048_u64.to_le_bytes());
    assert_eq!(rig.guest.config::<4>(20), 512_u32.to_le_bytes());
    assert_eq!(rig.guest.config::<4>(24), [3, 0, 8, 0]);
    assert_eq!(rig.guest.config::<2>(34), [2, 0]);
    assert_eq!(rig.request(8, 0, &[(DATA, 20, true)]), (0, 21));
    assert_eq!(&rig.guest.queues[0].get::<9>(DATA), b"volume-1\0");
    assert_eq!(rig.request_on(1, 0, 9, &[(DATA, 512, true)]), (0, 513));
    assert_eq!(rig.guest.queues[0].get::<1>(DATA), [9]);
}

#[test]
fn a_request_without_room_for_its_status_breaks_the_queue() {
    let mut rig = rig(BlockOptions::default(), 0, false);
    rig.guest.queues[0].add(&[(HEADER, 16, false)]);
    rig.guest.notify(0);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while rig.guest.status() & 64 == 0 {
        assert!(std::time::Instant::now() < deadline, "the device did not notice");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn a_disk_goes_on_after_it_was_saved() {
    let mut rig = rig(BlockOptions::default(), FLUSH, true);
    for sector in 0..20 {
        assert_eq!(rig.request(0, sector, &[(DATA, 512, true)]), (0, 513));
        assert_eq!(rig.guest.queues[0].get::<1>(DATA), [sector as u8]);
        rig.guest.function.state();
    }
}

#[test]
fn many_requests_are_under_way_and_none_is_lost_when_the_device_stops() {
    let mut rig = rig(BlockOptions::default(), FLUSH, false);
    for round in 0..50_u64 {
        for slot in 0..2_u64 {
            let header = HEADER + 32 * slot;
            rig.put(header, &0_u32.to_le_bytes());
            rig.put(header + 8, &(round * 2 + slot).to_le_bytes());
            let data = DATA + 0x1000 * slot;
            let chain = [(header, 16, false), (data, 512, true), (STATUS + slot, 1, true)];
            rig.guest.queues[0].add(&chain);
        }
        rig.guest.notify(0);
        rig.guest.function.state();
        for _ in 0..2 {
            assert_eq!(rig.guest.queues[0].wait_used().1, 513);
        }
        for slot in 0..2 {
            let expected = (round * 2 + slot) as u8;
            assert_eq!(rig.guest.queues[0].get::<1>(DATA + 0x1000 * slot), [expected]);
        }
    }
}

#[test]
fn a_limit_slows_requests_down() {
    let rate = Rate { operations: Some(50), ..Rate::default() };
    let mut rig = rig(BlockOptions { rate, ..BlockOptions::default() }, 0, false);
    let start = std::time::Instant::now();
    for sector in 0..30 {
        assert_eq!(rig.request(0, sector, &[(DATA, 512, true)]), (0, 513));
    }
    // Five fit into the burst; a slow machine only makes it slower.
    assert!(start.elapsed() >= std::time::Duration::from_millis(450), "{:?}", start.elapsed());
}

/// Memory that pretends to be full.
struct Full {
    memory: MemoryStorage,
    full: AtomicBool,
}

impl Storage for Full {
    fn name(&self) -> &str {
        "full"
    }

    fn len(&self) -> guise_disk::Result<u64> {
        self.memory.len()
    }

    fn writable(&self) -> bool {
        true
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> guise_disk::Result<()> {
        self.memory.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, buffer: &[u8]) -> guise_disk::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            let source = std::io::Error::from_raw_os_error(libc::ENOSPC);
            return Err(guise_disk::Error::io("write to", "full", source));
        }
        self.memory.write_at(offset, buffer)
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> guise_disk::Result<()> {
        self.memory.write_zeroes(offset, length, unmap)
    }

    fn discard(&self, offset: u64, length: u64) -> guise_disk::Result<()> {
        self.memory.discard(offset, length)
    }

    fn flush(&self) -> guise_disk::Result<()> {
        self.memory.flush()
    }

    fn set_len(&self, length: u64) -> guise_disk::Result<()> {
        self.memory.set_len(length)
    }

    fn allocate(&self, offset: u64, length: u64) -> guise_disk::Result<()> {
        self.memory.allocate(offset, length)
    }

    fn run_at(&self, offset: u64) -> guise_disk::Result<StorageRun> {
        self.memory.run_at(offset)
    }

    fn allocated_bytes(&self) -> guise_disk::Result<u64> {
        self.memory.allocated_bytes()
    }
}

/// A disk over storage that is full, which reports that or waits.
fn full_disk(when_full: WhenFull) -> (Arc<Full>, Arc<Block>, Guest) {
    let memory = MemoryStorage::from_bytes("full", &[0; 1 << 16]);
    let storage = Arc::new(Full { memory, full: AtomicBool::new(true) });
    let options =
        OpenOptions { format: Some(FormatKind::Raw), write: true, ..OpenOptions::default() };
    let image = Image::over(storage.clone(), std::path::Path::new("full"), &options).unwrap();
    let device = BlockDevice::over(Arc::new(image));
    let block = Block::new(device, BlockOptions { when_full, ..BlockOptions::default() });
    let mut guest = Guest::new(block.clone());
    guest.start(FLUSH, false, false);
    (storage, block, guest)
}

fn write_something(guest: &mut Guest) {
    let queue = &mut guest.queues[0];
    queue.put(HEADER, &1_u32.to_le_bytes());
    queue.put(HEADER + 8, &0_u64.to_le_bytes());
    queue.put(DATA, &[7; 512]);
    queue.add(&[(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)]);
    guest.notify(0);
}

#[test]
fn what_has_no_space_fails_or_waits() {
    let (_, _, mut guest) = full_disk(WhenFull::Report);
    write_something(&mut guest);
    guest.queues[0].wait_used();
    assert_eq!(guest.queues[0].get::<1>(STATUS), [1]);

    let (storage, block, mut guest) = full_disk(WhenFull::Wait);
    let (sender, alarms) = std::sync::mpsc::channel();
    block.on_full(move |shortage| sender.send(shortage).unwrap());
    write_something(&mut guest);
    let limit = std::time::Duration::from_secs(60);
    let Ok(first) = alarms.recv_timeout(limit) else { panic!("nobody is told") };
    assert!(first.lasts() && guest.queues[0].used().is_none());
    // Still full: it waits on.
    block.retry();
    let Ok(second) = alarms.recv_timeout(limit) else { panic!("nobody is told again") };
    assert!(second.lasts() && !first.lasts());
    assert!(guest.queues[0].used().is_none());
    storage.full.store(false, Ordering::SeqCst);
    block.retry();
    guest.queues[0].wait_used();
    assert_eq!(guest.queues[0].get::<1>(STATUS), [0]);
    let mut written = [0; 512];
    storage.read_at(0, &mut written).unwrap();
    assert_eq!(written, [7; 512]);
}

/// A read of which the host has a part at hand and has to wait for the rest is done by
/// neither the call that begins it nor a thread of the kernel.
#[test]
fn a_read_that_is_half_in_the_hosts_cache_comes_back() {
    for packed in [false, true] {
        let mut rig = rig(BlockOptions::default(), 0, packed);
        rig.image.as_file().sync_all().unwrap();
        for round in 0..20_u64 {
            rustix::fs::fadvise(rig.image.as_file(), 0, None, rustix::fs::Advice::Random).unwrap();
            rustix::fs::fadvise(rig.image.as_file(), 0, None, rustix::fs::Advice::DontNeed)
                .unwrap();
            let offset = round * 0xc000;
            assert_eq!(rig.contents(offset, 4096).len(), 4096);
            let (status, length) = rig.request(0, offset / 512, &[(DATA, 0xc000, true)]);
            assert_eq!((status, length), (0, 0xc001));
            let read = rig.guest.queues[0].get::<0xc000>(DATA);
            assert_eq!(read.to_vec(), rig.contents(offset, 0xc000), "round {round}");
        }
    }
}
