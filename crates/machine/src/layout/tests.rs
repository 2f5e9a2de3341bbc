use super::*;

#[test]
fn memory_below_three_gibibytes_is_one_piece() {
    let layout = RamLayout::new(512 * MIB);
    assert_eq!(layout, RamLayout { low: 512 * MIB, high: 0, addable: 0 });
    let ram: u64 = usable(layout);
    assert_eq!(ram, 512 * MIB - (EXTENDED_RAM_START - BASE_RAM_END));
}

#[test]
fn memory_above_continues_at_four_gibibytes() {
    let layout = RamLayout::new(5 * GIB);
    assert_eq!(layout, RamLayout { low: 3 * GIB, high: 2 * GIB, addable: 0 });
    let last = layout.map().pop().unwrap();
    assert_eq!((last.start, last.size, last.usage), (4 * GIB, 2 * GIB, Usage::Ram));
}

#[test]
fn the_map_ascends_without_overlaps_up_to_the_largest_machine() {
    for memory in [MIN_MEMORY, 3 * GIB, 3 * GIB + MIB, MAX_MEMORY] {
        let map = RamLayout::new(memory).map();
        for pair in map.windows(2) {
            assert!(pair[0].start + pair[0].size <= pair[1].start, "{pair:x?}");
        }
        let last = map[map.len() - 1];
        assert!(last.start + last.size <= PCI_WINDOW_64.start);
    }
}

#[test]
fn what_can_be_added_is_apart_and_not_in_the_map() {
    let layout = RamLayout::new(3 * GIB + MIB).with_room(ADDABLE_UNIT);
    assert_eq!(layout.addable_range(), 5 * GIB..5 * GIB + ADDABLE_UNIT);
    assert_eq!(layout.map(), RamLayout::new(3 * GIB + MIB).map());
    assert_eq!(RamLayout::new(64 * MIB).with_room(GIB).addable_range(), 4 * GIB..5 * GIB);
}

fn usable(layout: RamLayout) -> u64 {
    layout.map().iter().filter(|entry| entry.usage == Usage::Ram).map(|entry| entry.size).sum()
}
