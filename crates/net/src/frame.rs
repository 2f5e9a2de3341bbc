//! The seam between an interface and what it is plugged into.
//!
//! Frames carry what their sender left to hardware that is not there: a checksum that
//! is not filled in, a TCP segment of up to 64 KiB that is to be cut. Passing both on
//! as they are, instead of doing them in between, is what makes a packet path fast; the
//! fields are those of virtio's packet header.

use std::os::fd::BorrowedFd;
use std::time::Duration;

/// What the receiver of a frame has to know of it, or to do for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum over the bytes from `start` on is to be put at `start + offset`,
    /// where the sum of the pseudo header stands now.
    pub partial_checksum: Option<PartialChecksum>,
    /// The frame never left this host: its checksums need no look.
    pub checksum_is_good: bool,
    /// The frame is many segments in one.
    pub segments: Option<Segments>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    pub start: u16,
    pub offset: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    pub kind: SegmentKind,
    /// Payload bytes of each segment.
    pub size: u16,
    /// All headers of the first one.
    pub header: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    Tcp4,
    Tcp6,
}

/// What an interface's driver takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receives {
    /// Frames with [`Offload::partial_checksum`] or [`Offload::checksum_is_good`].
    pub checksum: bool,
    /// Frames with [`Offload::segments`], by kind. Needs `checksum`.
    pub tcp4: bool,
    pub tcp6: bool,
}

/// The receiving side of an interface: room for frames.
pub trait Interface {
    fn receives(&self) -> Receives;
    /// Room for a frame of up to `size` bytes; none while the driver has given no
    /// buffers. Room that is not used is offered again.
    fn room(&mut self, size: usize) -> Option<&mut [u8]>;
    /// The first `size` bytes of the room that was given last.
    fn filled(&self, size: usize) -> &[u8];
    /// The first `size` bytes of the room are a frame.
    fn deliver(&mut self, size: usize, offload: Offload);
}

/// What an interface can be plugged into: a network that one thread drives.
pub trait Network: Send {
    /// Readable when [`Network::poll`] has something to do. It stays the same.
    fn descriptor(&self) -> BorrowedFd<'_>;
    /// When to call [`Network::poll`] if nothing else happens before.
    fn timer(&self) -> Option<Duration>;
    /// Takes a frame of the guest. Answers wait for the next [`Network::poll`], so that a
    /// batch of frames is answered once.
    fn input(&mut self, frame: &[u8], offload: Offload);
    /// Looks at the host's side and the clock, and sends what there is to send.
    fn poll(&mut self, interface: &mut dyn Interface);
    /// What has gone through, and what was dropped.
    fn counters(&self) -> Counters;
    /// The guest has ended: gives up what others of this host could want now, such as
    /// published ports and a name on a switch.
    fn close(&mut self) {}
    /// What the guest occupies of the host here, and how much it may.
    fn occupied(&self) -> Vec<Occupied> {
        Vec::new()
    }
}

/// A table or buffer with its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupied {
    pub what: &'static str,
    pub now: usize,
    pub most: usize,
}

/// Why frames were dropped; each has a counter that users can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Headers that contradict themselves or the frame's length, or a wrong checksum.
    Malformed,
    /// A protocol that this network does not carry.
    Unsupported,
    /// A source address that is not the guest's.
    Spoofed,
    /// The policy does not let the guest go there.
    Policy,
    /// A table or buffer is full.
    Limit,
    /// More than the path outward takes, and not to be cut.
    TooBig,
    /// The host has no route, or refused.
    Unreachable,
    /// The guest gives no buffers.
    NoRoom,
}

impl Reason {
    pub const ALL: [Reason; 8] = [
        Reason::Malformed,
        Reason::Unsupported,
        Reason::Spoofed,
        Reason::Policy,
        Reason::Limit,
        Reason::TooBig,
        Reason::Unreachable,
        Reason::NoRoom,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Reason::Malformed => "malformed",
            Reason::Unsupported => "unsupported",
            Reason::Spoofed => "spoofed",
            Reason::Policy => "policy",
            Reason::Limit => "limit",
            Reason::TooBig => "too-big",
            Reason::Unreachable => "unreachable",
            Reason::NoRoom => "no-room",
        }
    }
}

/// Counters of one port: `in` is what the guest sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub frames_in: u64,
    pub bytes_in: u64,
    pub frames_out: u64,
    pub bytes_out: u64,
    drops: [u64; Reason::ALL.len()],
}

impl Counters {
    pub fn drop_for(&mut self, reason: Reason) {
        self.drops[reason as usize] += 1;
    }

    pub fn drops(&self, reason: Reason) -> u64 {
        self.drops[reason as usize]
    }

    pub fn all_drops(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Reason::ALL.into_iter().map(|reason| (reason.name(), self.drops(reason)))
    }
}
