//! Code that is placed runs; what does not fit is refused.

use super::*;

#[test]
fn placed_code_runs_and_can_be_patched() {
    let mut arena = Arena::new(4096).unwrap();
    let code = arena.place(&[0xb8, 42, 0, 0, 0, 0xc3]).unwrap();
    // SAFETY: `mov eax, 42; ret` is a function of this type.
    let function: extern "C" fn() -> u32 = unsafe { std::mem::transmute(code) };
    assert_eq!(function(), 42);
    // SAFETY: the immediate of the code placed above, in its writable mapping.
    unsafe { *arena.writable(code).add(1) = 43 };
    assert_eq!(function(), 43);
    assert_eq!(arena.used(), 16);
    assert!(arena.place(&[0x90; 4090]).is_none());
}

#[test]
fn arenas_of_many_pieces_are_filled_from_both_ends() {
    for size in [PIECE, 3 * PIECE + 8192] {
        let mut arena = Arena::new(size).unwrap();
        assert!(arena.range().start.is_multiple_of(PIECE));
        let (mut code, mut data) = (Vec::new(), Vec::new());
        // More than a piece of each, and across their borders.
        while let Some(place) = arena.place(&[0xb8, code.len() as u8, 0, 0, 0, 0xc3]) {
            code.push(place);
            if arena.reserve(4096) {
                data.push(arena.data());
                // SAFETY: reserved just now, and nobody else knows of it.
                unsafe { arena.writable(arena.data() as *const u8).write(data.len() as u8) };
            }
        }
        assert!(arena.free() < 4096 && code.len() > 200);
        for (number, &place) in code.iter().enumerate().step_by(97) {
            // SAFETY: `mov eax, N; ret` is a function of this type.
            let function: extern "C" fn() -> u32 = unsafe { std::mem::transmute(place) };
            assert_eq!(function(), number as u32 % 256);
        }
        for (number, &place) in data.iter().enumerate() {
            // SAFETY: in the arena, and written above.
            assert_eq!(unsafe { *(place as *const u8) }, (number + 1) as u8);
        }
    }
}

#[test]
fn memory_that_was_given_back_can_be_used_again() {
    let mut arena = Arena::new(PIECE).unwrap();
    assert!(arena.reserve(64));
    let first = arena.place(&[0xc3; 100]).unwrap();
    arena.give_back();
    assert_eq!((arena.used(), arena.free()), (0, PIECE));
    // SAFETY: a byte of the mapping, which nobody writes to now.
    assert_eq!(unsafe { *first }, 0);
    let code = arena.place(&[0xb8, 7, 0, 0, 0, 0xc3]).unwrap();
    assert_eq!(code, first);
    // SAFETY: `mov eax, 7; ret` is a function of this type.
    let function: extern "C" fn() -> u32 = unsafe { std::mem::transmute(code) };
    assert_eq!(function(), 7);
}
