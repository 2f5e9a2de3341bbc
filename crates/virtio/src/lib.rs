//! Virtio 1.2: the devices that stock kernels drive best.
//!
//! | module | what it holds |
//! |---|---|
//! | [`queue`] | split and packed rings behind one interface; chains of buffers |
//! | [`device`] | what a device is to its transport |
//! | [`worker`] | a thread for a queue, woken by an eventfd |
//! | [`rate`] | limits on operations and bytes |
//! | [`transport`] | virtio over PCI with MSI-X |
//! | [`block`] | disks |
//! | [`net`] | network interfaces |
//! | [`console`] | a terminal, and ports to Unix sockets |
//! | [`fs`] | directories of the host |
//! | [`balloon`] | memory that the guest gives back |
//! | [`mem`] | memory that comes and goes |
//! | [`rng`] | random numbers |
//! | [`vsock`] | sockets between the guest and the host |
//!
//! What a driver writes is not trusted: rings, descriptors and requests are checked
//! against guest memory and against bounds, and a driver that breaks the rules gets a
//! device that needs a reset.

pub mod balloon;
pub mod block;
pub mod console;
pub mod device;
pub mod fs;
mod listening;
pub mod mem;
pub mod net;
pub mod queue;
pub mod rate;
pub mod rng;
pub mod transport;
pub mod vsock;
pub mod worker;

pub use device::{Session, VirtioDevice};
pub use queue::{Queue, QueueError};
pub use transport::VirtioPci;
