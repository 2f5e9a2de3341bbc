//! IP packets: parsing what a guest sent, building what it gets.
//!
//! The parser believes nothing that it has not compared with the frame's length. It
//! leaves fragments ([`Packet::fragment`], [`fragment`] for the other direction) and IPv6's
//! [`extension`] headers to those who want to look behind them.

mod build;
pub mod checksum;
pub mod extension;
pub mod fragment;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use build::{Headers, TcpFields, tcp_frame, udp_frame, with_headers};

use crate::frame::{Offload, Reason};

pub const ETHERNET: usize = 14;
pub const IPV4: usize = 20;
pub const IPV6: usize = 40;
pub const TCP: usize = 20;
pub const UDP: usize = 8;

pub const TYPE_IPV4: u16 = 0x0800;
pub const TYPE_ARP: u16 = 0x0806;
pub const TYPE_IPV6: u16 = 0x86dd;

pub const PROTOCOL_ICMP: u8 = 1;
pub const PROTOCOL_TCP: u8 = 6;
pub const PROTOCOL_UDP: u8 = 17;
pub const PROTOCOL_ICMPV6: u8 = 58;

pub type Mac = [u8; 6];

/// An Ethernet frame's header and the rest.
#[derive(Clone, Copy, Debug)]
pub struct Ethernet<'a> {
    pub destination: Mac,
    pub source: Mac,
    pub kind: u16,
    pub payload: &'a [u8],
}

impl<'a> Ethernet<'a> {
    pub fn parse(frame: &'a [u8]) -> Result<Ethernet<'a>, Reason> {
        let (header, payload) = frame.split_at_checked(ETHERNET).ok_or(Reason::Malformed)?;
        Ok(Ethernet {
            destination: header[..6].try_into().expect("6 bytes"),
            source: header[6..12].try_into().expect("6 bytes"),
            kind: u16::from_be_bytes([header[12], header[13]]),
            payload,
        })
    }
}

/// An IP packet of either version.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub hop_limit: u8,
    /// Everything after the IP header, padding removed.
    pub payload: &'a [u8],
    /// The packet's header and payload as they came.
    pub whole: &'a [u8],
    /// IPv4 only: this is a part of a larger packet.
    pub fragment: bool,
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn double(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl<'a> Packet<'a> {
    pub fn parse(kind: u16, bytes: &'a [u8]) -> Result<Packet<'a>, Reason> {
        match kind {
            TYPE_IPV4 => Packet::parse_v4(bytes),
            TYPE_IPV6 => Packet::parse_v6(bytes),
            _ => Err(Reason::Unsupported),
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Result<Packet<'a>, Reason> {
        if bytes.len() < IPV4 || bytes[0] >> 4 != 4 {
            return Err(Reason::Malformed);
        }
        let header = usize::from(bytes[0] & 0xf) * 4;
        let total = usize::from(word(bytes, 2));
        if header < IPV4 || total < header || bytes.len() < total {
            return Err(Reason::Malformed);
        }
        if checksum::of(&bytes[..header]) != 0 {
            return Err(Reason::Malformed);
        }
        let address = |at: usize| IpAddr::V4(Ipv4Addr::from(double(bytes, at)));
        Ok(Packet {
            source: address(12),
            destination: address(16),
            protocol: bytes[9],
            hop_limit: bytes[8],
            payload: &bytes[header..total],
            whole: &bytes[..total],
            fragment: word(bytes, 6) & 0x3fff != 0,
        })
    }

    fn parse_v6(bytes: &'a [u8]) -> Result<Packet<'a>, Reason> {
        if bytes.len() < IPV6 || bytes[0] >> 4 != 6 {
            return Err(Reason::Malformed);
        }
        let total = IPV6 + usize::from(word(bytes, 4));
        if bytes.len() < total {
            return Err(Reason::Malformed);
        }
        let address = |at: usize| {
            let octets: [u8; 16] = bytes[at..at + 16].try_into().expect("16 bytes");
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        Ok(Packet {
            source: address(8),
            destination: address(24),
            protocol: bytes[6],
            hop_limit: bytes[7],
            payload: &bytes[IPV6..total],
            whole: &bytes[..total],
            fragment: false,
        })
    }

    /// Whether the transport checksum is right, or need not be looked at.
    fn checksum_holds(&self, offload: &Offload) -> bool {
        offload.partial_checksum.is_some()
            || offload.checksum_is_good
            || checksum::transport(self.source, self.destination, self.protocol, self.payload) == 0
    }

    pub fn tcp(&self, offload: &Offload) -> Result<Tcp<'a>, Reason> {
        let bytes = self.payload;
        if bytes.len() < TCP {
            return Err(Reason::Malformed);
        }
        let header = usize::from(bytes[12] >> 4) * 4;
        if header < TCP || bytes.len() < header || !self.checksum_holds(offload) {
            return Err(Reason::Malformed);
        }
        let (mss, window_shift) = tcp_options(&bytes[TCP..header]);
        Ok(Tcp {
            source: word(bytes, 0),
            destination: word(bytes, 2),
            sequence: double(bytes, 4),
            acknowledgement: double(bytes, 8),
            flags: bytes[13],
            window: word(bytes, 14),
            mss,
            window_shift,
            payload: &bytes[header..],
        })
    }

    pub fn udp(&self, offload: &Offload) -> Result<Udp<'a>, Reason> {
        let bytes = self.payload;
        if bytes.len() < UDP {
            return Err(Reason::Malformed);
        }
        let length = usize::from(word(bytes, 4));
        if length < UDP || length > bytes.len() {
            return Err(Reason::Malformed);
        }
        // 0 means that an IPv4 sender made none.
        let unchecked = word(bytes, 6) == 0 && self.source.is_ipv4();
        let exact = Packet { payload: &bytes[..length], ..*self };
        if !unchecked && !exact.checksum_holds(offload) {
            return Err(Reason::Malformed);
        }
        Ok(Udp {
            source: word(bytes, 0),
            destination: word(bytes, 2),
            payload: &bytes[UDP..length],
        })
    }
}

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a> {
    pub source: u16,
    pub destination: u16,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: u8,
    pub window: u16,
    pub mss: Option<u16>,
    pub window_shift: Option<u8>,
    pub payload: &'a [u8],
}

impl Tcp<'_> {
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// How far the segment moves its sender's sequence on.
    pub fn length(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }
}

/// Maximum segment size and window scale, if the options say so before they end or
/// turn out malformed.
fn tcp_options(mut options: &[u8]) -> (Option<u16>, Option<u8>) {
    let (mut mss, mut shift) = (None, None);
    while let [kind, rest @ ..] = options {
        match (kind, rest) {
            (0, _) => break,
            (1, rest) => options = rest,
            (_, [length, ..]) if *length >= 2 && usize::from(*length) <= options.len() => {
                let value = &options[2..usize::from(*length)];
                match (kind, value) {
                    (2, [high, low]) => mss = Some(u16::from_be_bytes([*high, *low])),
                    // RFC 7323: 14 is the largest that means anything.
                    (3, [value]) => shift = Some((*value).min(14)),
                    _ => {}
                }
                options = &options[usize::from(*length)..];
            }
            _ => break,
        }
    }
    (mss, shift)
}

#[derive(Clone, Copy, Debug)]
pub struct Udp<'a> {
    pub source: u16,
    pub destination: u16,
    pub payload: &'a [u8],
}

#[cfg(test)]
mod tests;
