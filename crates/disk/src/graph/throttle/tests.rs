use super::*;

fn pace(requests: u64, bytes: u64) -> Pace {
    Pace { limits: Limits { requests, bytes }, free: Duration::ZERO }
}

/// When the last of some requests may start, all entered at the same time.
fn last_start(pace: &mut Pace, now: Duration, count: u32, bytes: u64) -> Duration {
    (0..count).map(|_| pace.enter(now, bytes)).last().expect("some requests")
}

#[test]
fn requests_are_spread_over_time() {
    let mut pace = pace(100, 0);
    let now = Duration::from_secs(1000);
    // A tenth of a second is there from before: ten requests, then one each 10 ms.
    assert_eq!(last_start(&mut pace, now, 11, 1 << 20), Duration::ZERO);
    assert_eq!(last_start(&mut pace, now, 100, 1 << 20), Duration::from_secs(1));
}

#[test]
fn the_stricter_limit_counts() {
    let mut pace = pace(1_000_000, 1000);
    let now = Duration::from_secs(1000);
    assert_eq!(pace.enter(now, 2100), Duration::ZERO);
    assert_eq!(pace.enter(now, 1), Duration::from_secs(2));
}

#[test]
fn unused_time_is_not_saved_up() {
    let mut pace = pace(100, 0);
    assert_eq!(last_start(&mut pace, Duration::from_secs(1), 11, 0), Duration::ZERO);
    assert_eq!(last_start(&mut pace, Duration::from_secs(3600), 11, 0), Duration::ZERO);
    assert!(pace.enter(Duration::from_secs(3600), 0) > Duration::ZERO);
}
