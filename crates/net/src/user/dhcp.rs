//! DHCP: the guest gets its one address, the router, the resolver, the MTU.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use smoltcp::wire::{
    DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr,
};

use super::Context;
use crate::frame::{Offload, Reason, Receives};
use crate::packet::{ETHERNET, IPV4, Packet, UDP, udp_frame};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    Yes,
    No,
}

const LEASE_SECONDS: u32 = 86_400;
const OPTION_HOST_NAME: u8 = 12;
const OPTION_MTU: u8 = 26;

/// Takes a datagram if it is for the DHCP server.
pub fn input(
    context: &mut Context,
    packet: &Packet<'_>,
    offload: &Offload,
) -> Result<Handled, Reason> {
    let IpAddr::V4(source) = packet.source else { return Ok(Handled::No) };
    let udp = packet.udp(offload)?;
    let config = &context.config;
    let to_us = packet.destination == Ipv4Addr::BROADCAST || packet.destination == config.router4;
    if udp.destination != DHCP_SERVER_PORT || !to_us {
        return Ok(Handled::No);
    }
    if !(source.is_unspecified() || source == config.guest4) {
        return Err(Reason::Spoofed);
    }
    let message = DhcpPacket::new_checked(udp.payload).map_err(|_| Reason::Malformed)?;
    let message = DhcpRepr::parse(&message).map_err(|_| Reason::Malformed)?;
    if message.client_hardware_address.0 != config.guest_mac {
        return Err(Reason::Spoofed);
    }
    let for_other = message.server_identifier.is_some_and(|server| server != config.router4);
    let wanted = message.requested_ip.unwrap_or(message.client_ip);
    let answer = match message.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if for_other => return Ok(Handled::Yes),
        DhcpMessageType::Request if wanted == config.guest4 => DhcpMessageType::Ack,
        DhcpMessageType::Request => DhcpMessageType::Nak,
        DhcpMessageType::Inform => DhcpMessageType::Ack,
        _ => return Ok(Handled::Yes),
    };
    send(context, &message, answer)
}

fn send(
    context: &mut Context,
    question: &DhcpRepr<'_>,
    message_type: DhcpMessageType,
) -> Result<Handled, Reason> {
    let config = &context.config;
    let gives = message_type != DhcpMessageType::Nak;
    let leases = gives && question.message_type != DhcpMessageType::Inform;
    let mtu = config.mtu.to_be_bytes();
    let mut options = Vec::new();
    if gives {
        options.push(DhcpOption { kind: OPTION_MTU, data: &mtu });
        if let Some(name) = &config.host_name {
            options.push(DhcpOption { kind: OPTION_HOST_NAME, data: name.as_bytes() });
        }
    }
    let mask = Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(config.prefix4)).unwrap_or(0));
    let answer = DhcpRepr {
        message_type,
        transaction_id: question.transaction_id,
        secs: 0,
        client_hardware_address: question.client_hardware_address,
        client_ip: question.client_ip,
        your_ip: if leases { config.guest4 } else { Ipv4Addr::UNSPECIFIED },
        server_ip: config.router4,
        router: gives.then_some(config.router4),
        subnet_mask: gives.then_some(mask),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: question.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(config.router4),
        parameter_request_list: None,
        dns_servers: gives.then(|| [config.dns4].into_iter().collect()),
        max_size: None,
        lease_duration: leases.then_some(LEASE_SECONDS),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &options,
    };
    let headers = ETHERNET + IPV4 + UDP;
    let size = answer.buffer_len();
    let mut frame = vec![0; headers + size];
    answer
        .emit(&mut DhcpPacket::new_unchecked(&mut frame[headers..]))
        .map_err(|_| Reason::Malformed)?;
    let to = if question.broadcast || !gives { Ipv4Addr::BROADCAST } else { config.guest4 };
    let from = SocketAddr::new(config.router4.into(), DHCP_SERVER_PORT);
    let to = SocketAddr::new(to.into(), DHCP_CLIENT_PORT);
    let mac = (config.guest_mac, config.router_mac);
    udp_frame(&mut frame, mac, from, to, size, Receives::default());
    context.queue.push(&mut context.counters, frame);
    Ok(Handled::Yes)
}
