//! What the router itself offers: addresses, neighbours, names, echo.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress,
    Icmpv6Packet, Icmpv6Repr, NdiscRepr,
};

use super::guest::Guest;
use crate::frame::{Offload, Reason};
use crate::packet::{
    Ethernet, Headers, PROTOCOL_ICMP, PROTOCOL_ICMPV6, Packet, TYPE_ARP, checksum, udp_frame,
    with_headers,
};
use crate::user::{Config, Policy, UserNetwork};

fn guest() -> Guest {
    Guest::new(UserNetwork::new(Config::default()).unwrap())
}

fn arp_request(guest: &Guest, from: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let (router, own) = guest.macs();
    let request = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(own),
        source_protocol_addr: from,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: target,
    };
    let mut frame = vec![0; 14 + request.buffer_len()];
    frame[..6].copy_from_slice(&router);
    frame[6..12].copy_from_slice(&own);
    frame[12..14].copy_from_slice(&TYPE_ARP.to_be_bytes());
    request.emit(&mut ArpPacket::new_unchecked(&mut frame[14..]));
    frame
}

#[test]
fn the_router_answers_arp_for_itself_only() {
    let mut guest = guest();
    let config = Config::default();
    for (target, answers) in
        [(config.router4, 1), (config.dns4, 1), (config.guest4, 0), (Ipv4Addr::new(10, 0, 2, 9), 0)]
    {
        let frame = arp_request(&guest, config.guest4, target);
        guest.network.input(&frame, Offload::default());
        guest.turn();
        assert_eq!(guest.frames.drain(..).count(), answers, "{target}");
    }
    let spoofed = arp_request(&guest, Ipv4Addr::new(10, 0, 2, 99), config.router4);
    guest.network.input(&spoofed, Offload::default());
    guest.turn();
    assert!(guest.frames.is_empty());
    assert_eq!(guest.network.counters().drops(Reason::Spoofed), 1);
}

fn dhcp(guest: &mut Guest, kind: DhcpMessageType, wanted: Option<Ipv4Addr>) -> DhcpMessageType {
    let (_, own) = guest.macs();
    let question = DhcpRepr {
        message_type: kind,
        transaction_id: 0x1234_5678,
        secs: 0,
        client_hardware_address: EthernetAddress(own),
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: Ipv4Addr::UNSPECIFIED,
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: None,
        subnet_mask: None,
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: true,
        requested_ip: wanted,
        client_identifier: None,
        server_identifier: None,
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let mut bytes = vec![0; question.buffer_len()];
    question.emit(&mut DhcpPacket::new_unchecked(&mut bytes)).unwrap();
    let from = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 68);
    let to = SocketAddr::new(Ipv4Addr::BROADCAST.into(), 67);
    let mut frame = vec![0; 42 + bytes.len()];
    frame[42..].copy_from_slice(&bytes);
    let macs = ([0xff; 6], own);
    crate::packet::udp_frame(&mut frame, macs, from, to, bytes.len(), Default::default());
    guest.network.input(&frame, Offload::default());
    let (_, answer) = guest.receive_datagram(68);
    let packet = DhcpPacket::new_checked(answer.as_slice()).unwrap();
    let answer = DhcpRepr::parse(&packet).unwrap();
    assert_eq!(answer.transaction_id, 0x1234_5678);
    if answer.message_type != DhcpMessageType::Nak {
        let config = Config::default();
        assert_eq!(answer.your_ip, config.guest4);
        assert_eq!(answer.router, Some(config.router4));
        assert_eq!(answer.subnet_mask, Some(Ipv4Addr::new(255, 255, 255, 0)));
        assert_eq!(answer.dns_servers.unwrap().as_slice(), [config.dns4]);
    }
    answer.message_type
}

#[test]
fn dhcp_gives_the_one_address() {
    let mut guest = guest();
    let own = Config::default().guest4;
    assert_eq!(dhcp(&mut guest, DhcpMessageType::Discover, None), DhcpMessageType::Offer);
    assert_eq!(dhcp(&mut guest, DhcpMessageType::Request, Some(own)), DhcpMessageType::Ack);
    let other = Some(Ipv4Addr::new(10, 0, 2, 77));
    assert_eq!(dhcp(&mut guest, DhcpMessageType::Request, other), DhcpMessageType::Nak);
}

