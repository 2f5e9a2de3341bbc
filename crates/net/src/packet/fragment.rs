//! Frames for a guest whose link is too small for a packet: its fragments.

use std::net::IpAddr;

use super::{ETHERNET, Headers, IPV4, IPV6, checksum, with_headers};

const FRAGMENT_HEADER: usize = 8;
const FRAGMENT: u8 = 44;
const MORE4: u16 = 0x2000;

/// One frame where the packet fits the link, several where not.
pub fn frames(
    headers: &Headers,
    protocol: u8,
    segment: &[u8],
    mtu: u16,
    identification: u32,
) -> Vec<Vec<u8>> {
    let header = headers.size() - ETHERNET;
    if header + segment.len() <= usize::from(mtu) {
        return vec![with_headers(headers, protocol, segment)];
    }
    let v4 = matches!(headers.source, IpAddr::V4(_));
    let extra = if v4 { 0 } else { FRAGMENT_HEADER };
    let size = (usize::from(mtu) - header - extra) / 8 * 8;
    let count = segment.len().div_ceil(size);
    let piece = |(number, piece): (usize, &[u8])| {
        let (offset, more) = (number * size, number + 1 < count);
        if !v4 {
            let field = offset as u16 | u16::from(more);
            let mut bytes = vec![protocol, 0];
            bytes.extend(field.to_be_bytes());
            bytes.extend(identification.to_be_bytes());
            bytes.extend(piece);
            return with_headers(headers, FRAGMENT, &bytes);
        }
        let mut frame = with_headers(headers, protocol, piece);
        let ip = &mut frame[ETHERNET..ETHERNET + IPV4];
        let field = (offset / 8) as u16 | if more { MORE4 } else { 0 };
        ip[4..6].copy_from_slice(&(identification as u16).to_be_bytes());
        ip[6..8].copy_from_slice(&field.to_be_bytes());
        ip[10..12].fill(0);
        let sum = checksum::of(ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    segment.chunks(size).enumerate().map(piece).collect()
}

/// The smallest link that IP allows has room for headers and data.
const _: () = assert!(576 > IPV6 + FRAGMENT_HEADER + 8);
