use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use guise_net::frame::{Counters, Interface, Offload, PartialChecksum, SegmentKind, Segments};

use super::*;
use crate::queue::driver::BUFFERS;
use crate::transport::guest::Guest;
use crate::worker::Kick;

const MAC_ADDRESS: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const RECEIVE: usize = 0;
const TRANSMIT: u16 = 1;

/// Remembers what it got, and delivers what it is told to.
struct Cable {
    ready: Kick,
    got: Vec<(Vec<u8>, Offload)>,
    waiting: VecDeque<(Vec<u8>, Offload)>,
}

impl Network for Cable {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.ready.fd().as_fd()
    }

    fn timer(&self) -> Option<Duration> {
        None
    }

    fn input(&mut self, frame: &[u8], offload: Offload) {
        self.got.push((frame.to_vec(), offload));
    }

    fn poll(&mut self, interface: &mut dyn Interface) {
        while let Some((frame, offload)) = self.waiting.front() {
            let Some(room) = interface.room(frame.len()) else { break };
            room[..frame.len()].copy_from_slice(frame);
            interface.deliver(frame.len(), *offload);
            self.waiting.pop_front();
        }
        // Level-triggered: nothing is ready until it is said again.
        let mut fds = [rustix::event::PollFd::new(self.ready.fd(), rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        if rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0) {
            self.ready.wait();
        }
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }
}

struct Rig {
    guest: Guest,
    device: Arc<Net>,
    cable: Arc<Mutex<Cable>>,
    /// Buffers that the driver has given so far.
    given: u64,
}

fn rig(pairs: u16, features: u64, packed: bool) -> Rig {
    let ready = Kick::new().unwrap();
    let cable = Cable { ready, got: Vec::new(), waiting: VecDeque::new() };
    let cable = Arc::new(Mutex::new(cable));
    let options = NetOptions { mac: MAC_ADDRESS, mtu: 1400, pairs, rate: Rate::default() };
    let device = Net::new(cable.clone(), options);
    let mut guest = Guest::new(device.clone());
    guest.start(features, packed, packed);
    Rig { guest, device, cable, given: 0 }
}

fn frame(length: usize) -> Vec<u8> {
    let mut frame = MAC_ADDRESS.to_vec();
    frame.extend((frame.len()..length).map(|at| at as u8));
    frame
}

impl Rig {
    fn deliver(&self, frame: &[u8], offload: Offload) {
        let mut cable = self.cable.lock().unwrap();
        cable.waiting.push_back((frame.to_vec(), offload));
        cable.ready.ring();
    }

    fn send(&mut self, header: [u8; 12], frame: &[u8]) {
        let queue = &mut self.guest.queues[usize::from(TRANSMIT)];
        queue.put(BUFFERS, &header);
        queue.put(BUFFERS + 0x1000, frame);
        queue.add(&[(BUFFERS, 12, false), (BUFFERS + 0x1000, frame.len() as u32, false)]);
        self.guest.notify(TRANSMIT);
        self.guest.queues[usize::from(TRANSMIT)].wait_used();
    }

    /// A command, and the answer to it.
    fn command(&mut self, index: usize, command: &[u8]) -> u8 {
        let queue = &mut self.guest.queues[index];
        queue.put(BUFFERS, command);
        queue.put(BUFFERS + 0x800, &[0xee]);
        queue.add(&[(BUFFERS, command.len() as u32, false), (BUFFERS + 0x800, 1, true)]);
        self.guest.notify(index as u16);
        let queue = &mut self.guest.queues[index];
        queue.wait_used();
        queue.get::<1>(BUFFERS + 0x800)[0]
    }

    fn give_buffers(&mut self, count: u64, length: u32) {
        for _ in 0..count {
            let at = BUFFERS + 0x1_0000 + 0x1000 * self.given;
            self.guest.queues[RECEIVE].add(&[(at, length, true)]);
            self.given += 1;
        }
        self.guest.notify(RECEIVE as u16);
    }
}

