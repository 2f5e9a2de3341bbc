//! What device and driver tell each other of ports, over the control queues.
//!
//! What is to be told is kept as marks of each port, in the order in which a driver has
//! to hear of it, and not as a list of messages: a driver that asks again and again and
//! never listens makes nothing grow.

use serde::{Deserialize, Serialize};

/// Events of messages.
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const RESIZE: u16 = 5;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// A message without what follows some of them: port, event, value.
pub const MESSAGE: usize = 8;

/// Marks of what the driver is to be told, the lowest first.
const TELL_ADDED: u8 = 1 << 0;
const TELL_TERMINAL: u8 = 1 << 1;
const TELL_SIZE: u8 = 1 << 2;
const TELL_NAME: u8 = 1 << 3;
const TELL_OPEN: u8 = 1 << 4;

/// One port, as far as both sides know of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortState {
    due: u8,
    /// The driver has set it up.
    pub ready: bool,
    /// A program of the guest has it open.
    pub guest_open: bool,
    /// What the driver was last told of the host's side.
    told_open: bool,
    /// Somebody on the host is connected.
    pub host_open: bool,
    /// The guest has closed it, and what it wrote before is still on its way.
    pub ending: bool,
    /// How much of the first chain of the guest's output has gone to the host already.
    pub sent: u64,
}

/// All ports. Number 0 is the terminal's, whether there is a terminal or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    terminal: bool,
    pub ports: Vec<PortState>,
}

impl Conversation {
    pub fn new(terminal: bool, named: usize) -> Self {
        let mut ports = vec![PortState::default(); named + 1];
        ports[0].host_open = terminal;
        Self { terminal, ports }
    }

    /// Whether it is about the same ports.
    pub fn fits(&self, other: &Self) -> bool {
        self.terminal == other.terminal && self.ports.len() == other.ports.len()
    }

    /// The driver says something.
    pub fn hear(&mut self, message: [u8; MESSAGE]) {
        let [a, b, c, d, event_low, event_high, low, high] = message;
        let number = u32::from_le_bytes([a, b, c, d]) as usize;
        let event = u16::from_le_bytes([event_low, event_high]);
        let value = u16::from_le_bytes([low, high]) != 0;
        if event == DEVICE_READY {
            let first = usize::from(!self.terminal);
            if value {
                self.ports[first..].iter_mut().for_each(|port| port.due |= TELL_ADDED);
            }
            return;
        }
        let terminal = self.terminal && number == 0;
        let Some(port) = self.ports.get_mut(number).filter(|_| terminal || number > 0) else {
            return;
        };
        match event {
            PORT_READY if value => {
                port.ready = true;
                port.due |= TELL_OPEN;
                port.due |= if terminal { TELL_TERMINAL | TELL_SIZE } else { TELL_NAME };
            }
            PORT_OPEN => {
                port.ending |= port.guest_open && !value;
                port.guest_open = value;
            }
            _ => {}
        }
    }

    /// The window of the terminal has another size.
    pub fn size_changed(&mut self) {
        let port = &mut self.ports[0];
        if port.ready {
            port.due |= TELL_SIZE;
        }
    }

    /// Somebody on the host has come to a port, or has gone.
    pub fn set_host_open(&mut self, number: usize, open: bool) {
        let port = &mut self.ports[number];
        port.host_open = open;
        if port.ready && port.told_open != open {
            port.due |= TELL_OPEN;
        }
    }

    /// Whether somebody may come to a port that nobody is connected to: the driver knows
    /// that whoever was before has gone, and what it sent them has arrived.
    pub fn may_come(&self, number: usize) -> bool {
        let port = &self.ports[number];
        port.ready && !port.told_open && !port.ending
    }

    pub fn has_news(&self) -> bool {
        self.ports.iter().any(|port| port.due != 0)
    }

    /// The next message, which counts as told. `name` knows those of ports, and `size`
    /// is the window's: columns and rows.
    pub fn next<'a>(
        &mut self,
        name: impl Fn(usize) -> &'a str,
        size: (u16, u16),
    ) -> Option<Vec<u8>> {
        let (number, port) = self.ports.iter_mut().enumerate().find(|(_, port)| port.due != 0)?;
        let mark = 1 << port.due.trailing_zeros();
        port.due &= !mark;
        let (event, value) = match mark {
            TELL_ADDED => (PORT_ADD, 1),
            TELL_TERMINAL => (CONSOLE_PORT, 1),
            TELL_SIZE => (RESIZE, 0),
            TELL_NAME => (PORT_NAME, 1),
            _ => {
                port.told_open = port.host_open;
                (PORT_OPEN, u16::from(port.host_open))
            }
        };
        let mut message = (number as u32).to_le_bytes().to_vec();
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        match mark {
            TELL_SIZE => message.extend(window(size)),
            TELL_NAME => message.extend(name(number).bytes()),
            _ => {}
        }
        Some(message)
    }
}

/// A window's size behind a message, as the standard has it. Drivers of Linux before 6.15
/// read the rows first; those of Debian 12 and 13 have been mended.
fn window((columns, rows): (u16, u16)) -> [u8; 4] {
    let ([a, b], [c, d]) = (columns.to_le_bytes(), rows.to_le_bytes());
    [a, b, c, d]
}

#[cfg(test)]
mod tests;
