//! What a hostile guest can send, as a small language of bytes: the fuzzer writes
//! programs in it, and `cargo test` runs those that are kept.
//!
//! A program is a row of records: a control byte, a length of two bytes
//! (little endian), a frame. Bits of the control byte: 0 puts right checksums in, without
//! which little gets far; 1 says that the transport's checksum needs no look; 2 takes the
//! frame's first 12 bytes as the header of its offloads; 3 sends it to the switch too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use guise_net::frame::{Interface, Network, Offload, Receives};
use guise_net::packet::{Packet, checksum};
use guise_net::switch::fabric::{Fabric, Own, Port};
use guise_net::user::{Config, Policy, UserNetwork};
use guise_net::{header, segment};

/// A driver that looks at nothing.
#[derive(Default)]
struct Driver {
    room: Vec<u8>,
    frames: usize,
}

impl Interface for Driver {
    fn receives(&self) -> Receives {
        Receives::default()
    }

    fn room(&mut self, size: usize) -> Option<&mut [u8]> {
        self.room.resize(size, 0);
        Some(&mut self.room)
    }

    fn filled(&self, size: usize) -> &[u8] {
        &self.room[..size]
    }

    fn deliver(&mut self, size: usize, _: Offload) {
        assert!(size <= self.room.len(), "a frame larger than its room");
        self.frames += 1;
    }
}

/// Puts in the checksums that a frame's own headers ask for.
fn repair(frame: &mut [u8]) {
    let Some((head, bytes)) = frame.split_at_mut_checked(14) else { return };
    let kind = u16::from_be_bytes([head[12], head[13]]);
    if kind == 0x0800 && bytes.len() >= 20 {
        let length = (usize::from(bytes[0] & 15) * 4).clamp(20, bytes.len());
        bytes[10..12].fill(0);
        let sum = checksum::of(&bytes[..length]).to_be_bytes();
        bytes[10..12].copy_from_slice(&sum);
    }
    let Ok(packet) = Packet::parse(kind, bytes) else { return };
    let (source, destination, protocol) = (packet.source, packet.destination, packet.protocol);
    let start = packet.whole.len() - packet.payload.len();
    let end = packet.whole.len();
    let at = match protocol {
        1 | 58 => 2,
        6 => 16,
        17 => 6,
        _ => return,
    };
    let segment = &mut bytes[start..end];
    if segment.len() < at + 2 {
        return;
    }
    segment[at..at + 2].fill(0);
    let sum = match protocol {
        1 => checksum::of(segment),
        _ => checksum::transport(source, destination, protocol, segment),
    };
    segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn fabric(config: &Config) -> Fabric {
    let own = Own { mac: config.router_mac, addresses: vec![config.router4.into()] };
    let mut fabric = Fabric::new(own);
    let other: [IpAddr; 2] = [Ipv4Addr::new(10, 0, 2, 16).into(), Ipv6Addr::LOCALHOST.into()];
    let ports = [
        Port::new(config.guest_mac, 0, false, [config.guest4.into(), config.guest6.into()]),
        Port::new([2, 0, 0, 0, 0, 9], 0, false, other),
    ];
    for (number, port) in ports.into_iter().enumerate() {
        assert!(fabric.insert(number, port));
    }
    fabric
}

/// Runs a program of frames against a network from which nothing gets out, the switch,
/// and what cuts segments.
pub fn run(mut program: &[u8]) {
    let policy = Policy { restrict: true, ..Policy::default() };
    // A resolver that cannot be: nothing may be sent to the machine's own.
    let resolvers = vec!["255.255.255.255:53".parse().expect("an address")];
    let config = Config { policy, resolvers, ..Config::default() };
    let mut fabric = fabric(&config);
    let mut network = UserNetwork::new(config).expect("a network");
    let mut driver = Driver::default();
    while let Some(([control, low, high], rest)) = program.split_first_chunk::<3>() {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (record, rest) = rest.split_at(length);
        program = rest;
        let mut offload = Offload { checksum_is_good: control & 2 != 0, ..Offload::default() };
        let mut frame = record.to_vec();
        if control & 4 != 0 && frame.len() >= header::LENGTH {
            let head: [u8; header::LENGTH] = frame[..header::LENGTH].try_into().expect("12 bytes");
            frame.drain(..header::LENGTH);
            offload = header::parse(&head, frame.len()).unwrap_or(offload);
        }
        if control & 1 != 0 {
            repair(&mut frame);
        }
        if control & 8 != 0 {
            let _ = fabric.input(0, &frame, Instant::now());
            let _ = segment::adapt(&mut frame.clone(), offload, Receives::default(), |cut, _| {
                assert!(cut.len() <= frame.len().max(14 + 60 + 60 + usize::from(u16::MAX)));
            });
        }
        network.input(&frame, offload);
        network.poll(&mut driver);
        for occupied in Network::occupied(&network) {
            assert!(occupied.now <= occupied.most, "{occupied:?}");
        }
    }
    let counters = network.counters();
    assert_eq!(counters.frames_out, driver.frames as u64);
}
