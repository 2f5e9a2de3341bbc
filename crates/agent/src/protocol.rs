//! What host and guest say to each other.
//!
//! One stream of bytes carries frames ([`frame`]) of many sessions. A session is a
//! process in the guest with its input and output; number 0 is the guest itself. Control
//! frames hold a message ([`message`]), the others data of a standard stream, and an empty
//! one of those is its end.
//!
//! Whoever sends data may send no more than [`WINDOW`] bytes of a stream that its receiver
//! has not granted anew with a `Window` message. So a slow reader on either side stops its
//! own session and no other.
//!
//! Both sides treat the other as hostile: lengths are bounded before memory is taken, and
//! what does not follow the rules ends the connection.

pub mod frame;
pub mod message;

pub use frame::{Decoder, Frame, FrameError, Kind, encode};
pub use message::*;

/// Raised when a message changes its meaning. The agent is of the same build as its host,
/// so there is one version at a time.
pub const VERSION: u32 = 3;

/// Lists of modules in the initial RAM disk: what every guest loads, and what it loads for
/// a disk to write to, for a network, for folders of the host.
pub const MODULES_OF_ALL: &str = "all";
pub const MODULES_OF_DISKS: &str = "disks";
pub const MODULES_OF_NETWORKS: &str = "networks";
pub const MODULES_OF_SHARES: &str = "shares";

/// What a system that boots by itself finds in its initial RAM disk besides its own: the agent,
/// which the kernel starts first, with which program it is to go on as the first process, and
/// by what the host will know it. All of it is gone before that program begins.
pub const BESIDE: &str = "/.guise";
pub const BESIDE_AGENT: &str = "/.guise/agent";
pub const BESIDE_FIRST: &str = "/.guise/first";
pub const BESIDE_SECRET: &str = "/.guise/secret";
/// Where the system is an image: what is to become its root before it begins ([`OwnRoot`]).
pub const BESIDE_ROOT: &str = "/.guise/root";

/// Data of one stream that may be under way.
pub const WINDOW: u32 = 256 << 10;
/// Data in one frame.
pub const PIECE: usize = 32 << 10;
/// The session that stands for the guest itself.
pub const GUEST: u32 = 0;
/// The host's vsock port that the agent calls.
pub const VSOCK_PORT: u32 = 1024;
