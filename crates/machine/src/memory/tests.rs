use guise_engine::memory::vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _};

use super::*;

#[test]
fn sizes_that_no_machine_can_have_are_refused_with_a_reason() {
    let host = 8 * GIB;
    for (size, reason) in [
        (0, "2 MiB at least"),
        (3 << 40, "255 GiB at most"),
        (64 * MIB + 1, "whole mebibytes"),
        (16 * GIB, "this host has 8 GiB in all"),
    ] {
        let error = check_size(size, host).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    check_size(64 * MIB, host).unwrap();
}

#[test]
fn slots_leave_display_memory_to_devices() {
    let ram = Ram::new(16 * MIB, 0).unwrap();
    let bounds: Vec<_> = ram.slots().iter().map(|slot| (slot.guest_address, slot.size)).collect();
    assert_eq!(bounds, [(0, 0xa_0000), (0xc_0000, 16 * MIB - 0xc_0000)]);
}

#[test]
fn what_can_be_added_is_a_slot_of_its_own() {
    let ram = Ram::new(16 * MIB, 256 * MIB).unwrap();
    let last = ram.slots().last().unwrap();
    assert_eq!((last.guest_address, last.size), (4 * GIB, 256 * MIB));
    let layout = RamLayout::new(16 * MIB);
    for (addable, reason) in [
        (100 * MIB, "units of 128 MiB"),
        (u64::MAX / (128 * MIB) * (128 * MIB), "255 GiB at most"),
        (16 * GIB, "more than this host's 8 GiB"),
    ] {
        let error = check_room(16 * MIB, layout.with_room(addable), 8 * GIB).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn ram_is_memory_up_to_its_last_byte() {
    let ram = Ram::new(16 * MIB, 0).unwrap();
    ram.memory.write_obj(0xa5u8, GuestAddress(16 * MIB - 1)).unwrap();
    assert_eq!(ram.memory.read_obj::<u8>(GuestAddress(16 * MIB - 1)).unwrap(), 0xa5);
    assert!(ram.memory.find_region(GuestAddress(16 * MIB)).is_none());
}

#[test]
fn ram_begins_where_a_large_page_of_the_host_can() {
    // Mappings of other sizes and other threads' are in the way.
    let others: Vec<_> =
        (1..40).map(|number| Ram::new(number * 2 * MIB + MIB, 0).unwrap()).collect();
    for ram in others.iter().skip(1).chain([&Ram::new(512 * MIB, 256 * MIB).unwrap()]) {
        for slot in ram.slots().iter().filter(|slot| slot.offset == 0) {
            assert_eq!(slot.region.as_ptr() as usize % LARGE_PAGE, 0);
        }
    }
}
