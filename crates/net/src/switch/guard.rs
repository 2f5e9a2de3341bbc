//! What a frame claims: for which addresses its sender speaks, and whether it says what
//! only the gateway may say (DHCP answers, router advertisements, redirects).
//!
//! IPv6 extension headers are walked, and fragments of neighbour discovery refused
//! (RFC 6980), so that neither hides a claim.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{ArpPacket, ArpRepr};

use crate::frame::Reason;
use crate::packet::extension::upper;
use crate::packet::{
    Ethernet, Mac, PROTOCOL_ICMPV6, PROTOCOL_UDP, Packet, TYPE_ARP, TYPE_IPV4, TYPE_IPV6,
};

/// VLAN tags: a port is on one VLAN and knows nothing of it.
const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];
const DHCP_SERVER: [u8; 2] = 67u16.to_be_bytes();
const DHCPV6_SERVER: [u8; 2] = 547u16.to_be_bytes();
const NEIGHBOUR_DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// The addresses that a frame's sender claims as its own.
pub fn claims(ethernet: &Ethernet<'_>) -> Result<[Option<IpAddr>; 2], Reason> {
    match ethernet.kind {
        TYPE_ARP => arp(ethernet),
        TYPE_IPV4 => ipv4(&Packet::parse(TYPE_IPV4, ethernet.payload)?),
        TYPE_IPV6 => ipv6(&Packet::parse(TYPE_IPV6, ethernet.payload)?),
        kind if TAGS.contains(&kind) => Err(Reason::Unsupported),
        _ => Ok([None; 2]),
    }
}

fn specified(address: IpAddr) -> Option<IpAddr> {
    (!address.is_unspecified()).then_some(address)
}

fn arp(ethernet: &Ethernet<'_>) -> Result<[Option<IpAddr>; 2], Reason> {
    let packet = ArpPacket::new_checked(ethernet.payload).map_err(|_| Reason::Malformed)?;
    let ArpRepr::EthernetIpv4 { source_hardware_addr, source_protocol_addr, .. } =
        ArpRepr::parse(&packet).map_err(|_| Reason::Malformed)?
    else {
        return Err(Reason::Unsupported);
    };
    if source_hardware_addr.0 != ethernet.source {
        return Err(Reason::Spoofed);
    }
    let address = Ipv4Addr::from(source_protocol_addr.octets());
    Ok([specified(address.into()), None])
}

fn ipv4(packet: &Packet<'_>) -> Result<[Option<IpAddr>; 2], Reason> {
    let first = !packet.fragment
        || crate::packet::extension::fragment4(packet).is_some_and(|fragment| fragment.offset == 0);
    if first && packet.protocol == PROTOCOL_UDP {
        match packet.payload.get(..2) {
            None => return Err(Reason::Malformed),
            Some(port) if port == DHCP_SERVER => return Err(Reason::Spoofed),
            Some(_) => {}
        }
    }
    Ok([specified(packet.source), None])
}

fn ipv6(packet: &Packet<'_>) -> Result<[Option<IpAddr>; 2], Reason> {
    let upper = upper(packet)?;
    let first = upper.fragment.is_none_or(|fragment| fragment.offset == 0);
    let mut target = None;
    if first && upper.protocol == PROTOCOL_UDP && upper.payload.get(..2) == Some(&DHCPV6_SERVER) {
        return Err(Reason::Spoofed);
    }
    if first && upper.protocol == PROTOCOL_ICMPV6 {
        let kind = *upper.payload.first().ok_or(Reason::Malformed)?;
        let hidden = upper.fragment.is_some() && NEIGHBOUR_DISCOVERY.contains(&kind);
        if hidden || kind == ROUTER_ADVERTISEMENT || kind == REDIRECT {
            return Err(Reason::Spoofed);
        }
        if kind == NEIGHBOUR_ADVERTISEMENT {
            let octets: [u8; 16] = upper
                .payload
                .get(8..24)
                .and_then(|bytes| bytes.try_into().ok())
                .ok_or(Reason::Malformed)?;
            target = specified(Ipv6Addr::from(octets).into());
        }
    }
    Ok([specified(packet.source), target])
}

/// The last 64 bits of addresses that an interface makes of its MAC (RFC 4291).
pub fn interface_identifier(mac: Mac) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// An address in the /64 of another.
pub fn with_identifier(prefix: Ipv6Addr, identifier: u64) -> Ipv6Addr {
    Ipv6Addr::from((u128::from(prefix) >> 64) << 64 | u128::from(identifier))
}
