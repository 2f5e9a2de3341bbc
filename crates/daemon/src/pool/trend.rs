//! When a file system will be full, if it goes on as of late.

use std::collections::VecDeque;
use std::time::Duration;

/// Samples are so far apart at least, and remembered for so long.
pub const EVERY: Duration = Duration::from_secs(55);
const REMEMBERED: Duration = Duration::from_secs(3600);
/// What is going on now, beside the trend of all that is remembered.
const LATELY: Duration = Duration::from_secs(600);
/// Less is no trend.
const FEWEST: usize = 5;
/// What is farther away is not worth telling.
const FARTHEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// What is free, over time.
#[derive(Debug, Default)]
pub struct Trend {
    /// Seconds of a clock that only goes forward, and bytes.
    samples: VecDeque<(f64, f64)>,
}

impl Trend {
    /// Takes a sample, unless there is one of a moment ago.
    pub fn take(&mut self, now: Duration, free: u64) {
        let now = now.as_secs_f64();
        if self.samples.back().is_some_and(|(last, _)| now - last < EVERY.as_secs_f64()) {
            return;
        }
        self.samples.push_back((now, free as f64));
        while self.samples.front().is_some_and(|(first, _)| now - first > REMEMBERED.as_secs_f64())
        {
            self.samples.pop_front();
        }
    }

    /// In what time nothing is free any more: by the trend of the last hour, or by that of the
    /// last minutes if that is sooner.
    pub fn full_in(&self, free: u64) -> Option<Duration> {
        let last = self.samples.back()?.0;
        let of = |age: Duration| {
            let since = last - age.as_secs_f64();
            let samples: Vec<(f64, f64)> =
                self.samples.iter().copied().filter(|(time, _)| *time >= since).collect();
            shrinks_by(&samples)
        };
        let fastest = of(REMEMBERED)?.max(of(LATELY).unwrap_or(0.0));
        let seconds = free as f64 / fastest;
        // Not so where it does not shrink: that is infinite, or less than nothing.
        (0.0..FARTHEST.as_secs_f64()).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
    }
}

/// By how many bytes what is free shrinks each second.
///
/// Each two samples have a slope between them. The one taken is that which three fifths of these
/// reach: a single large step, an image that was fetched, is in half of them at most, so it is no
/// trend, while what grows by fits and starts all the time is one.
fn shrinks_by(samples: &[(f64, f64)]) -> Option<f64> {
    if samples.len() < FEWEST {
        return None;
    }
    let pairs = samples.iter().enumerate().flat_map(|(at, &(time, free))| {
        samples[at + 1..].iter().map(move |&(later, then)| (free - then) / (later - time))
    });
    let mut slopes: Vec<f64> = pairs.filter(|slope| slope.is_finite()).collect();
    slopes.sort_by(f64::total_cmp);
    slopes.get(slopes.len() * 2 / 5).copied()
}

/// `3 h 20 min`, and the like.
pub fn in_words(time: Duration) -> String {
    let minutes = time.as_secs() / 60;
    match (minutes / (24 * 60), minutes / 60 % 24, minutes % 60) {
        (0, 0, 0) => "less than a minute".to_owned(),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests;
