//! The agent: the first process of a microVM, which the host speaks with.
//!
//! - [`protocol`]: frames and messages, over any stream of bytes;
//! - [`client`]: the host's end;
//! - the program `guise-agent` (`main.rs` and `guest/`) is the guest's end: it makes a
//!   Linux kernel that has just booted into a place where the image's program can run,
//!   runs it, and serves the host until the machine is switched off.
//!
//! The program is linked statically and is all that the initial RAM disk holds besides
//! kernel modules.

pub mod client;
pub mod protocol;