#[test]
fn frames_go_out_with_what_was_left_to_hardware() {
    for packed in [false, true] {
        let mut rig = rig(1, CHECKSUM | HOST_TCP4, packed);
        rig.send([0; 12], &frame(60));
        rig.send([1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0], &frame(3000));
        // The checksum would be outside of the frame; segments without a size.
        rig.send([1, 0, 0, 0, 0, 0, 50, 0, 16, 0, 0, 0], &frame(60));
        rig.send([1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0], &frame(60));
        let got = &rig.cable.lock().unwrap().got;
        assert_eq!(got.len(), 2);
        assert_eq!(got[0], (frame(60), Offload::default()));
        let expected = Offload {
            partial_checksum: Some(PartialChecksum { start: 34, offset: 16 }),
            checksum_is_good: false,
            segments: Some(Segments { kind: SegmentKind::Tcp4, size: 1460, header: 54 }),
        };
        assert_eq!(got[1], (frame(3000), expected));
    }
}

#[test]
fn a_frame_takes_as_many_buffers_as_it_needs() {
    for packed in [false, true] {
        let mut rig = rig(1, MERGEABLE | GUEST_CHECKSUM | GUEST_TCP4, packed);
        rig.give_buffers(2, 1024);
        let offload = Offload {
            partial_checksum: Some(PartialChecksum { start: 34, offset: 16 }),
            segments: Some(Segments { kind: SegmentKind::Tcp4, size: 1000, header: 54 }),
            ..Offload::default()
        };
        // Two buffers are not enough, so nothing comes until there are more.
        rig.deliver(&frame(3000), offload);
        rig.give_buffers(2, 1024);
        let queue = &mut rig.guest.queues[RECEIVE];
        let lengths: Vec<u32> = (0..3).map(|_| queue.wait_used().1).collect();
        assert_eq!(lengths, [1024, 1024, 3012 - 2048]);
        let at = BUFFERS + 0x1_0000;
        assert_eq!(queue.get::<12>(at), [1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0, 3, 0]);
        assert_eq!(queue.get::<6>(at + 12), frame(6)[..]);
        rig.deliver(&frame(60), Offload::default());
        let queue = &mut rig.guest.queues[RECEIVE];
        assert_eq!(queue.wait_used().1, 72);
    }
}

#[test]
fn unused_buffers_are_put_back_when_the_device_is_saved() {
    for packed in [false, true] {
        let mut rig = rig(1, MERGEABLE, packed);
        rig.give_buffers(3, 100);
        // It takes all three for a frame that does not fit, and has to give them back.
        rig.deliver(&frame(1000), Offload::default());
        while rig.cable.lock().unwrap().waiting.is_empty() {
            std::thread::yield_now();
        }
        rig.guest.function.state();
        rig.cable.lock().unwrap().waiting.clear();
        rig.deliver(&frame(80), Offload::default());
        assert_eq!(rig.guest.queues[RECEIVE].wait_used().1, 92);
        rig.deliver(&frame(180), Offload::default());
        let queue = &mut rig.guest.queues[RECEIVE];
        assert_eq!((queue.wait_used().1, queue.wait_used().1), (100, 92));
    }
}

