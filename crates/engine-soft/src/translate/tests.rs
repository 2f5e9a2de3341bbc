//! Functions of this very program, run as guests: linear addresses are the process's
//! own, so that the same code can be called natively and its results compared. They
//! allocate no memory: a guest that stands still inside the allocator would keep the
//! translator from using it.

pub(super) mod flat;
mod groups;
pub(super) mod snippets;
mod vectors;

use flat::Flat;

use super::frame::{JUMPS, Jump, jump_index};

// User code's jumps do not look at the epoch: a jump to address 0 once found the empty place.
#[test]
fn no_address_finds_an_empty_place_in_a_jump_cache() {
    for place in 0..JUMPS {
        assert_ne!(jump_index(Jump::empty(place).rip), place);
    }
}

/// Natively and translated, with the same arguments.
fn compare(function: extern "C" fn(u64, u64) -> u64, first: u64, second: u64) {
    let native = function(first, second);
    for exact in [false, true] {
        let mut flat = Flat::new(exact);
        let translated = flat.call(function as usize as u64, first, second);
        assert_eq!(translated, native, "exact: {exact}");
    }
}

extern "C" fn sorts(count: u64, seed: u64) -> u64 {
    let mut state = seed | 1;
    let mut room = [0u64; 4096];
    let values = &mut room[..count as usize];
    for value in values.iter_mut() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *value = state;
    }
    values.sort_unstable();
    values.iter().fold(0, |sum, value| sum.rotate_left(5) ^ value)
}

extern "C" fn recurses(depth: u64, salt: u64) -> u64 {
    if depth < 2 { salt } else { recurses(depth - 1, salt) + recurses(depth - 2, salt ^ depth) }
}

extern "C" fn floats(count: u64, seed: u64) -> u64 {
    let mut bodies: [[f64; 4]; 8] = std::array::from_fn(|i| {
        [i as f64 + seed as f64, i as f64 * 0.5, 1.0 / (i + 1) as f64, 0.1]
    });
    for _ in 0..count {
        for i in 0..bodies.len() {
            let mut force = [0.0; 3];
            for j in 0..bodies.len() {
                if i != j {
                    let mut distance = 0.01;
                    for (mine, other) in bodies[i].iter().zip(&bodies[j]).take(3) {
                        distance += (mine - other).powi(2);
                    }
                    let scale = bodies[j][3] / (distance * distance.sqrt());
                    for (k, force) in force.iter_mut().enumerate() {
                        *force += (bodies[j][k] - bodies[i][k]) * scale;
                    }
                }
            }
            for (place, force) in bodies[i].iter_mut().zip(force) {
                *place += force * 0.01;
            }
        }
    }
    bodies.iter().flatten().fold(0, |sum, value| sum.rotate_left(7) ^ value.to_bits())
}

/// A hash of what is written to it.
struct Hashed(u64);

impl std::fmt::Write for Hashed {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(1_099_511_628_211);
        }
        Ok(())
    }
}

extern "C" fn formats(count: u64, seed: u64) -> u64 {
    use std::fmt::Write;
    let mut text = Hashed(14_695_981_039);
    for i in 0..count {
        let _ = write!(text, "{:>8x} {} {:.3};", i.wrapping_mul(seed), i * i, i as f64 / 7.0);
    }
    text.0
}

trait Shape {
    fn area(&self, by: u64) -> u64;
}
struct Square(u64);
struct Circle(u64);
impl Shape for Square {
    fn area(&self, by: u64) -> u64 {
        self.0.wrapping_mul(self.0).wrapping_add(by)
    }
}
impl Shape for Circle {
    fn area(&self, by: u64) -> u64 {
        self.0.wrapping_mul(3) ^ by
    }
}

extern "C" fn dispatches(count: u64, seed: u64) -> u64 {
    let squares: [Square; 16] = std::array::from_fn(|i| Square(i as u64));
    let circles: [Circle; 16] = std::array::from_fn(|i| Circle(i as u64));
    let shapes: [&dyn Shape; 16] = std::array::from_fn(|i| -> &dyn Shape {
        if (seed >> i) & 1 == 0 { &squares[i] } else { &circles[i] }
    });
    (0..count).fold(seed, |sum, i| shapes[(sum ^ i) as usize % 16].area(sum.rotate_left(3)))
}

extern "C" fn copies(count: u64, seed: u64) -> u64 {
    let (mut source, mut target) = ([0u8; 9000], [0u8; 9064]);
    let count = count as usize;
    for (i, byte) in source[..count].iter_mut().enumerate() {
        *byte = (i as u64 ^ seed) as u8;
    }
    for start in 0..32 {
        let length = count - start;
        target[start * 2..][..length].copy_from_slice(&source[start..][..length]);
        target.copy_within(3..length, 17);
    }
    target.iter().fold(seed, |sum, &byte| sum.rotate_left(3) ^ u64::from(byte))
}

#[test]
fn compiled_code_computes_the_same() {
    compare(sorts, 3000, 42);
    compare(recurses, 20, 7);
    compare(floats, 50, 3);
    compare(formats, 200, 0x1234_5678_9abc_def1);
    compare(dispatches, 10_000, 0x5a5a);
    compare(copies, 9000, 5);
}
