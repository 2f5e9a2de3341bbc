//! As much of the kernel's routing netlink as taps need: what an interface is, and
//! setting its state, MTU and master.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

const HEADER: usize = 16;
/// `struct ifinfomsg`.
const INTERFACE: usize = 16;
const ERROR: u16 = 2;
pub const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
pub const IFLA_NAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
pub const IFLA_LINK_INFO: u16 = 18;
pub const IFLA_INFO_KIND: u16 = 1;
/// Flags in an attribute's type.
const TYPE_MASK: u16 = 0x3fff;
const UP: u32 = 1;

/// What is known of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub up: bool,
    pub mtu: u32,
    /// Of the bridge that it is in; 0 without one.
    pub master: u32,
    /// "bridge", "tun", …; empty for hardware.
    pub kind: String,
}

pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// A request about interfaces that is being written.
pub struct Message(Vec<u8>);

impl Message {
    pub fn new(kind: u16, flags: u16, index: u32, state: u32, change: u32) -> Message {
        let mut bytes = vec![0; HEADER + INTERFACE];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        let body = &mut bytes[HEADER..];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        body[8..12].copy_from_slice(&state.to_ne_bytes());
        body[12..16].copy_from_slice(&change.to_ne_bytes());
        Message(bytes)
    }

    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Message {
        self.0.extend(attribute(kind, value));
        self
    }
}

/// An attribute by itself, for use in another.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The attributes in bytes, as far as they make sense.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(half(bytes, 0)?);
        let kind = half(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// Reads an interface's message, header included.
pub fn parse_link(message: &[u8]) -> Option<Link> {
    let body = message.get(HEADER..)?;
    let mut link = Link { index: word(body, 4)?, up: word(body, 8)? & UP != 0, ..Link::default() };
    for (kind, value) in attributes(body.get(INTERFACE..)?) {
        match kind {
            IFLA_MTU => link.mtu = word(value, 0)?,
            IFLA_MASTER => link.master = word(value, 0)?,
            IFLA_LINK_INFO => {
                let mut inner = attributes(value);
                let found = inner.find(|(kind, _)| *kind == IFLA_INFO_KIND);
                link.kind = found.map(|(_, value)| text(value)).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(link)
}

impl Netlink {
    pub fn open() -> rustix::io::Result<Netlink> {
        let flags = SocketFlags::CLOEXEC;
        // Netlink's protocol 0 is routing.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Sends a request and waits for the kernel's answer, which comes at once.
    pub fn ask(&mut self, message: Message) -> rustix::io::Result<Vec<u8>> {
        let mut bytes = message.0;
        self.sequence += 1;
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        send(&self.socket, &bytes, SendFlags::empty())?;
        let mut answer = vec![0; 32 << 10];
        loop {
            let (size, _) = rustix::io::retry_on_intr(|| {
                recv(&self.socket, &mut answer[..], RecvFlags::empty())
            })?;
            let message = &answer[..size];
            if word(message, 8) != Some(self.sequence) {
                continue;
            }
            if half(message, 4) != Some(ERROR) {
                return Ok(message.to_vec());
            }
            let code = word(message, HEADER).ok_or(Errno::PROTO)? as i32;
            return match code {
                0 => Ok(Vec::new()),
                code => Err(Errno::from_raw_os_error(-code)),
            };
        }
    }

    /// An interface by name; none where there is none.
    pub fn link(&mut self, name: &str) -> rustix::io::Result<Option<Link>> {
        let request = Message::new(GET_LINK, 0, 0, 0, 0)
            .attribute(IFLA_NAME, &[name.as_bytes(), &[0]].concat());
        match self.ask(request) {
            Ok(answer) => parse_link(&answer).map(Some).ok_or(Errno::PROTO),
            Err(Errno::NODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Switches an interface on, with this MTU and master.
    pub fn set(&mut self, link: &Link, mtu: u32, master: u32) -> rustix::io::Result<()> {
        let mut request = Message::new(NEW_LINK, ACKNOWLEDGE, link.index, UP, UP);
        if mtu != link.mtu {
            request = request.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        }
        if master != link.master {
            request = request.attribute(IFLA_MASTER, &master.to_ne_bytes());
        }
        self.ask(request).map(drop)
    }
}
