//! A driver for tests: it keeps what it is given.

use std::collections::VecDeque;

use crate::frame::{Interface, Offload, Receives};

#[derive(Default)]
pub struct Driver {
    pub receives: Receives,
    pub frames: VecDeque<(Vec<u8>, Offload)>,
    room: Vec<u8>,
}

impl Interface for Driver {
    fn receives(&self) -> Receives {
        self.receives
    }

    fn room(&mut self, size: usize) -> Option<&mut [u8]> {
        self.room.resize(size, 0);
        Some(&mut self.room)
    }

    fn filled(&self, size: usize) -> &[u8] {
        &self.room[..size]
    }

    fn deliver(&mut self, size: usize, offload: Offload) {
        self.frames.push_back((self.room[..size].to_vec(), offload));
    }
}
