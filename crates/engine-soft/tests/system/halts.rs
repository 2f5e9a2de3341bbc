//! What ends a HLT.

use std::sync::mpsc;
use std::time::Duration;

use crate::machine::{End, Mode, program};

/// A waiter for a spin lock looks at it a last time, and halts with interrupts disabled; who
/// frees the lock in between has kicked a processor that does not halt yet.
#[test]
fn a_kick_before_the_halt_that_it_is_for() {
    let (sender, ends) = mpsc::channel();
    std::thread::spawn(move || {
        // mov eax, 5; vmcall (which kicks APIC 0); cli; hlt
        let code = [0xb8, 5, 0, 0, 0, 0x0f, 0x01, 0xc1, 0xfa, 0xf4];
        _ = sender.send(program(Mode::Kernel, &code).run().end);
    });
    // It would sleep for ever.
    assert_eq!(ends.recv_timeout(Duration::from_secs(60)), Ok(End::Done));
}
