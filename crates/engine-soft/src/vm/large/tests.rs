use std::sync::Arc;

use guise_engine::memory::vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};
use guise_engine::{GuestRegion, MemorySlot};

use super::*;
use crate::vm::map::Region;

const SIZE: usize = 8 * PIECE;

/// Memory, its map, and where its first whole piece begins.
fn memory() -> (Arc<GuestRegion>, MemoryMap, usize) {
    let region = GuestRegion::from_range(GuestAddress(0), SIZE, None).expect("it can be mapped");
    let region = Arc::new(region);
    let mut map = MemoryMap::default();
    let slot = MemorySlot {
        guest_address: 0,
        region: region.clone(),
        offset: 0,
        size: SIZE as u64,
        read_only: false,
    };
    map.insert(0, &slot, Arc::new(Region::new(region.clone()))).expect("it is memory");
    let first = (map.slots()[0].host as usize).next_multiple_of(PIECE);
    (region, map, first)
}

/// Writes the number of each page of the memory into it, but for those that are left out.
fn touch(region: &GuestRegion, leaves_out: impl Fn(usize) -> bool) {
    for page in (0..SIZE / PAGE).filter(|&page| !leaves_out(page)) {
        region.write_obj(page as u64, MemoryRegionAddress((page * PAGE) as u64)).expect("memory");
    }
}

/// A bank that knows so many pages from an address of the host on, each at its own address.
fn bank(pieces: &[(usize, usize)]) -> Box<Bank> {
    let mut bank = Bank::new();
    for &(piece, pages) in pieces {
        for page in 0..pages {
            let address = piece + page * PAGE;
            bank.fill_read(address as u64, address as *mut u8);
        }
    }
    bank
}

#[test]
fn pieces_with_holes_stay_as_they_are() {
    let (region, map, first) = memory();
    touch(&region, |page| page % 100 == 7);
    let mut settled = HashSet::new();
    assert!(!look(&map, &bank(&[(first, 300), (first + PIECE, 300)]), &mut settled));
    assert!(settled.is_empty());
}

#[test]
fn pieces_that_are_used_a_lot_come_first_each_once_and_keep_their_contents() {
    let (region, map, first) = memory();
    touch(&region, |_| false);
    // Places in the bank are by address: these do not overlap.
    let bank = bank(&[
        (first, ENOUGH),
        (first + PIECE + 300 * PAGE, 100),
        (first + 2 * PIECE + 200 * PAGE, 9),
    ]);
    let mut settled = HashSet::new();
    assert!(look(&map, &bank, &mut settled));
    assert_eq!(settled, HashSet::from([first + PIECE]));
    assert!(look(&map, &bank, &mut settled));
    assert_eq!(settled, HashSet::from([first, first + PIECE]));
    assert!(!look(&map, &bank, &mut settled), "the third is hardly used");
    for page in 0..SIZE / PAGE {
        let value: u64 =
            region.read_obj(MemoryRegionAddress((page * PAGE) as u64)).expect("memory");
        assert_eq!(value, page as u64);
    }
}

#[test]
fn what_is_not_the_guests_is_left_alone() {
    let (region, map, first) = memory();
    touch(&region, |_| false);
    let behind = first + SIZE;
    assert!(!look(&map, &bank(&[(behind, 200), (behind + PIECE, 200)]), &mut HashSet::new()));
}

#[test]
fn there_is_a_pause_after_each_look() {
    let (_region, map, _) = memory();
    let large = LargePages::default();
    large.settle(&map, &Bank::new());
    let due = large.due.load(Ordering::Relaxed);
    assert_ne!(due, 0);
    large.due.store(u64::MAX, Ordering::Relaxed);
    large.settle(&map, &Bank::new());
    assert_eq!(large.due.load(Ordering::Relaxed), u64::MAX);
}