#[test]
fn the_router_answers_echo_requests() {
    let mut guest = guest();
    let config = Config::default();
    let pairs: [(IpAddr, IpAddr, u8); 2] = [
        (config.guest4.into(), config.router4.into(), 8),
        (config.guest6.into(), config.router6.into(), 128),
    ];
    for (source, destination, kind) in pairs {
        let protocol = if source.is_ipv4() { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 };
        let mut message = vec![kind, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7];
        let sum = if source.is_ipv4() {
            checksum::of(&message)
        } else {
            checksum::transport(source, destination, protocol, &message)
        };
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let (to_mac, from_mac) = guest.macs();
        let headers = Headers { to_mac, from_mac, source, destination };
        guest.network.input(&with_headers(&headers, protocol, &message), Offload::default());
        guest.turn();
        let (frame, _) = guest.frames.pop_front().expect("an answer");
        let ethernet = Ethernet::parse(&frame).unwrap();
        let packet = Packet::parse(ethernet.kind, ethernet.payload).unwrap();
        assert_eq!((packet.source, packet.destination), (destination, source));
        assert_eq!(packet.payload[4..], message[4..]);
        assert_eq!(packet.payload[0], if kind == 8 { 0 } else { 129 });
    }
}

#[test]
fn router_solicitations_are_answered_with_a_prefix() {
    let mut guest = guest();
    let source: std::net::Ipv6Addr = "fe80::5054:ff:fe12:3456".parse().unwrap();
    let destination: std::net::Ipv6Addr = "ff02::2".parse().unwrap();
    let mut message = vec![133, 0, 0, 0, 0, 0, 0, 0];
    let sum = checksum::transport(source.into(), destination.into(), PROTOCOL_ICMPV6, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let headers = Headers {
        to_mac: [0x33, 0x33, 0, 0, 0, 2],
        from_mac: guest.macs().1,
        source: source.into(),
        destination: destination.into(),
    };
    let mut frame = with_headers(&headers, PROTOCOL_ICMPV6, &message);
    frame[21] = 255;
    guest.network.input(&frame, Offload::default());
    guest.turn();
    let (answer, _) = guest.frames.pop_front().expect("an advertisement");
    let ethernet = Ethernet::parse(&answer).unwrap();
    let packet = Packet::parse(ethernet.kind, ethernet.payload).unwrap();
    let (IpAddr::V6(from), IpAddr::V6(to)) = (packet.source, packet.destination) else {
        panic!("not IPv6");
    };
    let parsed = Icmpv6Repr::parse(
        &from,
        &to,
        &Icmpv6Packet::new_checked(packet.payload).unwrap(),
        &Default::default(),
    );
    let Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert { prefix_info, mtu, .. }) = parsed.unwrap()
    else {
        panic!("not an advertisement");
    };
    let prefix = prefix_info.unwrap();
    assert_eq!((prefix.prefix_len, mtu), (64, Some(1500)));
    assert_eq!(prefix.prefix, "fd00:6775:6973:6500::".parse::<std::net::Ipv6Addr>().unwrap());
}

#[test]
fn names_of_the_network_resolve_without_the_host() {
    let names = [("web".to_owned(), vec!["10.0.2.16".parse().unwrap()])].into();
    let policy = Policy { restrict: true, ..Policy::default() };
    let config = Config { names, policy, ..Config::default() };
    let dns = SocketAddr::new(config.dns4.into(), 53);
    let mut guest = Guest::new(UserNetwork::new(config).unwrap());
    let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x00\x00\x01\x00\x01";
    guest.send_datagram(4000, dns, query);
    let (source, answer) = guest.receive_datagram(4000);
    assert_eq!(source, dns);
    assert_eq!(answer[answer.len() - 4..], [10, 0, 2, 16]);
}

