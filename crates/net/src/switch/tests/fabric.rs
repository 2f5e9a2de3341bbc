use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::fabric::{Fabric, MOST_LEARNED, Own, Port, To, Verdict};
use super::*;
use crate::packet::{Headers, PROTOCOL_ICMPV6, with_headers};

const GATEWAY: Mac = [2, 0, 0, 0, 0, 0xfe];

fn mac(number: usize) -> Mac {
    [2, 0, 0, 0, 1, number as u8]
}

fn address(number: usize) -> [IpAddr; 2] {
    let six = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 10 + number as u16);
    [Ipv4Addr::new(10, 0, 0, 10 + number as u8).into(), six.into()]
}

/// Three ports on one VLAN.
fn fabric() -> Fabric {
    let addresses = vec![Ipv4Addr::new(10, 0, 0, 2).into()];
    let mut fabric = Fabric::new(Own { mac: GATEWAY, addresses });
    for number in 0..3 {
        assert!(fabric.insert(number, Port::new(mac(number), 0, false, address(number))));
    }
    fabric
}

fn plain(from: Mac, to: Mac) -> Vec<u8> {
    [&to[..], &from, &[0x88, 0xb5], &[0; 46]].concat()
}

fn input(fabric: &mut Fabric, from: usize, frame: &[u8]) -> Result<Verdict, Reason> {
    fabric.input(from, frame, Instant::now())
}

#[test]
fn learned_addresses_are_few_and_age() {
    let mut fabric = fabric();
    let now = Instant::now();
    let behind = |n: u8| [2, 0, 0, 0, 9, n];
    for n in 0..MOST_LEARNED as u8 {
        assert!(fabric.input(0, &plain(behind(n), mac(1)), now).is_ok());
    }
    let one_more = plain(behind(99), mac(1));
    assert_eq!(fabric.input(0, &one_more, now), Err(Reason::Limit));
    let answer = plain(mac(1), behind(3));
    let verdict = Verdict { to: To::One(0), gateway: false };
    assert_eq!(fabric.input(1, &answer, now), Ok(verdict));
    // Another port may not take it while it lives; later it may.
    let stolen = plain(behind(3), mac(2));
    assert_eq!(fabric.input(1, &stolen, now), Err(Reason::Spoofed));
    let later = now + Duration::from_secs(301);
    assert!(fabric.input(1, &stolen, later).is_ok());
    assert!(fabric.input(0, &one_more, later).is_ok());
    assert_eq!(fabric.port(0).unwrap().learned, MOST_LEARNED);
    // The table is full, but what is old makes room.
    assert!(fabric.input(0, &plain(behind(98), mac(1)), later).is_ok());
    assert_eq!(fabric.port(0).unwrap().learned, MOST_LEARNED);
    assert!(fabric.remove(1));
    assert_eq!(fabric.input(0, &answer_to(behind(3)), later), Err(Reason::Unreachable));
}

fn answer_to(to: Mac) -> Vec<u8> {
    plain(mac(0), to)
}

#[test]
fn owners_take_their_address_back_from_who_used_it() {
    let mut fabric = fabric();
    assert!(input(&mut fabric, 0, &plain(mac(7), mac(1))).is_ok());
    assert!(fabric.insert(7, Port::new(mac(7), 0, false, address(7))));
    assert_eq!(fabric.port(0).unwrap().learned, 0);
    assert_eq!(input(&mut fabric, 0, &plain(mac(7), mac(1))), Err(Reason::Spoofed));
    assert!(!fabric.insert(8, Port::new(mac(7), 0, false, address(8))));
    assert!(!fabric.insert(8, Port::new(mac(8), 0, false, address(7))));
    assert!(!fabric.insert(8, Port::new(GATEWAY, 0, false, address(8))));
}

#[test]
fn frames_that_no_port_may_send() {
    let mut fabric = fabric();
    let tagged = [&mac(1)[..], &mac(0), &[0x81, 0, 0, 5, 8, 0], &[0; 46]].concat();
    assert_eq!(input(&mut fabric, 0, &tagged), Err(Reason::Unsupported));
    let bridge = plain(mac(0), [1, 0x80, 0xc2, 0, 0, 0]);
    assert_eq!(input(&mut fabric, 0, &bridge), Err(Reason::Unsupported));
    assert_eq!(input(&mut fabric, 0, &plain([3; 6], mac(1))), Err(Reason::Malformed));
    assert_eq!(input(&mut fabric, 0, &plain(GATEWAY, mac(1))), Err(Reason::Spoofed));
    assert_eq!(input(&mut fabric, 0, &[0; 13]), Err(Reason::Malformed));
    assert_eq!(input(&mut fabric, 9, &plain(mac(0), mac(1))), Err(Reason::Unreachable));
}

fn six(source: &str, payload: &[u8], protocol: u8) -> Vec<u8> {
    let headers = Headers {
        to_mac: [0x33, 0x33, 0, 0, 0, 1],
        from_mac: mac(0),
        source: source.parse().unwrap(),
        destination: "ff02::1".parse().unwrap(),
    };
    with_headers(&headers, protocol, payload)
}

#[test]
fn neighbour_discovery_cannot_lie() {
    let mut fabric = fabric();
    let advertise = |target: &str| {
        let target: Ipv6Addr = target.parse().unwrap();
        [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &target.octets()].concat()
    };
    let own = "fe80::ff:fe00:100";
    let mut check = |frame: Vec<u8>| input(&mut fabric, 0, &frame).err();
    assert_eq!(check(six(own, &advertise("fd00::a"), PROTOCOL_ICMPV6)), None);
    assert_eq!(check(six(own, &advertise("fd00::b"), PROTOCOL_ICMPV6)), Some(Reason::Spoofed));
    // What another makes of its MAC: in the prefix and on the link.
    for target in ["fe80::ff:fe00:101", "fd00::ff:fe00:101"] {
        assert_eq!(check(six(own, &advertise(target), PROTOCOL_ICMPV6)), Some(Reason::Spoofed));
    }
    let router = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(check(six(own, &router, PROTOCOL_ICMPV6)), Some(Reason::Spoofed));
    // The same behind an option header, and in a fragment.
    let behind = [&[PROTOCOL_ICMPV6, 0, 1, 4, 0, 0, 0, 0][..], &router].concat();
    assert_eq!(check(six(own, &behind, 60)), Some(Reason::Spoofed));
    let solicit = [&[PROTOCOL_ICMPV6, 0, 0, 1, 0, 0, 0, 1][..], &[135; 24]].concat();
    assert_eq!(check(six(own, &solicit, 44)), Some(Reason::Spoofed));
    assert_eq!(check(six("fd00::b", &[58, 0], 59)), Some(Reason::Spoofed));
    assert_eq!(check(six(own, &[0; 3], 0)), Some(Reason::Malformed));
}

#[test]
fn only_the_gateway_answers_dhcp() {
    let mut fabric = fabric();
    let at = |ip: [u8; 4], port| SocketAddr::new(ip.into(), port);
    let mut frame = vec![0; 342];
    let macs = ([0xff; 6], mac(0));
    udp_frame(&mut frame, macs, at([10, 0, 0, 10], 67), at([255; 4], 68), 300, Receives::default());
    assert_eq!(input(&mut fabric, 0, &frame), Err(Reason::Spoofed));
    udp_frame(&mut frame, macs, at([0; 4], 68), at([255; 4], 67), 300, Receives::default());
    let verdict = Verdict { to: To::All, gateway: true };
    assert_eq!(input(&mut fabric, 0, &frame), Ok(verdict));
}
