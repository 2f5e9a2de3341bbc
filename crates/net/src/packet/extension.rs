//! IPv6 extension headers: how far they go, and what stands behind them.

use super::{Packet, word};
use crate::frame::Reason;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
/// More than any stack sends.
const MOST: usize = 8;

/// A piece of a larger packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    pub identification: u32,
    /// In bytes.
    pub offset: usize,
    pub more: bool,
}

/// What follows the extension headers of an IPv6 packet.
#[derive(Clone, Copy, Debug)]
pub struct Upper<'a> {
    pub protocol: u8,
    pub payload: &'a [u8],
    pub fragment: Option<Fragment>,
}

/// Walks the extension headers; behind a fragment's header the walk ends.
pub fn upper<'a>(packet: &Packet<'a>) -> Result<Upper<'a>, Reason> {
    let mut protocol = packet.protocol;
    let mut payload = packet.payload;
    for _ in 0..=MOST {
        let length = match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                payload.get(1).map(|&length| (usize::from(length) + 1) * 8)
            }
            AUTHENTICATION => payload.get(1).map(|&length| (usize::from(length) + 2) * 4),
            FRAGMENT => {
                let (header, rest) = payload.split_at_checked(8).ok_or(Reason::Malformed)?;
                let field = word(header, 2);
                let fragment = Fragment {
                    identification: super::double(header, 4),
                    offset: usize::from(field & !7),
                    more: field & 1 != 0,
                };
                return Ok(Upper { protocol: header[0], payload: rest, fragment: Some(fragment) });
            }
            _ => return Ok(Upper { protocol, payload, fragment: None }),
        };
        let rest = length.and_then(|length| payload.get(length..)).ok_or(Reason::Malformed)?;
        protocol = payload[0];
        payload = rest;
    }
    Err(Reason::Unsupported)
}

/// The fragment that an IPv4 packet is.
pub fn fragment4(packet: &Packet<'_>) -> Option<Fragment> {
    let bytes = packet.whole;
    let field = word(bytes, 6);
    packet.fragment.then(|| Fragment {
        identification: u32::from(word(bytes, 4)),
        offset: usize::from(field & 0x1fff) * 8,
        more: field & 0x2000 != 0,
    })
}
