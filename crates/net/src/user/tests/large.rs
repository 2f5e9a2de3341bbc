//! Datagrams that are larger than the link, paths that are smaller, and resolvers that
//! answer what was not asked.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use super::guest::{Connection, Guest};
use super::{Config, Policy, UserNetwork, listener, open_network, pattern};
use crate::frame::{Offload, Reason};
use crate::namespace::in_a_namespace;
use crate::packet::extension::fragment4;
use crate::packet::{
    Ethernet, Headers, PROTOCOL_ICMP, PROTOCOL_UDP, Packet, checksum, fragment, udp_frame,
    with_headers,
};
use crate::tap::{Tap, TapOptions};
use crate::user::reassembly::{Key, Reassembly};

const WAIT: Duration = Duration::from_secs(20);

fn server() -> (UdpSocket, SocketAddr) {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(WAIT)).unwrap();
    let at = SocketAddr::new("10.0.2.2".parse().unwrap(), server.local_addr().unwrap().port());
    (server, at)
}

/// Frames of a datagram from the guest that is too large for its link.
fn fragments(guest: &Guest, to: SocketAddr, payload: &[u8]) -> Vec<Vec<u8>> {
    let from: SocketAddr = "10.0.2.15:4000".parse().unwrap();
    let mut frame = vec![0; 42 + payload.len()];
    frame[42..].copy_from_slice(payload);
    udp_frame(&mut frame, guest.macs(), from, to, payload.len(), Default::default());
    let (to_mac, from_mac) = guest.macs();
    let headers = Headers { to_mac, from_mac, source: from.ip(), destination: to.ip() };
    fragment::frames(&headers, PROTOCOL_UDP, &frame[34..], 1500, 7)
}

#[test]
fn large_datagrams_go_both_ways_in_fragments() {
    let (server, to) = server();
    let mut guest = Guest::new(open_network());
    let sent = pattern(9000);
    let frames = fragments(&guest, to, &sent);
    assert!(frames.len() > 5 && frames.iter().all(|frame| frame.len() <= 1514));
    for frame in frames.iter().rev() {
        guest.network.input(frame, Offload::default());
    }
    let mut bytes = vec![0; 65_536];
    let (size, peer) = server.recv_from(&mut bytes).unwrap();
    assert!(bytes[..size] == sent);

    let back = pattern(20_000);
    server.send_to(&back, peer).unwrap();
    let mut all = Reassembly::default();
    let mut whole = None;
    guest.until("all fragments", |guest| {
        while let Some((frame, _)) = guest.frames.pop_front() {
            assert!(frame.len() <= 1514);
            let ethernet = Ethernet::parse(&frame).unwrap();
            let packet = Packet::parse(ethernet.kind, ethernet.payload).unwrap();
            let fragment = fragment4(&packet).expect("a fragment");
            let (source, destination) = (packet.source, packet.destination);
            let identification = fragment.identification;
            let key = Key { source, destination, identification, protocol: None };
            let taken = all.take(key, packet.protocol, fragment, packet.payload, Instant::now());
            whole = whole.take().or(taken.unwrap());
        }
        whole.is_some()
    });
    let (protocol, datagram) = whole.unwrap();
    let (source, destination) = (to.ip(), IpAddr::from([10, 0, 2, 15]));
    assert_eq!(checksum::transport(source, destination, protocol, &datagram), 0);
    assert!(datagram[8..] == back);
}

#[test]
fn overlapping_fragments_are_counted_and_reach_nobody() {
    let (server, to) = server();
    server.set_nonblocking(true).unwrap();
    let mut guest = Guest::new(open_network());
    let frames = fragments(&guest, to, &pattern(4000));
    guest.network.input(&frames[0], Offload::default());
    let mut shifted = frames[1].clone();
    let offset = u16::from_be_bytes([shifted[20], shifted[21]]) - 1;
    shifted[20..22].copy_from_slice(&offset.to_be_bytes());
    shifted[24..26].fill(0);
    let sum = checksum::of(&shifted[14..34]).to_be_bytes();
    shifted[24..26].copy_from_slice(&sum);
    for frame in [&shifted, &frames[2]] {
        guest.network.input(frame, Offload::default());
    }
    guest.run_for(Duration::from_millis(20));
    assert_eq!(guest.network.counters().drops(Reason::Malformed), 1);
    assert!(server.recv(&mut [0; 8]).is_err());
}

