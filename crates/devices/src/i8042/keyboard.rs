//! The keyboard behind the controller. It speaks scan code set 2.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::QUEUE;

const ACKNOWLEDGE: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyboard {
    pub queue: VecDeque<u8>,
    /// Keys are reported.
    scanning: bool,
    /// The command whose parameter is awaited.
    awaiting: Option<u8>,
    set: u8,
    last: u8,
}

impl Default for Keyboard {
    fn default() -> Self {
        Self { queue: VecDeque::new(), scanning: true, awaiting: None, set: 2, last: 0 }
    }
}

impl Keyboard {
    fn say(&mut self, bytes: &[u8]) {
        // A sequence is said as a whole or not at all.
        if self.queue.len() + bytes.len() <= QUEUE {
            self.queue.extend(bytes);
        }
        if let Some(&last) = bytes.last() {
            self.last = last;
        }
    }

    /// Reports a key.
    pub fn press(&mut self, bytes: &[u8]) {
        if self.scanning {
            self.say(bytes);
        }
    }

    pub fn command(&mut self, byte: u8) {
        match self.awaiting.take() {
            // Indicator lights, repeat rate: accepted, and of no consequence.
            Some(0xed | 0xf3) => return self.say(&[ACKNOWLEDGE]),
            Some(0xf0) if byte == 0 => return self.say(&[ACKNOWLEDGE, self.set]),
            Some(0xf0) => {
                self.set = byte.clamp(1, 3);
                return self.say(&[ACKNOWLEDGE]);
            }
            _ => {}
        }
        match byte {
            0xed | 0xf0 | 0xf3 => {
                self.awaiting = Some(byte);
                self.say(&[ACKNOWLEDGE]);
            }
            0xee => self.say(&[0xee]),
            0xf2 => self.say(&[ACKNOWLEDGE, 0xab, 0x83]),
            0xf4 => {
                self.queue.clear();
                self.scanning = true;
                self.say(&[ACKNOWLEDGE]);
            }
            0xf5 | 0xf6 => {
                *self = Self { scanning: byte == 0xf6, ..Self::default() };
                self.say(&[ACKNOWLEDGE]);
            }
            0xfe => self.say(&[self.last]),
            0xff => {
                *self = Self::default();
                self.say(&[ACKNOWLEDGE, SELF_TEST_PASSED]);
            }
            _ => self.say(&[RESEND]),
        }
    }
}

/// What the controller makes of scan codes of set 2: the code of set 1 at the same
/// place on the keyboard.
const SET_1: [u8; 0x85] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
    0x80, 0x81, 0x82, 0x41, 0x54,
];

/// Other bytes (prefixes, answers to commands) pass unchanged.
pub fn to_set_1(code: u8) -> u8 {
    SET_1.get(usize::from(code)).copied().unwrap_or(code)
}

/// None for what is no key.
pub fn to_set_2(code: u8) -> Option<u8> {
    match code {
        // F7 and SysRq each have two codes that mean them; these are the keys' own.
        0x41 => Some(0x83),
        0x54 => Some(0x84),
        1..0x80 => SET_1.iter().position(|&one| one == code).map(|two| two as u8),
        _ => None,
    }
}