#[test]
fn the_driver_chooses_what_it_gets() {
    let mut rig = rig(2, CONTROL | CONTROL_RECEIVE | CONTROL_VLAN | CONTROL_MAC, false);
    // Without several pairs the control queue is the third.
    let control = 2;
    rig.give_buffers(4, 200);
    let to = |mac: [u8; 6]| {
        let mut other = frame(60);
        other[..6].copy_from_slice(&mac);
        other
    };
    let passes = |rig: &Rig, frame: &[u8]| lock(&rig.device.shared).filter.passes(frame);
    let group = [0x33, 0x33, 0, 0, 0, 1];
    assert!(passes(&rig, &to(MAC_ADDRESS)) && passes(&rig, &to([0xff; 6])));
    assert!(!passes(&rig, &to([2; 6])) && !passes(&rig, &to(group)));
    assert_eq!(rig.command(control, &[0, 0, 1]), 0);
    assert!(passes(&rig, &to([2; 6])));
    assert_eq!(rig.command(control, &[0, 0, 0]), 0);
    let mut tables = vec![1, 0, 1, 0, 0, 0, 2, 2, 2, 2, 2, 2, 1, 0, 0, 0];
    tables[1] = 0;
    tables.extend(group);
    assert_eq!(rig.command(control, &tables), 0);
    assert!(passes(&rig, &to([2; 6])) && passes(&rig, &to(group)));
    assert_eq!(rig.command(control, &[1, 1, 4, 4, 4, 4, 4, 4]), 0);
    assert_eq!(rig.guest.config::<6>(0), [4; 6]);
    assert_eq!(rig.command(control, &[2, 0, 5, 0]), 0);
    let tagged = |id: u8| [&[4; 6][..], &[0; 6], &[0x81, 0, 0, id, 8, 0]].concat();
    assert!(passes(&rig, &tagged(5)) && !passes(&rig, &tagged(6)));
    for nonsense in [&[0_u8, 9, 1][..], &[1, 0, 255, 255, 255, 255], &[4, 0, 0, 0], &[9, 0], &[1]] {
        assert_eq!(rig.command(control, nonsense), 1, "{nonsense:?}");
    }
}

#[test]
fn several_pairs_answer_a_flow_where_it_came_from() {
    let mut rig = rig(2, MULTIPLE_QUEUES | CONTROL | CONTROL_RECEIVE | MERGEABLE, false);
    assert_eq!(rig.guest.config::<2>(8), [2, 0]);
    assert_eq!(rig.command(4, &[4, 0, 2, 0]), 0);
    assert_eq!(rig.command(4, &[4, 0, 3, 0]), 1);
    let mut out = frame(60);
    out[12..15].copy_from_slice(&[8, 0, 0x45]);
    for queue in [0, 2] {
        rig.guest.queues[queue].add(&[(BUFFERS + 0x2_0000, 100, true)]);
    }
    let transmit = &mut rig.guest.queues[3];
    transmit.put(BUFFERS, &[0; 12]);
    transmit.put(BUFFERS + 12, &out);
    transmit.add(&[(BUFFERS, 72, false)]);
    rig.guest.notify(3);
    rig.guest.queues[3].wait_used();
    rig.deliver(&out, Offload::default());
    assert_eq!(rig.guest.queues[2].wait_used().1, 72);
}

#[test]
fn what_the_driver_chose_is_saved() {
    let mut rig = rig(2, MULTIPLE_QUEUES | CONTROL | CONTROL_RECEIVE, false);
    assert_eq!(rig.command(4, &[0, 1, 1]), 0);
    assert_eq!(rig.command(4, &[4, 0, 2, 0]), 0);
    let state = serde_json::to_string(&rig.guest.function.state()).unwrap();
    let before = lock(&rig.device.shared).clone();
    rig.guest.set_status(0);
    rig.guest.start(MULTIPLE_QUEUES | CONTROL | CONTROL_RECEIVE, false, false);
    assert_ne!(*lock(&rig.device.shared), before);
    rig.guest.function.set_state(&serde_json::from_str(&state).unwrap()).unwrap();
    assert_eq!(*lock(&rig.device.shared), before);
}

#[test]
fn a_pulled_cable_carries_nothing() {
    let mut rig = rig(1, 0, false);
    rig.device.set_link(false);
    assert_eq!(rig.guest.config::<2>(6), [0, 0]);
    rig.send([0; 12], &frame(60));
    assert!(rig.cable.lock().unwrap().got.is_empty());
    rig.device.set_link(true);
    rig.send([0; 12], &frame(60));
    assert_eq!(rig.cable.lock().unwrap().got.len(), 1);
}
