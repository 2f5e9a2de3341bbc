//! Nothing that a driver does to a device may panic it, hang it, or keep it from
//! working after a reset.

mod hostile;

use std::time::{Duration, Instant};

use guise_testkit::corpus;
use hostile::{DEVICES, Hostile};

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

/// A minute, or as many seconds as `GUISE_FUZZ_SECONDS` says; the seed is printed when it
/// fails.
#[test]
fn hostile_drivers_do_no_harm() {
    let seconds = std::env::var("GUISE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let budget = Duration::from_secs(seconds.unwrap_or(60));
    let started = Instant::now();
    let mut messages = 0;
    for seed in 1_u64.. {
        println!("seed {seed}");
        let hostile = Hostile::new(seed as u8);
        let mut random = Random(seed);
        hostile.step([0, 0, seed as u8 / DEVICES, 0, 0, 0, 0, 0]);
        for _ in 0..500 {
            hostile.step(random.next().to_le_bytes());
        }
        hostile.finish();
        messages += hostile.messages.load(std::sync::atomic::Ordering::Relaxed);
        // At least a few seeds for each device run on any machine.
        if seed >= 6 * u64::from(DEVICES) && started.elapsed() > budget {
            break;
        }
    }
    println!("{messages} interrupts");
    assert!(messages > 0, "devices did nothing");
}

/// Requests of random bytes, most of which begin as requests do.
#[test]
fn hostile_requests_do_no_harm() {
    let mut random = Random(0x5eed);
    for round in 0..20 * DEVICES {
        let mut program = vec![round % DEVICES];
        for _ in 0..100 {
            let word = random.next().to_le_bytes();
            let (length, kind) = (40 + word[0] % 60, word[1] % 53);
            program.extend([length, word[2]]);
            let mut request: Vec<u8> = (0..length).map(|_| random.next() as u8 & 3).collect();
            // The kind of a request to a disk, or to a share.
            request[..8].copy_from_slice(&[kind % 16, 0, 0, 0, kind, 0, 0, 0]);
            request[16..24].copy_from_slice(&u64::from(word[3] & 3).to_le_bytes());
            program.extend(request);
        }
        Hostile::requests(&program);
    }
}

/// What the fuzzers found, and what they started from.
#[test]
fn the_corpora_do_no_harm() {
    let here = env!("CARGO_MANIFEST_DIR");
    corpus::run_all(here, "drivers", Hostile::run);
    corpus::run_all(here, "requests", Hostile::requests);
}
