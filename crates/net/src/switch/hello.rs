//! What a process and the switch say to each other before there are frames: a message
//! each, in JSON.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};

use crate::frame::Occupied;
use crate::packet::Mac;

/// Other versions may speak differently after this.
const VERSION: u32 = 1;
/// A question's length.
const LONGEST: usize = 4096;
/// Ports that fit into one answer.
pub const MOST_IN_STATUS: usize = 96;
/// An answer's length.
pub const LONGEST_ANSWER: usize = 128 << 10;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    guise: u32,
    hello: Hello,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hello {
    /// I am a port.
    Join(Join),
    /// How is everybody?
    Status,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// Others resolve it; addresses go with it.
    pub name: String,
    /// One that follows from the name, where there is none.
    #[serde(default)]
    pub mac: Option<Mac>,
    #[serde(default)]
    pub vlan: u16,
    #[serde(default)]
    pub isolated: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Welcome { mac: Mac, address4: Ipv4Addr, address6: Ipv6Addr, mtu: u16 },
    Refusal { error: String },
    Status { ports: Vec<PortStatus> },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PortStatus {
    pub name: String,
    pub mac: Mac,
    pub addresses: Vec<IpAddr>,
    pub vlan: u16,
    pub isolated: bool,
    /// MAC addresses behind the port, besides its own.
    pub learned: usize,
    /// Frames and bytes.
    pub sent: [u64; 2],
    pub received: [u64; 2],
    /// Those that there were, by reason: of the switch and of the gateway together.
    pub drops: Vec<(String, u64)>,
    /// What the port occupies, and its limits.
    pub occupied: Vec<(String, usize, usize)>,
}

/// Reads what a process says first.
pub fn parse(message: &[u8]) -> Result<Hello, String> {
    if message.len() > LONGEST {
        return Err("that is no greeting".to_owned());
    }
    match serde_json::from_slice(message) {
        Ok(Envelope { guise: VERSION, hello }) => Ok(hello),
        Ok(Envelope { guise, .. }) => {
            Err(format!("this switch speaks version {VERSION}, not {guise}"))
        }
        Err(error) => Err(format!("that is no greeting: {error}")),
    }
}

pub fn ask(socket: impl AsFd, hello: Hello) -> rustix::io::Result<()> {
    write(socket, &Envelope { guise: VERSION, hello })
}

pub fn send(socket: impl AsFd, answer: &Answer) -> rustix::io::Result<()> {
    write(socket, answer)
}

fn write(socket: impl AsFd, message: &impl Serialize) -> rustix::io::Result<()> {
    let bytes = serde_json::to_vec(message).map_err(|_| rustix::io::Errno::INVAL)?;
    crate::outbox::write(socket, &bytes, &[])
}

pub fn occupied(entries: Vec<Occupied>) -> Vec<(String, usize, usize)> {
    entries.into_iter().map(|entry| (entry.what.to_owned(), entry.now, entry.most)).collect()
}
