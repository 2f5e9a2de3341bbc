//! "Packet too big", both ways: the guest hears of a path of the host's that is smaller
//! than its packet, and says so of a path behind it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Context;
use super::tcp_flow::Key;
use crate::packet::{
    Headers, IPV4, IPV6, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, Packet, checksum,
    with_headers,
};

const HEADER: usize = 8;
/// What of the packet an answer quotes (RFC 1812, RFC 4443).
const QUOTED4: usize = 548;
const QUOTED6: usize = 1232;
/// Type and code of both versions.
const UNREACHABLE4: [u8; 2] = [3, 4];
const TOO_BIG6: [u8; 2] = [2, 0];
/// What links carry at least.
const LEAST4: u16 = 68;
const LEAST6: u16 = 1280;

/// Whether the guest forbids that its packet is cut on the way.
pub fn is_whole_only(packet: &Packet<'_>) -> bool {
    packet.source.is_ipv6() || packet.whole.get(6).is_some_and(|flags| flags & 0x40 != 0)
}

/// Tells the guest what the path takes.
pub(super) fn tell(context: &mut Context, packet: &Packet<'_>, mtu: u16) {
    let config = &context.config;
    let v4 = packet.source.is_ipv4();
    let (from, protocol, quoted) = if v4 {
        (IpAddr::V4(config.router4), PROTOCOL_ICMP, QUOTED4)
    } else {
        (IpAddr::V6(config.router6), PROTOCOL_ICMPV6, QUOTED6)
    };
    let mut message = vec![0; HEADER];
    message[..2].copy_from_slice(if v4 { &UNREACHABLE4 } else { &TOO_BIG6 });
    message[6..8].copy_from_slice(&mtu.to_be_bytes());
    message.extend(&packet.whole[..packet.whole.len().min(quoted)]);
    let sum = if v4 {
        checksum::of(&message)
    } else {
        checksum::transport(from, packet.source, protocol, &message)
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let headers = Headers {
        to_mac: config.guest_mac,
        from_mac: config.router_mac,
        source: from,
        destination: packet.source,
    };
    let frame = with_headers(&headers, protocol, &message);
    context.queue.push(&mut context.counters, frame);
}

/// What the guest says of one of its TCP connections: which, and how large packets to it
/// may be. None for every other message.
pub(super) fn heard(packet: &Packet<'_>) -> Option<(Key, u16)> {
    let v4 = packet.source.is_ipv4();
    let (kind, least) = if v4 { (UNREACHABLE4, LEAST4) } else { (TOO_BIG6, LEAST6) };
    let (header, quoted) = packet.payload.split_at_checked(HEADER)?;
    if header[..2] != kind {
        return None;
    }
    let mtu = match v4 {
        true => u16::from_be_bytes([header[6], header[7]]),
        false => u32::from_be_bytes([header[4], header[5], header[6], header[7]])
            .min(u32::from(u16::MAX)) as u16,
    };
    let length = if v4 { usize::from(quoted.first()? & 15) * 4 } else { IPV6 };
    if length < if v4 { IPV4 } else { IPV6 } || quoted.first()? >> 4 != if v4 { 4 } else { 6 } {
        return None;
    }
    let (protocol, source, destination) = if v4 {
        let at = |from: usize| -> Option<IpAddr> {
            let octets: [u8; 4] = quoted.get(from..from + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(octets).into())
        };
        (*quoted.get(9)?, at(12)?, at(16)?)
    } else {
        let at = |from: usize| -> Option<IpAddr> {
            let octets: [u8; 16] = quoted.get(from..from + 16)?.try_into().ok()?;
            Some(Ipv6Addr::from(octets).into())
        };
        (*quoted.get(6)?, at(8)?, at(24)?)
    };
    let ports = quoted.get(length..length + 4)?;
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    // Packets to the guest: the remote's port comes first.
    let key = Key {
        guest: SocketAddr::new(destination, port(2)),
        remote: SocketAddr::new(source, port(0)),
    };
    (protocol == PROTOCOL_TCP).then_some((key, mtu.max(least)))
}
