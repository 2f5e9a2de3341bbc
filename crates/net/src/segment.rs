//! What hardware would do, for drivers that do not take it: cutting a frame that is many
//! TCP segments in one, and putting checksums in.

use crate::frame::{Offload, PartialChecksum, Reason, Receives, SegmentKind, Segments};
use crate::packet::{
    ETHERNET, FIN, IPV6, PROTOCOL_TCP, PSH, Packet, TCP, TYPE_IPV4, TYPE_IPV6, checksum,
};

/// Smaller segments than any stack makes: a frame must not become thousands.
const SMALLEST: u16 = 48;
/// Congestion window reduced: told once.
const CWR: u8 = 0x80;

/// Whether a frame can be handed over as it is.
pub fn is_taken(offload: &Offload, receives: Receives) -> bool {
    let checksum = receives.checksum || offload.partial_checksum.is_none();
    checksum && offload.segments.is_none_or(|segments| cuts(segments.kind, receives))
}

fn cuts(kind: SegmentKind, receives: Receives) -> bool {
    receives.checksum
        && match kind {
            SegmentKind::Tcp4 => receives.tcp4,
            SegmentKind::Tcp6 => receives.tcp6,
        }
}

/// Hands over frames that a driver takes, made of one that it may not take.
pub fn adapt(
    frame: &mut [u8],
    offload: Offload,
    receives: Receives,
    mut each: impl FnMut(&[u8], Offload),
) -> Result<(), Reason> {
    match offload.segments {
        Some(segments) if !cuts(segments.kind, receives) => cut(frame, segments, receives, each),
        _ => {
            let offload = finish(frame, offload, receives);
            each(frame, offload);
            Ok(())
        }
    }
}

/// Puts the checksum in for a driver that does not.
fn finish(frame: &mut [u8], offload: Offload, receives: Receives) -> Offload {
    if receives.checksum {
        return offload;
    }
    if let Some(partial) = &offload.partial_checksum {
        checksum::complete(frame, partial);
    }
    Offload::default()
}

fn cut(
    frame: &[u8],
    segments: Segments,
    receives: Receives,
    mut each: impl FnMut(&[u8], Offload),
) -> Result<(), Reason> {
    let kind = match segments.kind {
        SegmentKind::Tcp4 => TYPE_IPV4,
        SegmentKind::Tcp6 => TYPE_IPV6,
    };
    let (header, bytes) = frame.split_at_checked(ETHERNET).ok_or(Reason::Malformed)?;
    if header[12..] != kind.to_be_bytes() || segments.size < SMALLEST {
        return Err(Reason::Malformed);
    }
    let packet = Packet::parse(kind, bytes)?;
    let tcp = packet.payload;
    if packet.protocol != PROTOCOL_TCP || packet.fragment || tcp.len() < TCP {
        return Err(Reason::Malformed);
    }
    let tcp_header = usize::from(tcp[12] >> 4) * 4;
    let Some(payload) = tcp.get(tcp_header..).filter(|_| tcp_header >= TCP) else {
        return Err(Reason::Malformed);
    };
    let transport = ETHERNET + packet.whole.len() - tcp.len();
    let headers = transport + tcp_header;
    let first = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    let identification = u16::from_be_bytes([bytes[4], bytes[5]]);
    let size = usize::from(segments.size);
    let count = payload.len().div_ceil(size).max(1);
    let mut segment = Vec::with_capacity(headers + size);
    for number in 0..count {
        let from = number * size;
        let data = &payload[from..payload.len().min(from + size)];
        segment.clear();
        segment.extend_from_slice(&frame[..headers]);
        segment.extend_from_slice(data);
        let length = tcp_header + data.len();
        let ip = &mut segment[ETHERNET..transport];
        if kind == TYPE_IPV4 {
            let total = (ip.len() + length) as u16;
            ip[2..4].copy_from_slice(&total.to_be_bytes());
            ip[4..6].copy_from_slice(&identification.wrapping_add(number as u16).to_be_bytes());
            ip[10..12].fill(0);
            let sum = checksum::of(ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            let total = (ip.len() - IPV6 + length) as u16;
            ip[4..6].copy_from_slice(&total.to_be_bytes());
        }
        let tcp = &mut segment[transport..];
        tcp[4..8].copy_from_slice(&first.wrapping_add(from as u32).to_be_bytes());
        if number > 0 {
            tcp[13] &= !CWR;
        }
        if number + 1 < count {
            tcp[13] &= !(FIN | PSH);
        }
        let sum = checksum::pseudo_header(packet.source, packet.destination, PROTOCOL_TCP, length);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        let partial = PartialChecksum { start: transport as u16, offset: 16 };
        let offload = Offload { partial_checksum: Some(partial), ..Offload::default() };
        let offload = finish(&mut segment, offload, receives);
        each(&segment, offload);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
