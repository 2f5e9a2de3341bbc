//! What a guest must not reach, and frames that make no sense.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use super::guest::{Connection, Guest};
use super::{Config, Limits, Policy, UserNetwork, open_network};
use crate::frame::{Offload, PartialChecksum, Reason};
use crate::packet::RST;
use crate::user::address::Destination;

#[test]
fn the_hosts_loopback_is_out_of_reach_by_default() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut guest = Guest::new(UserNetwork::new(Config::default()).unwrap());
    let mut connection = Connection::begin(&mut guest, port);
    guest.until("a reset", |guest| connection.take(guest).is_some_and(|flags| flags & RST != 0));
    let udp_port = socket.local_addr().unwrap().port();
    for address in ["10.0.2.2", "127.0.0.1", "0.0.0.0"] {
        let to = SocketAddr::new(address.parse().unwrap(), udp_port);
        guest.send_datagram(4000, to, b"knock");
    }
    assert_eq!(guest.network.counters().drops(Reason::Policy), 4);
    assert_eq!(guest.network.flows(), (0, 0, 0));
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(socket.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn loopback_in_disguise_is_still_loopback() {
    let config = Config::default();
    for address in [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "0.1.2.3",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "::ffff:0.0.0.0",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "fe80::1",
        "10.0.2.99",
        "fd00:6775:6973:6500::99",
    ] {
        let to = SocketAddr::new(address.parse().unwrap(), 80);
        assert_eq!(config.destination(to), Err(Reason::Policy), "{address}");
    }
    let outward: SocketAddr = "192.0.2.1:80".parse().unwrap();
    assert_eq!(config.destination(outward), Ok(Destination::Host(outward)));
    let policy = Policy { restrict: true, ..Policy::default() };
    let restricted = Config { policy, ..Config::default() };
    assert_eq!(restricted.destination(outward), Err(Reason::Policy));
    let policy = Policy { deny: vec![("192.0.2.0".parse().unwrap(), 24)], ..Policy::default() };
    let denied = Config { policy, ..Config::default() };
    assert_eq!(denied.destination(outward), Err(Reason::Policy));
}

#[test]
fn tables_have_limits() {
    let limits = Limits { tcp_flows: 3, udp_flows: 5, ..Limits::default() };
    let policy = Policy { host: true, ..Policy::default() };
    let network = UserNetwork::new(Config { limits, policy, ..Config::default() }).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut guest = Guest::new(network);
    let _open: Vec<Connection> = (0..3).map(|_| Connection::open(&mut guest, port)).collect();
    let mut refused = Connection::begin(&mut guest, port);
    guest.until("a reset", |guest| refused.take(guest).is_some_and(|flags| flags & RST != 0));
    for n in 0..20 {
        let to = SocketAddr::new("10.0.2.2".parse().unwrap(), 9000);
        guest.send_datagram(5000 + n, to, b"x");
    }
    let (tcp, udp, _) = guest.network.flows();
    assert_eq!((tcp, udp), (3, 5));
    assert_eq!(guest.network.counters().drops(Reason::Limit), 16);
}

/// A generator without state elsewhere, so that a seed is a test.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % below.max(1)
    }
}

/// Frames that are nearly right reach the deepest.
#[test]
fn mutated_frames_are_counted_and_nothing_breaks() {
    let mut guest = Guest::new(open_network());
    let (router, own) = guest.macs();
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    let ethernet = |kind: u16| {
        let mut frame = router.to_vec();
        frame.extend(own);
        frame.extend(kind.to_be_bytes());
        frame
    };
    // IPv4 with TCP, UDP, ICMP and DHCP; IPv6 with TCP and neighbour discovery; ARP.
    for (protocol, port) in [(6u8, 80u16), (17, 53), (17, 67), (1, 0)] {
        let mut frame = ethernet(0x0800);
        frame.extend([0x45, 0, 0, 128, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend([10, 0, 2, 15, 10, 0, 2, 2]);
        frame.extend(4000u16.to_be_bytes());
        frame.extend(port.to_be_bytes());
        frame.resize(14 + 128, 2);
        seeds.push(frame);
    }
    for protocol in [6u8, 58] {
        let mut frame = ethernet(0x86dd);
        frame.extend([0x60, 0, 0, 0, 0, 80, protocol, 255]);
        frame.extend(Config::default().guest6.octets());
        frame.extend(Config::default().router6.octets());
        frame.resize(14 + 40 + 80, 135);
        seeds.push(frame);
    }
    let mut arp = ethernet(0x0806);
    arp.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    arp.resize(42, 10);
    seeds.push(arp);

    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..60_000 {
        let mut frame = seeds[random.next(seeds.len())].clone();
        for _ in 0..random.next(6) {
            let at = random.next(frame.len());
            frame[at] = random.next(256) as u8;
        }
        if random.next(4) == 0 {
            frame.truncate(random.next(frame.len()));
        }
        // Make the IPv4 header's checksum right, or few would come further.
        if frame.len() >= 34 && frame[12..14] == [8, 0] {
            frame[24..26].fill(0);
            let length = (usize::from(frame[14] & 15) * 4).clamp(20, frame.len() - 14);
            let sum = crate::packet::checksum::of(&frame[14..14 + length]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        // Pretend that hardware checked the rest.
        let partial = PartialChecksum { start: 34, offset: 16 };
        let offload = Offload {
            partial_checksum: (random.next(2) == 0).then_some(partial),
            ..Offload::default()
        };
        guest.network.input(&frame, offload);
        if random.next(50) == 0 {
            guest.turn();
            guest.frames.clear();
        }
    }
    let counters = guest.network.counters();
    assert_eq!(counters.frames_in, 60_000);
    assert!(counters.drops(Reason::Malformed) > 1000, "{counters:?}");
    let (tcp, udp, echo) = guest.network.flows();
    let limits = Limits::default();
    assert!(tcp <= limits.tcp_flows && udp <= limits.udp_flows && echo <= limits.echo_flows);
}
