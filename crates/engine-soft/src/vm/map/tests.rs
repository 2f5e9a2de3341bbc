use super::*;
use guise_engine::memory::vm_memory::{GuestAddress, MmapRegion};

fn region(pages: usize) -> Arc<Region> {
    let mapping = MmapRegion::new(pages * PAGE_SIZE).unwrap();
    Region::new(Arc::new(GuestRegion::new(mapping, GuestAddress(0)).unwrap())).into()
}

fn slot(region: &Region, guest_address: u64, offset: u64, size: u64) -> MemorySlot {
    MemorySlot { guest_address, region: region.memory.clone(), offset, size, read_only: false }
}

#[test]
fn lines_cover_the_bytes_and_no_others() {
    assert_eq!(lines(0, 1), 1);
    assert_eq!(lines(63, 1), 1);
    assert_eq!(lines(63, 2), 3);
    assert_eq!(lines(4095, 1), 1 << 63);
    assert_eq!(lines(0, 4096), !0);
    assert_eq!(lines(4090, 20), 1 << 63);
}

#[test]
fn an_address_is_found_in_its_slot_only() {
    let memory = region(4);
    let mut map = MemoryMap::default();
    map.insert(0, &slot(&memory, 0x1000, 0x1000, 0x2000), memory.clone()).unwrap();
    assert!(map.find(0xfff).is_none());
    assert!(map.find(0x3000).is_none());
    assert_eq!(map.find(0x2fff).unwrap().host, memory.host(0x2fff));
    assert_eq!(map.find(0x2fff).unwrap().page(), 2);
}

#[test]
fn two_addresses_of_one_page_share_its_marks() {
    let memory = region(1);
    let mut map = MemoryMap::default();
    map.insert(0, &slot(&memory, 0, 0, 0x1000), memory.clone()).unwrap();
    map.insert(1, &slot(&memory, 0xf000, 0, 0x1000), memory.clone()).unwrap();
    let marks = |at| std::ptr::from_ref(map.find(at).unwrap().marks());
    assert_eq!(marks(5), marks(0xf005));
}

#[test]
fn slots_that_do_not_fit_are_refused() {
    let memory = region(2);
    let mut map = MemoryMap::default();
    map.insert(0, &slot(&memory, 0x1000, 0, 0x1000), memory.clone()).unwrap();
    for (number, wrong) in [
        (1, slot(&memory, 0, 0, 0x2000)),
        (1, slot(&memory, 0x8000, 0, 0x3000)),
        (1, slot(&memory, 0x8000, 0x1000, 0x2000)),
        (1, slot(&memory, 0x8001, 0, 0x1000)),
        (1, slot(&memory, 0x8000, 0, 0)),
        (1, slot(&memory, u64::MAX - 0xfff, 0, 0x1000)),
    ] {
        assert!(map.insert(number, &wrong, memory.clone()).is_err(), "{wrong:?}");
    }
    map.insert(0, &slot(&memory, 0, 0, 0x2000), memory.clone()).unwrap();
    assert_eq!(map.slots().len(), 1);
}
