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