#[test]
fn a_smaller_path_behind_the_guest_is_kept_to() {
    let (listener, port) = listener();
    let server = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        std::io::Write::write_all(&mut stream, &pattern(100_000)).unwrap();
    });
    let mut guest = Guest::new(open_network());
    guest.receives = Default::default();
    let mut connection = Connection::begin(&mut guest, port);
    let mut quoted = None;
    guest.until("a full segment", |guest| {
        let full = guest.frames.iter().find(|(frame, _)| frame.len() == 1514);
        quoted = full.map(|(frame, _)| frame[14..42].to_vec());
        if quoted.is_none() {
            connection.take(guest);
        }
        quoted.is_some()
    });
    let mut message = [&[3, 4, 0, 0, 0, 0, 0x02, 0x58][..], &quoted.unwrap()].concat();
    let sum = checksum::of(&message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    let (to_mac, from_mac) = guest.macs();
    let (source, destination) = (IpAddr::from([10, 0, 2, 15]), IpAddr::from([10, 0, 2, 2]));
    let headers = Headers { to_mac, from_mac, source, destination };
    guest.frames.clear();
    let told = with_headers(&headers, PROTOCOL_ICMP, &message);
    guest.network.input(&told, Offload::default());
    guest.turn();
    assert!(!guest.frames.is_empty());
    assert!(guest.frames.iter().all(|(frame, _)| frame.len() <= 14 + 600));
    assert!(connection.read_to_end(&mut guest) == pattern(100_000));
    server.join().unwrap();
}

#[test]
fn only_answers_to_questions_come_in() {
    let (resolver, at) = server();
    let resolvers = vec![SocketAddr::new("127.0.0.1".parse().unwrap(), at.port())];
    let policy = Policy { restrict: true, ..Policy::default() };
    let config = Config { resolvers, policy, ..Config::default() };
    let dns = SocketAddr::new(config.dns4.into(), 53);
    let mut guest = Guest::new(UserNetwork::new(config).unwrap());
    let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03far\x00\x00\x01\x00\x01";
    guest.send_datagram(4000, dns, question);
    let mut bytes = [0; 512];
    let (size, peer) = resolver.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..size], question);
    let mut answer = question.to_vec();
    answer[2] = 0x81;
    let mut wrong = answer.clone();
    wrong[1] = 0x35;
    // Another identifier, a question, too short, then the answer, and once more.
    for message in [&wrong[..], question, &answer[..11], &answer, &answer] {
        resolver.send_to(message, peer).unwrap();
    }
    let (_, payload) = guest.receive_datagram(4000);
    assert_eq!(payload, answer);
    guest.until("the others are counted", |guest| {
        guest.network.counters().drops(Reason::Spoofed) == 4
    });
    assert!(guest.frames.is_empty());
    // A message that is none does not get out.
    guest.send_datagram(4000, dns, &answer);
    assert_eq!(guest.network.counters().drops(Reason::Malformed), 1);
}

#[test]
fn the_guest_hears_of_a_smaller_path_of_the_hosts() {
    in_a_namespace("user::tests::large::the_guest_hears_of_a_smaller_path_of_the_hosts", || {
        if !std::path::Path::new("/dev/net/tun").exists() {
            return println!("not run: this machine has no /dev/net/tun");
        }
        let options = TapOptions { name: "path0".into(), bridge: None, queues: 1, mtu: Some(1300) };
        let _path = Tap::open(&options).unwrap();
        let added = Command::new("busybox")
            .args(["ip", "address", "add", "192.0.2.1/24", "dev", "path0"])
            .status();
        assert!(added.unwrap().success());
        let config = Config { mtu: 9000, ..Config::default() };
        let mut guest = Guest::new(UserNetwork::new(config).unwrap());
        guest.send_datagram(4000, "192.0.2.9:9".parse().unwrap(), &pattern(5000));
        let (frame, _) = guest.frames.pop_front().expect("an answer");
        let ethernet = Ethernet::parse(&frame).unwrap();
        let packet = Packet::parse(ethernet.kind, ethernet.payload).unwrap();
        assert_eq!((packet.protocol, &packet.payload[..2]), (PROTOCOL_ICMP, &[3, 4][..]));
        assert_eq!(packet.payload[6..8], 1300u16.to_be_bytes());
        // What it quotes is the guest's packet.
        assert_eq!(packet.payload[8 + 12..8 + 20], [10, 0, 2, 15, 192, 0, 2, 9]);
        assert_eq!(guest.network.counters().drops(Reason::TooBig), 1);
        // What fits goes out, and nothing is said.
        guest.send_datagram(4000, "192.0.2.9:9".parse().unwrap(), &pattern(1272));
        assert!(guest.frames.is_empty());
        assert_eq!(guest.network.counters().drops(Reason::TooBig), 1);
    });
}
