//! Packet paths behind virtual network interfaces.
//!
//! A guest's interface (virtio-net, or a container's tap) hands Ethernet frames with
//! their [`frame::Offload`] to what it is plugged into, and offers it room for frames in
//! the other direction through [`frame::Interface`]. Behind that seam:
//!
//! | module | what it holds |
//! |---|---|
//! | [`frame`] | the seam: frames, offloads, the interface, reasons for drops |
//! | [`header`] | offloads as bytes, where frames leave the process |
//! | [`capture`] | frames of a port in a file, in the pcapng format |
//! | [`packet`] | IP packets: parsing what a guest sent, building what it gets |
//! | [`segment`] | what hardware would do, for drivers that do not take it |
//! | [`wire`] | a network behind descriptors |
//! | [`ipam`] | subnets, leases, MAC addresses |
//! | [`switch`] | a switch in user space, and its ports |
//! | [`tap`] | a tap of the host, for those who may |
//! | [`user`] | the user-mode network: NAT to host sockets, without privileges |

pub mod capture;
pub mod frame;
pub mod header;
pub mod ipam;
mod outbox;
pub mod packet;
pub mod segment;
pub mod switch;
pub mod tap;
pub mod user;
pub mod wire;

#[cfg(test)]
mod driver;
#[cfg(test)]
mod namespace;
