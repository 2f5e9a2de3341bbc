//! [`Offload`] as bytes: the header that stands in front of a frame in virtio's queues, on
//! a tap and between a switch and its ports.

use crate::frame::{Offload, PartialChecksum, SegmentKind, Segments};

pub const LENGTH: usize = 12;

const NEEDS_CHECKSUM: u8 = 1;
const CHECKSUM_IS_GOOD: u8 = 2;

const ONE_FRAME: u8 = 0;
const TCP4: u8 = 1;
const TCP6: u8 = 4;
/// Of a segmented frame: its sender echoes congestion. The receiver looks itself.
const CONGESTION: u8 = 0x80;

/// Reads a header. None for what contradicts itself or was never offered.
pub fn parse(header: &[u8; LENGTH], frame_length: usize) -> Option<Offload> {
    let [flags, kind, header_low, header_high, size_low, size_high, rest @ ..] = *header;
    let [start_low, start_high, offset_low, offset_high, _, _] = rest;
    let mut offload =
        Offload { checksum_is_good: flags & CHECKSUM_IS_GOOD != 0, ..Offload::default() };
    if flags & NEEDS_CHECKSUM != 0 {
        let start = u16::from_le_bytes([start_low, start_high]);
        let offset = u16::from_le_bytes([offset_low, offset_high]);
        if usize::from(start) + usize::from(offset) + 2 > frame_length {
            return None;
        }
        offload.partial_checksum = Some(PartialChecksum { start, offset });
    }
    let kind = match kind & !CONGESTION {
        ONE_FRAME => return Some(offload),
        TCP4 => SegmentKind::Tcp4,
        TCP6 => SegmentKind::Tcp6,
        _ => return None,
    };
    let size = u16::from_le_bytes([size_low, size_high]);
    // Segments get checksums of their own, which is hardware's work too.
    if size == 0 || offload.partial_checksum.is_none() {
        return None;
    }
    let header = u16::from_le_bytes([header_low, header_high]);
    offload.segments = Some(Segments { kind, size, header });
    Some(offload)
}

/// Writes a header for a frame that takes so many buffers.
pub fn build(offload: &Offload, buffers: u16) -> [u8; LENGTH] {
    let mut header = [0; LENGTH];
    if let Some(PartialChecksum { start, offset }) = offload.partial_checksum {
        header[0] |= NEEDS_CHECKSUM;
        header[6..8].copy_from_slice(&start.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
    } else if offload.checksum_is_good {
        header[0] |= CHECKSUM_IS_GOOD;
    }
    if let Some(Segments { kind, size, header: length }) = offload.segments {
        header[1] = match kind {
            SegmentKind::Tcp4 => TCP4,
            SegmentKind::Tcp6 => TCP6,
        };
        header[2..4].copy_from_slice(&length.to_le_bytes());
        header[4..6].copy_from_slice(&size.to_le_bytes());
    }
    header[10..].copy_from_slice(&buffers.to_le_bytes());
    header
}
