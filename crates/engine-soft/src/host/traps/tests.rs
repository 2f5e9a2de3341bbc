//! A trap in registered code comes back; each thread and each range for itself.

use super::*;
use crate::host::arena::Arena;

/// Goes on at the address that the range was registered with.
fn redirect(frame: &mut TrapFrame<'_>, argument: usize) -> TrapAction {
    let vector = frame.vector() as u64;
    frame.set_gpr(0, vector);
    frame.set_rip(argument as u64);
    TrapAction::Resume
}

fn run(code: &[u8]) -> u64 {
    prepare_thread().unwrap();
    let mut arena = Arena::new(4096).unwrap();
    let back = arena.place(&[0xc3]).unwrap();
    let code = arena.place(code).unwrap();
    let _registration = register(arena.range(), redirect, back as usize).unwrap();
    // SAFETY: the code either returns or traps and is sent to a `ret`.
    let function: extern "C" fn() -> u64 = unsafe { std::mem::transmute(code) };
    function()
}

#[test]
fn traps_come_back_with_their_vector() {
    // xor eax, eax; div eax
    assert_eq!(run(&[0x31, 0xc0, 0xf7, 0xf0]), 0);
    // ud2
    assert_eq!(run(&[0x0f, 0x0b]), 6);
    // xor eax, eax; mov eax, [rax]
    assert_eq!(run(&[0x31, 0xc0, 0x8b, 0x00]), 14);
    // mov rax, rsp; movaps xmm0, [rsp + 1]
    assert_eq!(run(&[0x0f, 0x28, 0x44, 0x24, 0x01]), 13);
    // hlt
    assert_eq!(run(&[0xf4]), 13);
    // int3
    assert_eq!(run(&[0xcc]), 3);
}

#[test]
fn a_guest_stack_pointer_does_not_disturb_the_handler() {
    // mov rcx, rsp; mov esp, 8; ud2 -- and back: mov rsp, rcx; ret
    prepare_thread().unwrap();
    let mut arena = Arena::new(4096).unwrap();
    let back = arena.place(&[0x48, 0x89, 0xcc, 0xc3]).unwrap();
    let code = arena.place(&[0x48, 0x89, 0xe1, 0xbc, 0x08, 0x00, 0x00, 0x00, 0x0f, 0x0b]).unwrap();
    let _registration = register(arena.range(), redirect, back as usize).unwrap();
    // SAFETY: the code traps and is sent to the end of a function that keeps RSP.
    let function: extern "C" fn() -> u64 = unsafe { std::mem::transmute(code) };
    assert_eq!(function(), 6);
}

#[test]
fn threads_and_registrations_come_and_go() {
    let threads: Vec<_> =
        (0..4).map(|_| std::thread::spawn(|| (0..50).map(|_| run(&[0x0f, 0x0b])).sum())).collect();
    for thread in threads {
        let sum: u64 = thread.join().unwrap();
        assert_eq!(sum, 300);
    }
}

#[test]
fn lines_are_made_without_allocation() {
    let mut line = Line { bytes: [0; 256], length: 0 };
    line.text("at ");
    line.hex(0x1f00);
    line.text(", ");
    line.hex(0);
    assert_eq!(&line.bytes[..line.length], b"at 0x1f00, 0x0");
}
