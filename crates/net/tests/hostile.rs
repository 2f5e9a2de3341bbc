//! Programs that the fuzzer found worth keeping, and random changes to them.

#[path = "hostile/frames.rs"]
mod frames;
#[path = "hostile/greeting.rs"]
mod greeting;

use std::path::Path;

/// The kept programs of a target.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    let programs: Vec<_> =
        paths.iter().map(|path| std::fs::read(path).expect("a program")).collect();
    assert!(!programs.is_empty(), "{} is empty", folder.display());
    programs
}

fn with_changes(target: &str, rounds: usize, run: fn(&[u8])) {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    };
    for program in corpus(target) {
        run(&program);
        for _ in 0..rounds {
            let mut changed = program.clone();
            for _ in 0..=next(4) {
                let at = next(changed.len());
                match next(3) {
                    0 => changed[at] = next(256) as u8,
                    1 => changed[at] ^= 1 << next(8),
                    _ => changed.truncate(at.max(1)),
                }
            }
            run(&changed);
        }
    }
}

#[test]
fn no_frame_is_too_strange() {
    with_changes("frames", 300, frames::run);
}

#[test]
fn no_greeting_is_too_strange() {
    with_changes("greeting", 2000, greeting::run);
}
