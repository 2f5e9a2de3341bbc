use super::*;

const MIB: f64 = 1048576.0;

/// Samples of each minute.
fn after(free: impl IntoIterator<Item = f64>) -> (Trend, u64) {
    let mut trend = Trend::default();
    let mut last = 0.0;
    for (minute, free) in (0..).zip(free) {
        trend.take(Duration::from_secs(60 * minute), free as u64);
        last = free;
    }
    (trend, last as u64)
}

fn minutes((trend, free): (Trend, u64)) -> Option<u64> {
    trend.full_in(free).map(|time| time.as_secs().div_ceil(60))
}

#[test]
fn steady_growth_is_foreseen() {
    let steady = after((0..30).map(|minute| (230.0 - f64::from(minute)) * MIB));
    assert_eq!(minutes(steady), Some(201));
    // By fits and starts: 9 MiB every third minute.
    let fits = after((0..60).map(|minute| (900.0 - 9.0 * f64::from(minute / 3)) * MIB));
    let left = minutes(fits).unwrap();
    assert!((200..280).contains(&left), "{left}");
}

#[test]
fn what_does_not_grow_is_never_full() {
    assert_eq!(minutes(after([100.0; 60])), None);
    assert_eq!(minutes(after((0..60).map(|minute| f64::from(minute) * MIB))), None);
    // So slowly that it is far away.
    assert_eq!(minutes(after((0..60).map(|minute| 1e12 - f64::from(minute)))), None);
}

#[test]
fn a_single_step_is_no_trend() {
    for at in 1..59 {
        let step = after((0..60).map(|minute| if minute < at { 1000.0 } else { 400.0 } * MIB));
        assert_eq!(minutes(step), None, "in minute {at}");
    }
}

#[test]
fn what_began_just_now_counts() {
    let late =
        after((0..60).map(|minute| (10_000.0 - 100.0 * f64::from((minute - 50).max(0))) * MIB));
    assert_eq!(minutes(late), Some(91));
}

#[test]
fn it_takes_some_samples_and_forgets_old_ones() {
    assert_eq!(minutes(after([5e9, 4e9, 3e9, 2e9])), None);
    assert_eq!(Trend::default().full_in(7), None);
    let mut trend = Trend::default();
    for second in 0..100_000 {
        trend.take(Duration::from_secs(second), 1);
    }
    assert!((60..=70).contains(&trend.samples.len()), "{}", trend.samples.len());
    assert_eq!(trend.full_in(1), None);
}

#[test]
fn times_as_people_say_them() {
    let said = |seconds| in_words(Duration::from_secs(seconds));
    assert_eq!(said(59), "less than a minute");
    assert_eq!(said(125), "2 min");
    assert_eq!(said(12_000), "3 h 20 min");
    assert_eq!(said(90_000), "1 d 1 h");
}
