//! Small frames of the router that wait for the guest's buffers.

use std::collections::VecDeque;

use crate::frame::{Counters, Interface, Offload, Reason};

/// Who asks for more than this without reading the answers gets no more.
pub const LIMIT: usize = 256;

#[derive(Default)]
pub struct Queue {
    frames: VecDeque<(Vec<u8>, Offload)>,
}

impl Queue {
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn push(&mut self, counters: &mut Counters, frame: Vec<u8>) {
        if self.frames.len() >= LIMIT {
            return counters.drop_for(Reason::NoRoom);
        }
        self.frames.push_back((frame, Offload::default()));
    }

    pub fn flush(&mut self, counters: &mut Counters, interface: &mut dyn Interface) {
        while let Some((frame, offload)) = self.frames.front() {
            let Some(room) = interface.room(frame.len()) else { return };
            let Some(room) = room.get_mut(..frame.len()) else {
                counters.drop_for(Reason::NoRoom);
                self.frames.pop_front();
                continue;
            };
            room.copy_from_slice(frame);
            interface.deliver(frame.len(), *offload);
            counters.frames_out += 1;
            counters.bytes_out += frame.len() as u64;
            self.frames.pop_front();
        }
    }
}
