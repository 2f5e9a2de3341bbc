//! Interfaces, addresses and routes, by routing netlink. The host says what they are, so
//! nothing has to be asked of the network.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use guise_agent::protocol::Interface;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const ERROR: u16 = 2;

const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const CREATE: u16 = 0x400;
const REPLACE: u16 = 0x100;

const UP: u32 = 1;
const LINK_MTU: u16 = 4;
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const OUTPUT_INTERFACE: u16 = 4;
const GATEWAY: u16 = 5;
/// No duplicates are looked for: the host hands addresses out.
const NO_DUPLICATE_DETECTION: u8 = 2;
const INET: u8 = 2;
const INET6: u8 = 10;
const TABLE_MAIN: u8 = 254;
const PROTOCOL_BOOT: u8 = 3;
const UNICAST: u8 = 1;

/// Sets up the loopback and what the host names.
pub fn set_up(interfaces: &[Interface]) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    netlink.ask(link(1, 0))?;
    for interface in interfaces {
        let number = find(&interface.mac)?;
        netlink.ask(link(number, interface.mtu))?;
        for (address, prefix) in &interface.addresses {
            netlink.ask(new_address(number, *address, *prefix))?;
        }
        for gateway in &interface.gateways {
            netlink.ask(default_route(number, *gateway))?;
        }
    }
    Ok(())
}

/// Whether there is an interface with a hardware address that nobody has switched on.
pub fn is_off(mac: &[u8; 6]) -> bool {
    let flags = |path: PathBuf| {
        let text = fs::read_to_string(path.join("flags")).unwrap_or_default();
        u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
    };
    folder(mac).ok().and_then(flags).is_some_and(|flags| flags & UP == 0)
}

/// The number of the interface with a hardware address.
fn find(mac: &[u8; 6]) -> io::Result<u32> {
    let number = fs::read_to_string(folder(mac)?.join("ifindex"))?;
    number.trim().parse().map_err(io::Error::other)
}

/// Where the kernel tells of it.
fn folder(mac: &[u8; 6]) -> io::Result<PathBuf> {
    let wanted: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let wanted = wanted.join(":");
    for entry in fs::read_dir("/sys/class/net")? {
        let path = entry?.path();
        if fs::read_to_string(path.join("address")).is_ok_and(|text| text.trim() == wanted) {
            return Ok(path);
        }
    }
    Err(io::Error::other(format!("the machine has no interface {wanted}")))
}

/// A request under construction.
struct Request {
    bytes: Vec<u8>,
    doing: &'static str,
}

impl Request {
    const HEADER: usize = 16;

    fn new(doing: &'static str, kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; Self::HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST | ACKNOWLEDGE | flags).to_ne_bytes());
        bytes.extend_from_slice(body);
        Request { bytes, doing }
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (value.len() + 4) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self, number: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&number.to_ne_bytes());
        self.bytes
    }
}

/// Switches an interface on.
fn link(number: u32, mtu: u32) -> Request {
    let mut body = vec![0; 4];
    body.extend_from_slice(&number.to_ne_bytes());
    body.extend_from_slice(&UP.to_ne_bytes());
    body.extend_from_slice(&UP.to_ne_bytes());
    let request = Request::new("switching an interface on", NEW_LINK, 0, &body);
    if mtu == 0 { request } else { request.attribute(LINK_MTU, &mtu.to_ne_bytes()) }
}

fn new_address(number: u32, address: IpAddr, prefix: u8) -> Request {
    let (family, bytes) = parts(address);
    let mut body = vec![family, prefix, NO_DUPLICATE_DETECTION, 0];
    body.extend_from_slice(&number.to_ne_bytes());
    Request::new("setting an address", NEW_ADDRESS, CREATE | REPLACE, &body)
        .attribute(LOCAL, &bytes)
        .attribute(ADDRESS, &bytes)
}

fn default_route(number: u32, gateway: IpAddr) -> Request {
    let (family, bytes) = parts(gateway);
    let mut body = vec![family, 0, 0, 0, TABLE_MAIN, PROTOCOL_BOOT, 0, UNICAST];
    body.extend_from_slice(&0u32.to_ne_bytes());
    Request::new("setting a route", NEW_ROUTE, CREATE | REPLACE, &body)
        .attribute(GATEWAY, &bytes)
        .attribute(OUTPUT_INTERFACE, &number.to_ne_bytes())
}

fn parts(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (INET, address.octets().to_vec()),
        IpAddr::V6(address) => (INET6, address.octets().to_vec()),
    }
}

struct Netlink {
    socket: OwnedFd,
    number: u32,
}

impl Netlink {
    /// The first netlink protocol, number 0, is that of routes.
    fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Netlink { socket, number: 0 })
    }

    /// Sends a request and waits for the kernel's word on it.
    fn ask(&mut self, request: Request) -> io::Result<()> {
        let doing = request.doing;
        self.number += 1;
        let explain = |error: io::Error| io::Error::new(error.kind(), format!("{doing}: {error}"));
        let bytes = request.finish(self.number);
        rustix::net::send(&self.socket, &bytes, SendFlags::empty())
            .map_err(|error| explain(error.into()))?;
        let mut buffer = [0; 4096];
        let (length, _) = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty())
            .map_err(|error| explain(error.into()))?;
        answer(&buffer[..length]).map_err(explain)
    }
}

/// Success is an error with number 0.
fn answer(bytes: &[u8]) -> io::Result<()> {
    let kind = bytes.get(4..6).map(|kind| u16::from_ne_bytes([kind[0], kind[1]]));
    let code = bytes.get(16..20).and_then(|code| code.first_chunk::<4>());
    match (kind, code.map(|code| i32::from_ne_bytes(*code))) {
        (Some(ERROR), Some(0)) => Ok(()),
        (Some(ERROR), Some(code)) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Err(io::Error::other("the kernel answered something else")),
    }
}

#[cfg(test)]
mod tests;
