use std::sync::Arc;

use guise_engine::memory::vm_memory::{Bytes, GuestAddress, MemoryRegionAddress};
use guise_engine::{GuestRegion, MemorySlot};

use super::*;
use crate::vm::map::Region;

const SIZE: usize = 8 * PIECE;

/// Memory of which some is there, and its map.
fn memory() -> (Arc<GuestRegion>, MemoryMap) {
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
    (region, map)
}

#[test]
fn pieces_with_holes_stay_as_they_are() {
    let (region, map) = memory();
    for page in (0..SIZE / PAGE).filter(|page| page % 100 != 7) {
        region.write_obj(page as u64, MemoryRegionAddress((page * PAGE) as u64)).expect("memory");
    }
    let mut progress = Progress::default();
    for _ in 0..4 {
        assert!(!progress.look(&map));
    }
    assert!(progress.settled.is_empty());
}

#[test]
fn every_complete_piece_is_taken_once_and_keeps_its_contents() {
    let (region, map) = memory();
    for page in 0..SIZE / PAGE {
        region.write_obj(page as u64, MemoryRegionAddress((page * PAGE) as u64)).expect("memory");
    }
    let mut progress = Progress::default();
    // One each time, whether the host can do it or not.
    let slot = map.slots()[0].host as usize;
    let pieces = (slot + SIZE - slot.next_multiple_of(PIECE)) / PIECE;
    for made in 0..pieces {
        assert_eq!(progress.settled.len(), made);
        progress.look(&map);
    }
    assert_eq!(progress.settled.len(), pieces);
    assert!(!progress.look(&map), "nothing is left");
    for page in 0..SIZE / PAGE {
        let value: u64 =
            region.read_obj(MemoryRegionAddress((page * PAGE) as u64)).expect("memory");
        assert_eq!(value, page as u64);
    }
}

#[test]
fn there_is_a_pause_after_each_look() {
    let (_region, map) = memory();
    let large = LargePages::default();
    large.settle(&map);
    let due = large.due.load(Ordering::Relaxed);
    assert_ne!(due, 0);
    large.due.store(u64::MAX, Ordering::Relaxed);
    large.settle(&map);
    assert_eq!(large.due.load(Ordering::Relaxed), u64::MAX);
}
