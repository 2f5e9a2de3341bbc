use std::sync::OnceLock;
use std::sync::mpsc;

use super::*;

#[test]
fn timers_of_a_manual_clock_run_in_order_at_their_times() {
    let clock = Clock::manual();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let timer = |name: &'static str| {
        let seen = seen.clone();
        clock.timer(move |now| seen.lock().unwrap().push((name, now)))
    };
    let (a, b, c) = (timer("a"), timer("b"), timer("c"));
    b.arm(20);
    a.arm(10);
    c.arm(30);
    c.disarm();
    clock.advance(15);
    assert_eq!(*seen.lock().unwrap(), [("a", 10)]);
    assert_eq!(clock.now(), 15);
    clock.advance(100);
    assert_eq!(*seen.lock().unwrap(), [("a", 10), ("b", 20)]);
    assert_eq!(clock.armed(), 0);
}

#[test]
fn a_timer_can_arm_itself_again() {
    let clock = Clock::manual();
    let slot: Arc<OnceLock<Timer>> = Arc::default();
    let count = Arc::new(AtomicU64::new(0));
    let (own, counter) = (Arc::downgrade(&slot), count.clone());
    let timer = clock.timer(move |now| {
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some(slot) = own.upgrade() {
            slot.get().unwrap().arm(now + 10);
        }
    });
    slot.set(timer).ok().unwrap();
    slot.get().unwrap().arm(10);
    clock.advance(100);
    assert_eq!(count.load(Ordering::Relaxed), 10);
    drop(slot);
    clock.advance(100);
    assert_eq!(count.load(Ordering::Relaxed), 10);
    assert_eq!(clock.armed(), 0);
}

#[test]
fn a_timer_that_is_always_due_does_not_hang_the_clock() {
    let clock = Clock::manual();
    let slot: Arc<OnceLock<Timer>> = Arc::default();
    let own = Arc::downgrade(&slot);
    let timer = clock.timer(move |_| {
        if let Some(slot) = own.upgrade() {
            slot.get().unwrap().arm(0);
        }
    });
    slot.set(timer).ok().unwrap();
    slot.get().unwrap().arm(0);
    clock.advance(1000);
    assert_eq!(clock.now(), 1000);
}

#[test]
fn a_running_clock_serves_timers_from_its_thread() {
    let clock = Clock::start().unwrap();
    let (sender, receiver) = mpsc::channel();
    let timer = clock.timer(move |now| sender.send(now).unwrap());
    let far = clock.timer(|_| panic!("must not fire"));
    far.arm(u64::MAX);
    let deadline = clock.now() + 2_000_000;
    timer.arm(deadline);
    let fired = receiver.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(fired >= deadline);
    timer.arm(0);
    receiver.recv_timeout(Duration::from_secs(60)).unwrap();
}

#[test]
fn a_paused_clock_stands_still_and_goes_on_from_there() {
    let clock = Clock::start().unwrap();
    let (sender, receiver) = mpsc::channel();
    let timer = clock.timer(move |now| sender.send(now).unwrap());
    clock.pause();
    let stopped = clock.now();
    timer.arm(stopped);
    assert!(receiver.recv_timeout(Duration::from_millis(20)).is_err());
    assert_eq!(clock.now(), stopped);
    clock.set(stopped + 1_000_000_000_000);
    clock.resume();
    let fired = receiver.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(fired >= stopped + 1_000_000_000_000);
    assert!(fired < stopped + 2_000_000_000_000);
}

#[test]
fn the_last_reference_to_a_clock_may_go_away_in_a_callback() {
    let clock = Clock::start().unwrap();
    let (sender, receiver) = mpsc::channel();
    let held = Mutex::new(Some(clock.clone()));
    let timer = clock.timer(move |_| {
        held.lock().unwrap().take();
        sender.send(()).unwrap();
    });
    timer.arm(0);
    drop(clock);
    receiver.recv_timeout(Duration::from_secs(60)).unwrap();
}
