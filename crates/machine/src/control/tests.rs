use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A thread that does what [`Control::next`] says and counts its runs.
fn worker(control: &Arc<Control>, runs: &Arc<AtomicUsize>) -> std::thread::JoinHandle<()> {
    let (control, runs) = (control.clone(), runs.clone());
    std::thread::spawn(move || {
        loop {
            match control.next(0, true) {
                Order::Run => {
                    runs.fetch_add(1, Ordering::SeqCst);
                    std::thread::yield_now();
                }
                Order::Task(_) => unreachable!("this test gives no tasks"),
                Order::Stop => return,
            }
        }
    })
}

#[test]
fn nobody_runs_while_the_machine_is_paused() {
    let (control, runs) = (Arc::new(Control::new(1)), Arc::new(AtomicUsize::new(0)));
    let thread = worker(&control, &runs);
    assert_eq!(runs.load(Ordering::SeqCst), 0);
    control.run();
    while runs.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    assert!(control.pause(Duration::from_secs(30)));
    let paused_at = runs.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(runs.load(Ordering::SeqCst), paused_at);
    control.stop();
    thread.join().unwrap();
}

#[test]
fn a_thread_that_never_parks_is_not_waited_for_without_end() {
    let control = Control::new(1);
    assert!(!control.pause(Duration::from_millis(5)));
}

#[test]
fn the_first_ending_counts() {
    let control = Control::new(0);
    control.request(PowerRequest::Panicked);
    control.request(PowerRequest::Reset);
    assert!(matches!(control.wait(None), Some(Ending::Panicked)));
}

#[test]
fn waiting_has_a_limit() {
    let control = Control::new(0);
    assert!(control.wait(Some(Duration::from_millis(5))).is_none());
}

#[test]
fn a_crash_kernel_that_takes_over_ends_nothing() {
    let control = Control::new(0);
    control.request(PowerRequest::CrashLoaded);
    assert!(control.wait(Some(Duration::ZERO)).is_none());
}
