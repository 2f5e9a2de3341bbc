//! The mouse at the second port. It answers like a plain two-button PS/2 mouse that
//! nobody touches.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::QUEUE;

const ACKNOWLEDGE: u8 = 0xfa;
const RESEND: u8 = 0xfe;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mouse {
    pub queue: VecDeque<u8>,
    awaiting: Option<u8>,
    /// Bytes come back as they are sent.
    echo: bool,
    /// Remote mode, reporting, scaling: bits 6, 5 and 4 of the status.
    mode: u8,
    resolution: u8,
    rate: u8,
}

impl Default for Mouse {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            awaiting: None,
            echo: false,
            mode: 0,
            resolution: 2,
            rate: 100,
        }
    }
}

impl Mouse {
    fn say(&mut self, bytes: &[u8]) {
        if self.queue.len() + bytes.len() <= QUEUE {
            self.queue.extend(bytes);
        }
    }

    pub fn command(&mut self, byte: u8) {
        match self.awaiting.take() {
            Some(0xe8) => {
                self.resolution = byte;
                return self.say(&[ACKNOWLEDGE]);
            }
            Some(0xf3) => {
                self.rate = byte;
                return self.say(&[ACKNOWLEDGE]);
            }
            _ => {}
        }
        if self.echo && byte != 0xff && byte != 0xec {
            return self.say(&[byte]);
        }
        let (set, clear) = match byte {
            0xe6 => (0x00, 0x10),
            0xe7 => (0x10, 0x00),
            0xea => (0x00, 0x40),
            0xf0 => (0x40, 0x00),
            0xf4 => (0x20, 0x00),
            0xf5 => (0x00, 0x20),
            _ => (0, 0),
        };
        self.mode = self.mode & !clear | set;
        match byte {
            0xe6 | 0xe7 | 0xea | 0xf0 | 0xf4 | 0xf5 => self.say(&[ACKNOWLEDGE]),
            0xe8 | 0xf3 => {
                self.awaiting = Some(byte);
                self.say(&[ACKNOWLEDGE]);
            }
            0xe9 => self.say(&[ACKNOWLEDGE, self.mode, self.resolution, self.rate]),
            // No buttons, no movement.
            0xeb => self.say(&[ACKNOWLEDGE, 0x08, 0, 0]),
            0xec => {
                self.echo = false;
                self.say(&[ACKNOWLEDGE]);
            }
            0xee => {
                self.echo = true;
                self.say(&[ACKNOWLEDGE]);
            }
            0xf2 => self.say(&[ACKNOWLEDGE, 0x00]),
            0xf6 => {
                *self = Self::default();
                self.say(&[ACKNOWLEDGE]);
            }
            0xff => {
                *self = Self::default();
                self.say(&[ACKNOWLEDGE, 0xaa, 0x00]);
            }
            _ => self.say(&[RESEND]),
        }
    }
}
