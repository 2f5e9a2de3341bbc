use super::*;
use crate::queue::driver::BUFFERS;
use crate::transport::guest::Guest;

#[test]
fn the_guest_gets_random_numbers() {
    for (packed, event_index) in [(false, false), (true, true)] {
        let mut guest = Guest::new(Rng::new());
        guest.start(0, packed, event_index);
        let queue = &mut guest.queues[0];
        queue.add(&[(BUFFERS, 32, true), (BUFFERS + 0x1000, 32, true)]);
        guest.notify(0);
        assert_eq!(guest.queues[0].wait_used().1, 64);
        let (first, second) =
            (guest.queues[0].get::<32>(BUFFERS), guest.queues[0].get::<32>(BUFFERS + 0x1000));
        assert_ne!(first, [0; 32]);
        assert_ne!(first, second);
    }
}

#[test]
fn large_requests_are_answered_in_part() {
    let mut guest = Guest::new(Rng::new());
    guest.start(0, false, false);
    guest.queues[0].add(&[(BUFFERS, 1 << 20, true)]);
    guest.notify(0);
    assert_eq!(guest.queues[0].wait_used().1, 64 << 10);
}

#[test]
fn a_broken_queue_asks_for_a_reset_and_works_after_it() {
    let mut guest = Guest::new(Rng::new());
    guest.start(0, false, false);
    guest.queues[0].offer(99);
    guest.notify(0);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while guest.status() & 64 == 0 {
        assert!(std::time::Instant::now() < deadline, "the device did not notice");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    guest.start(0, true, false);
    guest.queues[0].add(&[(BUFFERS, 16, true)]);
    guest.notify(0);
    assert_eq!(guest.queues[0].wait_used().1, 16);
}
