//! Fragments of the guest's datagrams, put together again.
//!
//! Few datagrams at a time and each for a short while, so the memory is bounded. Pieces
//! that overlap end their datagram (RFC 5722): whoever sends such means nothing good.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::frame::Reason;
use crate::packet::extension::Fragment;

/// Datagrams that are incomplete at one time.
pub const MOST: usize = 16;
const MOST_PIECES: usize = 128;
const LARGEST: usize = 65_535;
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub identification: u32,
    /// IPv4 counts datagrams for each protocol alone.
    pub protocol: Option<u8>,
}

struct Partial {
    key: Key,
    bytes: Vec<u8>,
    /// Where pieces begin and end, in order.
    pieces: Vec<(usize, usize)>,
    /// Known once the last piece is there.
    length: Option<usize>,
    protocol: u8,
    began: Instant,
}

#[derive(Default)]
pub struct Reassembly {
    partial: Vec<Partial>,
}

impl Reassembly {
    /// Datagrams that are incomplete.
    pub fn len(&self) -> usize {
        self.partial.len()
    }

    /// Takes a fragment. Returns protocol and contents when it was the last that was
    /// missing.
    pub fn take(
        &mut self,
        key: Key,
        protocol: u8,
        fragment: Fragment,
        payload: &[u8],
        now: Instant,
    ) -> Result<Option<(u8, Vec<u8>)>, Reason> {
        let (from, to) = (fragment.offset, fragment.offset + payload.len());
        if payload.is_empty() || to > LARGEST || (fragment.more && !payload.len().is_multiple_of(8))
        {
            return Err(Reason::Malformed);
        }
        self.partial.retain(|partial| now.duration_since(partial.began) < PATIENCE);
        let number = match self.partial.iter().position(|partial| partial.key == key) {
            Some(number) => number,
            None if self.partial.len() >= MOST => return Err(Reason::Limit),
            None => {
                let (bytes, pieces) = (Vec::new(), Vec::new());
                self.partial.push(Partial {
                    key,
                    bytes,
                    pieces,
                    length: None,
                    protocol,
                    began: now,
                });
                self.partial.len() - 1
            }
        };
        let taken = self.partial[number].add(from, to, fragment.more, protocol, payload);
        if taken.is_err() || self.partial[number].is_whole() {
            let whole = self.partial.swap_remove(number);
            return taken.map(|()| Some((whole.protocol, whole.bytes)));
        }
        Ok(None)
    }
}

impl Partial {
    fn add(
        &mut self,
        from: usize,
        to: usize,
        more: bool,
        protocol: u8,
        payload: &[u8],
    ) -> Result<(), Reason> {
        let place = self.pieces.partition_point(|(start, _)| *start < from);
        if self.pieces.get(place) == Some(&(from, to)) {
            // The same once more: the network may do that.
            return Ok(());
        }
        let before = place.checked_sub(1).map_or(0, |place| self.pieces[place].1);
        let after = self.pieces.get(place).map_or(usize::MAX, |(start, _)| *start);
        let end = if more { self.length } else { self.length.or(Some(to)) };
        let beyond = end.is_some_and(|end| to > end || (!more && to != end))
            || self.bytes.len() > end.unwrap_or(usize::MAX);
        if from < before || to > after || beyond {
            return Err(Reason::Malformed);
        }
        if self.pieces.len() >= MOST_PIECES {
            return Err(Reason::Limit);
        }
        self.pieces.insert(place, (from, to));
        self.length = end;
        if from == 0 {
            self.protocol = protocol;
        }
        if self.bytes.len() < to {
            self.bytes.resize(to, 0);
        }
        self.bytes[from..to].copy_from_slice(payload);
        Ok(())
    }

    fn is_whole(&self) -> bool {
        let gapless = self.pieces.iter().try_fold(0, |at, (from, to)| (*from == at).then_some(*to));
        self.length.is_some() && gapless == self.length
    }
}

#[cfg(test)]
mod tests;
