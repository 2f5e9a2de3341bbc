//! Who is on the link: ARP, neighbour discovery, router advertisements.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::Duration;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, Icmpv6Packet, Icmpv6Repr,
    NdiscNeighborFlags, NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr, NdiscRouterFlags,
};

use super::{Config, Context};
use crate::frame::Reason;
use crate::packet::{Headers, Mac, PROTOCOL_ICMPV6, Packet, TYPE_ARP, checksum, with_headers};

/// Whether a packet was for the link itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    Yes,
    No,
}

/// Neighbour discovery counts only when it comes from the link (RFC 4861).
const ON_LINK: u8 = 255;
const LIFETIME: Duration = Duration::from_secs(86_400);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

pub fn arp(context: &mut Context, bytes: &[u8]) -> Result<(), Reason> {
    let packet = ArpPacket::new_checked(bytes).map_err(|_| Reason::Malformed)?;
    let ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = ArpRepr::parse(&packet).map_err(|_| Reason::Malformed)?
    else {
        return Err(Reason::Unsupported);
    };
    let config = &context.config;
    let probe = source_protocol_addr == Ipv4Addr::UNSPECIFIED;
    if source_hardware_addr.0 != config.guest_mac
        || !(probe || source_protocol_addr == config.guest4)
    {
        return Err(Reason::Spoofed);
    }
    let ours = target_protocol_addr == config.router4 || target_protocol_addr == config.dns4;
    if operation != ArpOperation::Request || !ours {
        return Ok(());
    }
    let answer = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(config.router_mac),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    let mut frame = vec![0; 14 + answer.buffer_len()];
    frame[..6].copy_from_slice(&config.guest_mac);
    frame[6..12].copy_from_slice(&config.router_mac);
    frame[12..14].copy_from_slice(&TYPE_ARP.to_be_bytes());
    answer.emit(&mut ArpPacket::new_unchecked(&mut frame[14..]));
    context.queue.push(&mut context.counters, frame);
    Ok(())
}

/// The router's address on the link, made of its MAC as guests make theirs.
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let pair = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f))
}

pub fn icmpv6(context: &mut Context, packet: &Packet<'_>) -> Result<Handled, Reason> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.source, packet.destination) else {
        return Err(Reason::Malformed);
    };
    let message = Icmpv6Packet::new_checked(packet.payload).map_err(|_| Reason::Malformed)?;
    if !message.msg_type().is_ndisc() {
        return Ok(if message.msg_type().is_mld() { Handled::Yes } else { Handled::No });
    }
    if packet.hop_limit != ON_LINK {
        return Err(Reason::Spoofed);
    }
    if !source.is_unspecified() {
        context.check_source(source.into())?;
    }
    let checks = ChecksumCapabilities::default();
    let parsed = Icmpv6Repr::parse(&source, &destination, &message, &checks);
    match parsed.map_err(|_| Reason::Malformed)? {
        Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, .. }) => {
            let config = &context.config;
            let own = link_local(config.router_mac);
            if [own, config.router6, config.dns6].contains(&target_addr) {
                let to = if source.is_unspecified() { ALL_NODES } else { source };
                advertise_neighbour(context, target_addr, to);
            }
        }
        Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert { target_addr, .. }) => {
            let config = &context.config;
            let own = link_local(config.router_mac);
            if [own, config.router6, config.dns6].contains(&target_addr) {
                return Err(Reason::Spoofed);
            }
        }
        Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { .. }) => advertise_router(context),
        // The router alone says these.
        Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert { .. } | NdiscRepr::Redirect { .. }) => {
            return Err(Reason::Spoofed);
        }
        _ => {}
    }
    Ok(Handled::Yes)
}

fn advertise_neighbour(context: &mut Context, target: Ipv6Addr, to: Ipv6Addr) {
    let flags = NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE;
    let flags = if to == ALL_NODES { flags } else { flags | NdiscNeighborFlags::SOLICITED };
    let lladdr = Some(EthernetAddress(context.config.router_mac).into());
    let message = NdiscRepr::NeighborAdvert { flags, target_addr: target, lladdr };
    send(context, target, to, message, &[]);
}

fn advertise_router(context: &mut Context) {
    let config = &context.config;
    let prefix = u128::from(config.guest6) & !(u128::MAX >> config.prefix6.min(127));
    let message = NdiscRepr::RouterAdvert {
        hop_limit: 64,
        // Addresses and more are to be had by DHCPv6 too.
        flags: NdiscRouterFlags::MANAGED | NdiscRouterFlags::OTHER,
        router_lifetime: Duration::from_secs(9000),
        reachable_time: Duration::from_secs(0),
        retrans_time: Duration::from_secs(0),
        lladdr: Some(EthernetAddress(config.router_mac).into()),
        mtu: Some(u32::from(config.mtu.max(1280))),
        prefix_info: Some(NdiscPrefixInformation {
            prefix_len: config.prefix6,
            flags: NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF,
            valid_lifetime: LIFETIME,
            preferred_lifetime: LIFETIME,
            prefix: Ipv6Addr::from(prefix),
        }),
    };
    let own = link_local(config.router_mac);
    let resolver = resolver_option(config);
    send(context, own, ALL_NODES, message, &resolver);
}

/// Where queries for names go (RFC 8106), which smoltcp does not write.
fn resolver_option(config: &Config) -> Vec<u8> {
    let mut option = vec![25, 3, 0, 0];
    option.extend((LIFETIME.secs() as u32).to_be_bytes());
    option.extend(config.dns6.octets());
    option
}

/// Sends a message of neighbour discovery, with further options after smoltcp's.
fn send(
    context: &mut Context,
    from: Ipv6Addr,
    to: Ipv6Addr,
    message: NdiscRepr<'_>,
    options: &[u8],
) {
    let message = Icmpv6Repr::Ndisc(message);
    let mut bytes = vec![0; message.buffer_len()];
    let mut checks = ChecksumCapabilities::ignored();
    checks.icmpv6 = smoltcp::phy::Checksum::None;
    message.emit(&from, &to, &mut Icmpv6Packet::new_unchecked(&mut bytes), &checks);
    bytes.extend(options);
    bytes[2..4].fill(0);
    let sum = checksum::transport(from.into(), to.into(), PROTOCOL_ICMPV6, &bytes);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    let headers = Headers {
        to_mac: context.config.guest_mac,
        from_mac: context.config.router_mac,
        source: from.into(),
        destination: to.into(),
    };
    let mut frame = with_headers(&headers, PROTOCOL_ICMPV6, &bytes);
    frame[14 + 7] = ON_LINK;
    context.queue.push(&mut context.counters, frame);
}