/// Sends a message to all DHCPv6 servers, and takes the answer.
fn dhcpv6(guest: &mut Guest, message: &[u8]) -> Option<Vec<u8>> {
    let from = SocketAddr::new("fe80::5054:ff:fe12:3456".parse().unwrap(), 546);
    let to = SocketAddr::new("ff02::1:2".parse().unwrap(), 547);
    let mut frame = vec![0; 62 + message.len()];
    frame[62..].copy_from_slice(message);
    let macs = ([0x33, 0x33, 0, 1, 0, 2], guest.macs().1);
    udp_frame(&mut frame, macs, from, to, message.len(), Default::default());
    guest.network.input(&frame, Offload::default());
    guest.turn();
    let (answer, offload) = guest.frames.pop_front()?;
    let ethernet = Ethernet::parse(&answer).unwrap();
    let packet = Packet::parse(ethernet.kind, ethernet.payload).unwrap();
    assert_eq!(packet.destination, from.ip());
    let udp = packet.udp(&offload).expect("a good datagram");
    assert_eq!((udp.source, udp.destination), (547, 546));
    Some(udp.payload.to_vec())
}

#[test]
fn dhcpv6_gives_the_one_address() {
    let mut guest = guest();
    let client = [&[0, 1, 0, 10, 0, 3, 0, 1][..], &guest.macs().1].concat();
    let server = [&[0, 2, 0, 10, 0, 3, 0, 1][..], &guest.macs().0].concat();
    let association = [&[0, 3, 0, 12, 0, 0, 0, 9][..], &[0; 8]].concat();
    let config = Config::default();
    let given = config.guest6.octets();
    let has = |answer: &[u8], part: &[u8]| answer.windows(part.len()).any(|at| at == part);

    let solicit = [&[1, 1, 2, 3][..], &client, &association].concat();
    let answer = dhcpv6(&mut guest, &solicit).expect("an advertisement");
    assert_eq!(answer[..4], [2, 1, 2, 3]);
    assert!(has(&answer, &given) && has(&answer, &server) && has(&answer, &client));
    assert!(has(&answer, &config.dns6.octets()));
    let request = [&[3, 4, 5, 6][..], &client, &server, &association].concat();
    let answer = dhcpv6(&mut guest, &request).expect("a reply");
    assert_eq!(answer[..4], [7, 4, 5, 6]);
    assert!(has(&answer, &given));
    let rapid = [&[1, 0, 0, 1][..], &client, &association, &[0, 14, 0, 0]].concat();
    assert_eq!(dhcpv6(&mut guest, &rapid).expect("a reply")[0], 7);
    let information = [11, 0, 0, 2];
    let answer = dhcpv6(&mut guest, &information).expect("a reply");
    assert!(!has(&answer, &given) && has(&answer, &config.dns6.octets()));

    // For another server, and without what has to be said.
    let mut other = request.clone();
    other[4 + client.len() + 9] ^= 1;
    assert_eq!(dhcpv6(&mut guest, &other), None);
    for length in 0..request.len() {
        dhcpv6(&mut guest, &request[..length]);
    }
    assert!(guest.network.counters().drops(Reason::Malformed) > 0);
}

#[test]
fn a_guest_cannot_be_the_router() {
    let mut guest = guest();
    let config = Config::default();
    let mut send = |kind: u8, source: &str, target: std::net::Ipv6Addr| {
        let source: std::net::Ipv6Addr = source.parse().unwrap();
        let destination: std::net::Ipv6Addr = "ff02::1".parse().unwrap();
        let mut message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat();
        let sum = checksum::transport(source.into(), destination.into(), 58, &message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let headers = Headers {
            to_mac: [0x33, 0x33, 0, 0, 0, 1],
            from_mac: guest.macs().1,
            source: source.into(),
            destination: destination.into(),
        };
        let mut frame = with_headers(&headers, PROTOCOL_ICMPV6, &message);
        frame[21] = 255;
        guest.network.input(&frame, Offload::default());
        guest.turn();
        guest.network.counters().drops(Reason::Spoofed)
    };
    let own = "fe80::5054:ff:fe12:3456";
    assert_eq!(send(136, own, config.guest6), 0);
    assert_eq!(send(136, own, config.router6), 1);
    // With an MTU option, as advertisements have.
    assert_eq!(send(134, own, "fd00::501:0:0:5dc".parse().unwrap()), 2);
    // In another's name.
    assert_eq!(send(135, "2001:db8::1", config.router6), 3);
}
