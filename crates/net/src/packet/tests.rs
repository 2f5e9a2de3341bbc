//! What is built is parsed again; what contradicts itself is refused.

use std::net::SocketAddr;

use super::*;
use crate::frame::Receives;

const MACS: (Mac, Mac) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

fn frame(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let at = ETHERNET + if from.is_ipv4() { IPV4 } else { IPV6 } + UDP;
    let mut bytes = vec![0; at + payload.len()];
    bytes[at..].copy_from_slice(payload);
    let (size, _) = udp_frame(&mut bytes, MACS, from, to, payload.len(), Receives::default());
    assert_eq!(size, bytes.len());
    bytes
}

#[test]
fn datagrams_come_out_as_they_went_in() {
    for (from, to) in [("10.0.2.3:53", "10.0.2.15:4000"), ("[fd00::3]:53", "[fd00::f]:4000")] {
        let bytes = frame(from, to, b"odd");
        let ethernet = Ethernet::parse(&bytes).unwrap();
        assert_eq!((ethernet.destination, ethernet.source), MACS);
        let packet = Packet::parse(ethernet.kind, ethernet.payload).unwrap();
        let udp = packet.udp(&Offload::default()).unwrap();
        assert_eq!(udp.payload, b"odd");
        assert_eq!(SocketAddr::new(packet.source, udp.source), from.parse().unwrap());
        assert_eq!(SocketAddr::new(packet.destination, udp.destination), to.parse().unwrap());
    }
}

#[test]
fn every_flipped_bit_of_a_datagram_is_noticed_or_harmless() {
    let good = frame("10.0.2.3:53", "10.0.2.15:4000", b"some payload");
    for bit in ETHERNET * 8..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let packet = Packet::parse(TYPE_IPV4, &bad[ETHERNET..]);
        let udp = packet.and_then(|packet| packet.udp(&Offload::default()).map(|_| ()));
        assert!(udp.is_err(), "bit {bit}");
    }
}

#[test]
fn every_truncation_is_noticed() {
    for (from, to) in [("10.0.2.3:53", "10.0.2.15:4000"), ("[fd00::3]:53", "[fd00::f]:4000")] {
        let good = frame(from, to, b"some payload");
        for length in 0..good.len() {
            let parsed = Ethernet::parse(&good[..length]).and_then(|ethernet| {
                let packet = Packet::parse(ethernet.kind, ethernet.payload)?;
                packet.udp(&Offload::default()).map(|_| ())
            });
            assert!(parsed.is_err(), "{length} bytes");
        }
    }
}

#[test]
fn options_are_read_as_far_as_they_make_sense() {
    assert_eq!(tcp_options(&[2, 4, 5, 0xb4, 1, 3, 3, 7]), (Some(1460), Some(7)));
    assert_eq!(tcp_options(&[3, 3, 200]), (None, Some(14)));
    for bad in [&[2][..], &[2, 0], &[2, 1, 0], &[2, 4, 5], &[255, 255], &[0, 2, 4, 5, 5]] {
        assert_eq!(tcp_options(bad), (None, None), "{bad:?}");
    }
}

#[test]
fn checksums_of_any_length_are_right() {
    // By the definition, word by word.
    let slowly = |bytes: &[u8]| {
        let mut total: u32 = 0;
        for pair in bytes.chunks(2) {
            total += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    };
    let bytes: Vec<u8> = (0..300u32).map(|n| (n * n * 31 + 255) as u8).collect();
    for length in 0..bytes.len() {
        assert_eq!(checksum::sum(&bytes[..length]), slowly(&bytes[..length]), "{length}");
    }
    assert_eq!(checksum::sum(&[0xff; 64]), 0xffff);
}
