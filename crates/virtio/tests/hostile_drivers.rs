//! Nothing that a driver does to a device may panic it, hang it, or keep it from
//! working after a reset.

mod hostile;

use std::fs;
use std::time::{Duration, Instant};

use hostile::Hostile;

/// xorshift64*: good enough, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// A few seconds, or as many as `GUISE_FUZZ_SECONDS` says; the seed is printed when it
/// fails.
#[test]
fn hostile_drivers_do_no_harm() {
    let seconds = std::env::var("GUISE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let budget = Duration::from_secs(seconds.unwrap_or(5));
    let started = Instant::now();
    let mut messages = 0;
    for seed in 1_u64.. {
        println!("seed {seed}");
        let hostile = Hostile::new(seed as u8);
        let mut random = Random(seed);
        hostile.step([0, 0, seed as u8 / 6, 0, 0, 0, 0, 0]);
        for _ in 0..500 {
            hostile.step(random.next().to_le_bytes());
        }
        hostile.finish();
        messages += hostile.messages.load(std::sync::atomic::Ordering::Relaxed);
        // At least a few seeds for each device run on any machine.
        if seed >= 36 && started.elapsed() > budget {
            break;
        }
    }
    println!("{messages} interrupts");
    assert!(messages > 0, "devices did nothing");
}

/// What the fuzzer found, and what it started from.
#[test]
fn the_corpus_does_no_harm() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/drivers");
    let mut programs = 0;
    for entry in fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        Hostile::run(&fs::read(path).unwrap());
        programs += 1;
    }
    assert!(programs > 0);
}
