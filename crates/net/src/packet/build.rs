//! Frames for the guest: headers in front of a payload that already stands in place,
//! so that data goes from a host socket into the guest's buffer in one copy.

use std::net::{IpAddr, SocketAddr};

use super::{
    ACK, ETHERNET, IPV4, IPV6, Mac, PROTOCOL_TCP, PROTOCOL_UDP, TCP, TYPE_IPV4, TYPE_IPV6, UDP,
    checksum,
};
use crate::frame::{Offload, PartialChecksum, Receives, SegmentKind, Segments};

const HOP_LIMIT: u8 = 64;

/// Ethernet and IP addresses of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Headers {
    pub to_mac: Mac,
    pub from_mac: Mac,
    pub source: IpAddr,
    pub destination: IpAddr,
}

impl Headers {
    /// Bytes in front of the transport header.
    pub fn size(&self) -> usize {
        ETHERNET + if self.source.is_ipv4() { IPV4 } else { IPV6 }
    }

    /// Writes them for a transport segment of `length` bytes that follows.
    pub fn write(&self, frame: &mut [u8], protocol: u8, length: usize) {
        frame[..6].copy_from_slice(&self.to_mac);
        frame[6..12].copy_from_slice(&self.from_mac);
        let ip = &mut frame[12..self.size()];
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                ip[..2].copy_from_slice(&TYPE_IPV4.to_be_bytes());
                let ip = &mut ip[2..];
                ip.fill(0);
                ip[0] = 0x45;
                ip[2..4].copy_from_slice(&((IPV4 + length) as u16).to_be_bytes());
                ip[6] = 0x40; // do not fragment
                ip[8] = HOP_LIMIT;
                ip[9] = protocol;
                ip[12..16].copy_from_slice(&source.octets());
                ip[16..20].copy_from_slice(&destination.octets());
                let sum = checksum::of(ip).to_be_bytes();
                ip[10..12].copy_from_slice(&sum);
            }
            (source, destination) => {
                let octets = |address: IpAddr| match address {
                    IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                    IpAddr::V6(address) => address.octets(),
                };
                ip[..2].copy_from_slice(&TYPE_IPV6.to_be_bytes());
                let ip = &mut ip[2..];
                ip[..4].copy_from_slice(&[0x60, 0, 0, 0]);
                ip[4..6].copy_from_slice(&(length as u16).to_be_bytes());
                ip[6] = protocol;
                ip[7] = HOP_LIMIT;
                ip[8..24].copy_from_slice(&octets(source));
                ip[24..40].copy_from_slice(&octets(destination));
            }
        }
    }
}

/// A whole frame around a transport segment that is complete in itself.
pub fn with_headers(headers: &Headers, protocol: u8, segment: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; headers.size() + segment.len()];
    headers.write(&mut frame, protocol, segment.len());
    frame[headers.size()..].copy_from_slice(segment);
    frame
}

/// What a TCP header says besides addresses.
#[derive(Clone, Copy, Debug)]
pub struct TcpFields {
    pub source: u16,
    pub destination: u16,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: u8,
    pub window: u16,
    /// In a SYN: the largest segment and the window scale.
    pub options: Option<(u16, Option<u8>)>,
}

impl TcpFields {
    fn options_size(&self) -> usize {
        match self.options {
            None => 0,
            Some((_, None)) => 4,
            Some((_, Some(_))) => 8,
        }
    }

    /// Bytes from the frame's start to its payload.
    pub fn payload_at(&self, headers: &Headers) -> usize {
        headers.size() + TCP + self.options_size()
    }
}

/// Writes all headers in front of `payload` bytes that stand at
/// [`TcpFields::payload_at`]; the frame's size and what its receiver has to do.
pub fn tcp_frame(
    frame: &mut [u8],
    headers: &Headers,
    fields: &TcpFields,
    payload: usize,
    mss: u16,
    receives: Receives,
) -> (usize, Offload) {
    let at = headers.size();
    let start = fields.payload_at(headers);
    let length = start - at + payload;
    headers.write(frame, PROTOCOL_TCP, length);
    let tcp = &mut frame[at..start + payload];
    tcp[..2].copy_from_slice(&fields.source.to_be_bytes());
    tcp[2..4].copy_from_slice(&fields.destination.to_be_bytes());
    tcp[4..8].copy_from_slice(&fields.sequence.to_be_bytes());
    let acknowledgement = if fields.flags & ACK != 0 { fields.acknowledgement } else { 0 };
    tcp[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    tcp[12] = (((start - at) / 4) as u8) << 4;
    tcp[13] = fields.flags;
    tcp[14..16].copy_from_slice(&fields.window.to_be_bytes());
    tcp[16..20].fill(0);
    if let Some((mss, shift)) = fields.options {
        tcp[20..22].copy_from_slice(&[2, 4]);
        tcp[22..24].copy_from_slice(&mss.to_be_bytes());
        if let Some(shift) = shift {
            tcp[24..28].copy_from_slice(&[1, 3, 3, shift]);
        }
    }
    let several = payload > usize::from(mss);
    let mut offload = Offload::default();
    if receives.checksum {
        let sum =
            checksum::pseudo_header(headers.source, headers.destination, PROTOCOL_TCP, length);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        offload.partial_checksum = Some(PartialChecksum { start: at as u16, offset: 16 });
        let kind = if headers.source.is_ipv4() { SegmentKind::Tcp4 } else { SegmentKind::Tcp6 };
        offload.segments = several.then_some(Segments { kind, size: mss, header: start as u16 });
    } else {
        let sum = checksum::transport(headers.source, headers.destination, PROTOCOL_TCP, tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    }
    (start + payload, offload)
}

/// Writes all headers in front of a datagram of `payload` bytes that stands after
/// them; the frame's size and what its receiver has to do.
pub fn udp_frame(
    frame: &mut [u8],
    mac: (Mac, Mac),
    from: SocketAddr,
    to: SocketAddr,
    payload: usize,
    receives: Receives,
) -> (usize, Offload) {
    let headers =
        Headers { to_mac: mac.0, from_mac: mac.1, source: from.ip(), destination: to.ip() };
    let at = headers.size();
    let length = UDP + payload;
    headers.write(frame, PROTOCOL_UDP, length);
    let udp = &mut frame[at..at + length];
    udp[..2].copy_from_slice(&from.port().to_be_bytes());
    udp[2..4].copy_from_slice(&to.port().to_be_bytes());
    udp[4..6].copy_from_slice(&(length as u16).to_be_bytes());
    udp[6..8].fill(0);
    let mut offload = Offload::default();
    if receives.checksum {
        let sum =
            checksum::pseudo_header(headers.source, headers.destination, PROTOCOL_UDP, length);
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        offload.partial_checksum = Some(PartialChecksum { start: at as u16, offset: 6 });
    } else {
        let sum = checksum::transport(headers.source, headers.destination, PROTOCOL_UDP, udp);
        // 0 would mean that there is none.
        udp[6..8].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
    }
    (at + length, offload)
}
