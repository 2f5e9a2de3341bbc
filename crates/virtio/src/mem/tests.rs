use guise_engine::memory::vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::queue::driver::BUFFERS;
use crate::transport::guest::Guest;

/// Six blocks, somewhere above the rest.
const REGION: Range<u64> = 0x4000_0000..0x4000_0000 + 6 * BLOCK;

fn rig(packed: bool) -> (Arc<Mem>, Guest) {
    let length = (REGION.end - REGION.start) as usize;
    let ranges = [(GuestAddress(0), 4 << 20), (GuestAddress(REGION.start), length)];
    let memory = GuestMemory::from_ranges(&ranges).unwrap();
    let mem = Mem::new(memory.clone(), REGION);
    let mut guest = Guest::in_memory(mem.clone(), memory);
    guest.start(0, packed, packed);
    (mem, guest)
}

/// A request about blocks from one on: the answer, and what it says of them.
fn ask(guest: &mut Guest, kind: u16, block: u64, count: u16) -> (u16, u16) {
    ask_at(guest, kind, REGION.start + block * BLOCK, count)
}

fn ask_at(guest: &mut Guest, kind: u16, address: u64, count: u16) -> (u16, u16) {
    let mut request = [0; REQUEST];
    request[..2].copy_from_slice(&kind.to_le_bytes());
    request[8..16].copy_from_slice(&address.to_le_bytes());
    request[16..18].copy_from_slice(&count.to_le_bytes());
    guest.queues[0].put(BUFFERS, &request);
    guest.queues[0].add(&[(BUFFERS, REQUEST as u32, false), (BUFFERS + 64, 10, true)]);
    guest.notify(0);
    assert_eq!(guest.queues[0].wait_used().1, 10);
    let answer = guest.queues[0].get::<10>(BUFFERS + 64);
    (u16::from_le_bytes([answer[0], answer[1]]), u16::from_le_bytes([answer[8], answer[9]]))
}

#[test]
fn a_guest_gets_what_it_was_granted_and_no_more() {
    for packed in [false, true] {
        let (mem, mut guest) = rig(packed);
        assert_eq!(ask(&mut guest, PLUG, 0, 1), (REFUSED, 0));
        mem.request(3 * BLOCK + 5);
        assert_eq!(guest.config::<8>(48), (3 * BLOCK).to_le_bytes());
        assert_eq!(ask(&mut guest, PLUG, 1, 4), (REFUSED, 0));
        assert_eq!(ask(&mut guest, PLUG, 1, 3), (DONE, 0));
        assert_eq!(ask(&mut guest, PLUG, 5, 1), (REFUSED, 0));
        assert_eq!(ask(&mut guest, PLUG, 3, 1), (WRONG, 0), "it is there already");
        assert_eq!(guest.config::<8>(40), (3 * BLOCK).to_le_bytes());
        assert_eq!(ask(&mut guest, STATE, 0, 1), (DONE, UNPLUGGED));
        assert_eq!(ask(&mut guest, STATE, 1, 3), (DONE, PLUGGED));
        assert_eq!(ask(&mut guest, STATE, 0, 2), (DONE, MIXED));
        mem.request(u64::MAX);
        assert_eq!(mem.size(), (6 * BLOCK, 3 * BLOCK));
    }
}

#[test]
fn what_is_unplugged_is_forgotten() {
    let (mem, mut guest) = rig(false);
    mem.request(4 * BLOCK);
    ask(&mut guest, PLUG, 0, 4);
    let at = |block: u64| GuestAddress(REGION.start + block * BLOCK);
    for block in 0..4 {
        guest.memory.write_obj(7_u64, at(block)).unwrap();
    }
    assert_eq!(ask(&mut guest, UNPLUG, 1, 2), (DONE, 0));
    let first = |block: u64| guest.memory.read_obj::<u64>(at(block)).unwrap();
    assert_eq!([0, 1, 2, 3].map(first), [7, 0, 0, 7]);
    assert_eq!(ask(&mut guest, UNPLUG, 0, 2), (WRONG, 0), "half of it is gone");
    assert_eq!(mem.size().1, 2 * BLOCK);
    assert_eq!(ask(&mut guest, UNPLUG_ALL, 0, 0), (DONE, 0));
    assert_eq!(mem.size().1, 0);
    assert_eq!(guest.memory.read_obj::<u64>(at(3)).unwrap(), 0);
}

#[test]
fn stretches_outside_of_the_region_are_wrong() {
    let (mem, mut guest) = rig(true);
    mem.request(u64::MAX);
    let start = REGION.start;
    for (address, count) in [
        (0, 1),
        (start - BLOCK, 1),
        (start + 4096, 1),
        (start, 7),
        (start, 0),
        (start + 6 * BLOCK, 1),
        (u64::MAX - BLOCK + 1, u16::MAX),
    ] {
        assert_eq!(ask_at(&mut guest, PLUG, address, count), (WRONG, 0), "{address:#x} {count}");
    }
    assert_eq!(ask(&mut guest, 9, 0, 1), (WRONG, 0));
    assert_eq!(mem.size().1, 0);
}

#[test]
fn the_guest_is_told_and_a_reset_takes_nothing_away() {
    let (mem, mut guest) = rig(false);
    mem.request(BLOCK);
    ask(&mut guest, PLUG, 2, 1);
    let state = guest.function.state();
    guest.start(0, true, false);
    assert_eq!(ask(&mut guest, STATE, 2, 1), (DONE, PLUGGED));
    ask(&mut guest, UNPLUG_ALL, 0, 0);
    guest.function.set_state(&state).unwrap();
    assert_eq!(mem.size(), (BLOCK, BLOCK));
    guest.messages.lock().unwrap().clear();
    guest.write(0x10, &0_u16.to_le_bytes());
    mem.request(0);
    assert_eq!(*guest.messages.lock().unwrap(), [0x40]);
}
