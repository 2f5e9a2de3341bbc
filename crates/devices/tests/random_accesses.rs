//! Nothing that a guest does to devices may panic or hang, whatever the order.

mod board;
mod unit;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use board::Board;
use guise_testkit::corpus;
use unit::Unit;

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

/// A few seconds of accesses; the seed is printed when it fails.
#[test]
fn random_accesses_do_no_harm() {
    let started = Instant::now();
    let mut operations = 0_u64;
    for seed in 1..=200_u64 {
        println!("seed {seed}");
        let board = Board::new();
        let mut random = Random(seed);
        for _ in 0..5_000 {
            board.step(random.next().to_le_bytes());
            operations += 1;
        }
        assert!(board.requests.load(Ordering::Relaxed) > 0);
        // At least ten seeds run on any machine.
        if seed >= 10 && started.elapsed() > Duration::from_secs(4) {
            break;
        }
    }
    println!("{operations} operations");
}

/// The same for an IOMMU with memory that is full of such numbers.
#[test]
fn random_tables_do_no_harm() {
    let started = Instant::now();
    for seed in 1..=200_u64 {
        println!("seed {seed}");
        let unit = Unit::new();
        let mut random = Random(seed);
        for _ in 0..5_000 {
            let mut operation = [0; 16];
            operation[..8].copy_from_slice(&random.next().to_le_bytes());
            // Small numbers make more sense than large ones.
            let shift = random.next() % 64;
            operation[8..].copy_from_slice(&(random.next() >> shift).to_le_bytes());
            unit.step(operation);
        }
        if seed >= 10 && started.elapsed() > Duration::from_secs(2) {
            break;
        }
    }
}

/// What the fuzzer found, and what it started from.
#[test]
fn the_corpora_do_no_harm() {
    let here = env!("CARGO_MANIFEST_DIR");
    corpus::run_all(here, "accesses", |program| Board::new().run(program));
    corpus::run_all(here, "iommu", |program| Unit::new().run(program));
}

/// Accesses from several threads while time passes.
#[test]
fn devices_are_used_from_several_threads() {
    let board = Board::new();
    std::thread::scope(|scope| {
        for seed in 1..=4_u64 {
            let board = &board;
            scope.spawn(move || {
                let mut random = Random(seed << 32 | 1);
                for _ in 0..20_000 {
                    let mut operation = random.next().to_le_bytes();
                    // Machines are saved while nobody runs.
                    if operation[0] % 32 == 31 {
                        operation[0] = 24;
                    }
                    board.step(operation);
                }
            });
        }
    });
    assert!(board.messages.load(Ordering::Relaxed) > 0);
}
