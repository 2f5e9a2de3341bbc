//! What is brought into the host's vectors comes out of them again, whichever of their parts
//! are in use.

use std::arch::asm;

use super::flat::Flat;

/// The guest's vectors get into the host's with the first instruction that has one.
extern "C" fn uses_a_vector(value: u64, _: u64) -> u64 {
    let result;
    // SAFETY: moves between registers.
    unsafe {
        asm!("movq xmm0, {}", "movq {}, xmm0", in(reg) value, out(reg) result, out("xmm0") _)
    };
    result
}

#[test]
fn all_parts_of_vectors_survive() {
    let (vectors, words) =
        if std::arch::is_x86_feature_detected!("avx512bw") { (32, 8) } else { (16, 4) };
    let mut flat = Flat::new(false);
    for (number, word) in (0..vectors).flat_map(|number| (0..words).map(move |word| (number, word)))
    {
        // The function's own.
        if number == 0 && word < 2 {
            continue;
        }
        let all = &mut flat.machine.state.vector;
        for (place, vector) in all.iter_mut().enumerate() {
            vector.0.fill(0);
            vector.0[8] = place as u8;
        }
        all[number].0[word * 8 + number % 8] ^= 1 << word;
        let mut expected = *all;
        expected[0].0[..16].fill(0);
        expected[0].0[0] = 7;
        assert_eq!(flat.call(uses_a_vector as *const () as usize as u64, 7, 0), 7);
        assert!(flat.machine.state.vector == expected, "word {word} of vector {number}");
    }
}
