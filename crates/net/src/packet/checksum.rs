//! The Internet checksum (RFC 1071).

use std::net::IpAddr;

use crate::frame::PartialChecksum;

/// The one's-complement sum of 16-bit words, folded, not inverted.
pub fn sum(bytes: &[u8]) -> u16 {
    // The sum can be taken in any width and byte order and folded at the end.
    let mut total: u64 = 0;
    let mut carry: u64 = 0;
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let value = u64::from_ne_bytes(word.try_into().expect("8 bytes"));
        let (next, over) = total.overflowing_add(value);
        total = next;
        carry += u64::from(over);
    }
    let mut tail = [0u8; 8];
    let rest = words.remainder();
    tail[..rest.len()].copy_from_slice(rest);
    let (next, over) = total.overflowing_add(u64::from_ne_bytes(tail));
    total = next;
    carry += u64::from(over);
    let mut folded = (total >> 32) + (total & 0xffff_ffff) + carry;
    while folded >> 16 != 0 {
        folded = (folded >> 16) + (folded & 0xffff);
    }
    u16::from_be(folded as u16)
}

fn add(a: u16, b: u16) -> u16 {
    let sum = u32::from(a) + u32::from(b);
    (sum as u16).wrapping_add((sum >> 16) as u16)
}

/// The checksum of bytes; 0 where they contain their own and it is right.
pub fn of(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

/// The sum of what TCP and UDP count in besides themselves, not inverted.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u16 {
    let addresses = match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => add(sum(&from.octets()), sum(&to.octets())),
        (from, to) => add(sum(&six(from)), sum(&six(to))),
    };
    let length = add((length >> 16) as u16, length as u16);
    add(add(addresses, u16::from(protocol)), length)
}

fn six(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The checksum of a TCP, UDP or ICMPv6 segment; 0 where it contains its own and it is
/// right.
pub fn transport(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    !add(pseudo_header(source, destination, protocol, segment.len()), sum(segment))
}

/// Puts in the checksum that a frame's sender left to hardware.
pub fn complete(frame: &mut [u8], partial: &PartialChecksum) {
    let start = usize::from(partial.start);
    let Some(covered) = frame.get_mut(start..) else { return };
    let sum = match of(covered) {
        // In UDP 0 would mean that there is none; elsewhere both stand for the same.
        0 => 0xffff,
        sum => sum,
    };
    let at = usize::from(partial.offset);
    if let Some(place) = covered.get_mut(at..at + 2) {
        place.copy_from_slice(&sum.to_be_bytes());
    }
}
