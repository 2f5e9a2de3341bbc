//! Invalidation, by registers and by the queue.

use super::*;

const DONE_AT: u64 = 0x3_0000;

fn wait(data: u64, interrupt: bool) -> [u64; 2] {
    [5 | u64::from(interrupt) << 4 | 1 << 5 | data << 32, DONE_AT]
}

impl Rig {
    fn queueing() -> Self {
        let rig = rig();
        rig.set_wide(0x90, QUEUE_AT);
        rig.set_wide(0x88, 0);
        rig.command(1 << 26);
        rig
    }

    /// Puts commands behind the tail and rings.
    fn submit(&self, commands: &[[u64; 2]]) {
        let mut tail = self.get_wide(0x88);
        for command in commands {
            self.poke(QUEUE_AT + tail, command);
            tail = (tail + 16) % 0x1000;
        }
        self.set_wide(0x88, tail);
    }
}

#[test]
fn the_registers_answer_at_once() {
    let rig = rig();
    for granularity in 1..=3 {
        rig.set_wide(0x28, 1 << 63 | granularity << 61 | 0x18_0007);
        assert_eq!(rig.get_wide(0x28), granularity << 61 | granularity << 59 | 0x18_0007);
        rig.set_wide(0xf0, 0x1234_5000);
        rig.set_wide(0xf8, 1 << 63 | granularity << 60 | 7 << 32);
        assert_eq!(rig.get_wide(0xf8), granularity << 60 | granularity << 57 | 7 << 32);
    }
}

#[test]
fn the_queue_is_worked_through_in_order() {
    let rig = Rig::queueing();
    rig.submit(&[
        [1 | 1 << 4, 0],
        [2 | 1 << 4, 0],
        [2 | 3 << 4 | 7 << 16, 0x5000 | 3],
        [4, 0],
        [4 | 1 << 4 | 9 << 32, 0],
        wait(0x77, false),
    ]);
    assert_eq!(rig.peek(DONE_AT) as u32, 0x77);
    assert_eq!(rig.get_wide(0x80), 6 * 16);
    assert_eq!(rig.get(0x34), 0);
    // More than once around, from where it stands.
    for round in 0..100 {
        let commands: Vec<_> = (0..200).map(|number| wait(round << 8 | number, false)).collect();
        rig.submit(&commands);
        assert_eq!(rig.peek(DONE_AT) as u32, (round << 8 | 199) as u32);
    }
    assert_eq!(rig.get_wide(0x80), rig.get_wide(0x88));
}

#[test]
fn a_queue_that_is_off_waits() {
    let rig = rig();
    rig.set_wide(0x90, QUEUE_AT);
    rig.submit(&[wait(1, false)]);
    assert_eq!(rig.peek(DONE_AT), 0);
    rig.command(1 << 26);
    assert_eq!(rig.peek(DONE_AT) as u32, 1);
}

#[test]
fn a_wait_may_end_in_an_interrupt() {
    let rig = Rig::queueing();
    rig.set(0xa4, 0x4061);
    rig.set(0xa8, 0xfee0_2000);
    let message = Msi { address: 0xfee0_2000, data: 0x4061 };
    rig.submit(&[wait(1, true)]);
    assert_eq!((rig.sent(), rig.get(0x9c), rig.get(0xa0)), (vec![], 1, 3 << 30));
    rig.set(0xa0, 0);
    assert_eq!(rig.sent(), [message]);
    // One that has not been seen is enough.
    rig.submit(&[wait(2, true), wait(3, true)]);
    assert_eq!(rig.sent(), []);
    rig.set(0x9c, 1);
    assert_eq!(rig.get(0x9c), 0);
    rig.submit(&[wait(4, true), wait(5, true)]);
    assert_eq!(rig.sent(), [message]);
}

#[test]
fn a_command_that_makes_no_sense_stops_the_queue() {
    let senseless: [[u64; 2]; 9] = [
        [0, 0],
        [1, 0],
        [1 | 1 << 4, 1],
        [2, 0],
        [2 | 3 << 4, 19],
        [3, 0],
        [4, 1],
        [5 | 1 << 9, 0],
        [15, 0],
    ];
    for command in senseless {
        let rig = Rig::queueing();
        let message = rig.unmask_faults();
        rig.submit(&[wait(1, false), command, wait(2, false)]);
        assert_eq!(rig.get(0x34), 1 << 4, "{command:x?}");
        assert_eq!(rig.sent(), [message]);
        assert_eq!(rig.peek(DONE_AT) as u32, 1);
        assert_eq!(rig.get_wide(0x80), 16, "the head names it");
        // The guest puts something better there, and lets it go on.
        rig.poke(QUEUE_AT + 16, &wait(3, false));
        rig.set(0x34, 1 << 4);
        assert_eq!(rig.get(0x34), 0);
        assert_eq!(rig.peek(DONE_AT) as u32, 2);
    }
}

#[test]
fn queues_that_cannot_be_are_errors() {
    // A tail past the end; a queue where there is no memory.
    for (address, tail) in [(QUEUE_AT, 0x1000), (0xffff_f000, 16)] {
        let rig = rig();
        rig.set_wide(0x90, address);
        rig.command(1 << 26);
        rig.set_wide(0x88, tail);
        assert_eq!(rig.get(0x34), 1 << 4);
    }
    // A status that is written to nowhere is lost.
    let rig = Rig::queueing();
    rig.submit(&[[5 | 1 << 5 | 1 << 32, 0xffff_ffff_f000], wait(2, false)]);
    assert_eq!(rig.peek(DONE_AT) as u32, 2);
}

/// The largest queue, full of commands.
#[test]
fn the_largest_queue_ends() {
    let rig = rig();
    for place in 0..32768_u64 {
        rig.poke(0x4_0000 + 16 * place, &wait(place, false));
    }
    rig.set_wide(0x90, 0x4_0000 | 7);
    rig.command(1 << 26);
    rig.set_wide(0x88, 32767 * 16);
    assert_eq!(rig.peek(DONE_AT) as u32, 32766);
    assert_eq!(rig.get_wide(0x80), 32767 * 16);
}
