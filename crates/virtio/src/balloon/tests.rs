use super::*;
use crate::queue::driver::BUFFERS;
use crate::transport::guest::Guest;

const DATA: u64 = BUFFERS + 0x1_0000;

fn rig(features: u64, packed: bool) -> (Arc<Balloon>, Guest) {
    let balloon = Balloon::new();
    let mut guest = Guest::new(balloon.clone());
    guest.start(features, packed, packed);
    (balloon, guest)
}

#[test]
fn pages_become_runs() {
    assert_eq!(runs(vec![5, 3, 4, 9, 4]), [(3 * PAGE, 3 * PAGE), (9 * PAGE, PAGE)]);
    assert!(runs(Vec::new()).is_empty());
}

#[test]
fn pages_that_are_given_up_are_empty_afterwards() {
    let (_, mut guest) = rig(0, false);
    let queue = &mut guest.queues[INFLATE];
    queue.put(DATA, &[7; 3 * PAGE as usize]);
    let numbers = [DATA / PAGE, DATA / PAGE + 1, 0xffff_ffff].map(|page| page as u32);
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    queue.put(BUFFERS, &bytes);
    queue.add(&[(BUFFERS, bytes.len() as u32, false)]);
    guest.notify(INFLATE as u16);
    guest.queues[INFLATE].wait_used();
    let queue = &guest.queues[INFLATE];
    assert_eq!((queue.get::<1>(DATA), queue.get::<1>(DATA + PAGE)), ([0], [0]));
    assert_eq!(queue.get::<1>(DATA + 2 * PAGE), [7]);
    guest.queues[DEFLATE].add(&[(BUFFERS, 8, false)]);
    guest.notify(DEFLATE as u16);
    guest.queues[DEFLATE].wait_used();
}

#[test]
fn free_pages_are_reported_and_only_whole_ones_go() {
    for (features, queue) in [(REPORTING, 2), (REPORTING | STATISTICS, 3)] {
        let (_, mut guest) = rig(features, true);
        guest.queues[queue].put(DATA, &[7; 3 * PAGE as usize]);
        guest.queues[queue].add(&[(DATA + 100, 2 * PAGE as u32, true)]);
        guest.notify(queue as u16);
        guest.queues[queue].wait_used();
        let get = |at: u64| guest.queues[queue].get::<1>(DATA + at)[0];
        assert_eq!((get(PAGE - 1), get(PAGE), get(2 * PAGE - 1), get(2 * PAGE)), (7, 0, 0, 7));
    }
}

#[test]
fn the_target_and_what_was_given_up_are_told() {
    let (balloon, guest) = rig(0, false);
    balloon.set_target(1 << 20);
    assert_eq!(guest.config::<4>(0), 256_u32.to_le_bytes());
    guest.write(0x2004, &100_u32.to_le_bytes());
    assert_eq!(balloon.size(), (1 << 20, 100 * PAGE));
    let state = guest.function.state();
    balloon.set_target(0);
    guest.write(0x2004, &0_u32.to_le_bytes());
    guest.function.set_state(&state).unwrap();
    assert_eq!(balloon.size(), (1 << 20, 100 * PAGE));
}

#[test]
fn statistics_are_asked_for() {
    for packed in [false, true] {
        let (balloon, mut guest) = rig(STATISTICS, packed);
        let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
        guest.queues[2].put(BUFFERS, &[entry(4, 1000), entry(99, 1), entry(5, 2000)].concat());
        guest.queues[2].add(&[(BUFFERS, 30, false)]);
        guest.notify(2);
        while balloon.statistics().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(balloon.statistics(), BTreeMap::from([("free", 1000), ("total", 2000)]));
        guest.queues[2].wait_used();
        // A buffer that the device holds is put back when it stops.
        guest.queues[2].add(&[(BUFFERS, 30, false)]);
        guest.notify(2);
        guest.function.state();
        balloon.statistics();
        guest.queues[2].wait_used();
    }
}
