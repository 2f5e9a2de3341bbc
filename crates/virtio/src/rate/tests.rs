use super::*;

/// How many operations of a size happen in so many seconds, asked for without end.
fn happen(limiter: &Limiter, bytes: u64, seconds: u64) -> u64 {
    let start = Instant::now() + Duration::from_secs(1000);
    let (mut now, mut count) = (start, 0);
    while now < start + Duration::from_secs(seconds) {
        match limiter.admit_at(bytes, || now) {
            Wait::No => count += 1,
            Wait::For(time) => now += time.max(Duration::from_micros(1)),
        }
    }
    count
}

#[test]
fn operations_are_limited_after_a_burst() {
    let rate = Rate { operations: Some(100), burst: Duration::from_secs(2), ..Rate::default() };
    let count = happen(&Limiter::new(rate), 1 << 20, 10);
    assert!((1190..=1210).contains(&count), "{count}");
}

#[test]
fn bytes_are_limited_even_by_requests_larger_than_the_bucket() {
    let rate = Rate { bytes: Some(1 << 20), ..Rate::default() };
    let count = happen(&Limiter::new(rate), 4 << 20, 40);
    assert!((9..=12).contains(&count), "{count}");
}

#[test]
fn the_tighter_limit_counts() {
    let rate = Rate { operations: Some(10), bytes: Some(1 << 30), burst: Duration::ZERO };
    let count = happen(&Limiter::new(rate), 512, 10);
    assert!((95..=110).contains(&count), "{count}");
}

#[test]
fn no_limit_is_no_wait() {
    let limiter = Limiter::new(Rate::default());
    assert!((0..10_000).all(|_| limiter.admit(u64::MAX) == Wait::No));
}
