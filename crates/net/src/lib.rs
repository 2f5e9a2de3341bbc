//! Packet paths behind virtual network interfaces.
//!
//! A guest's interface (virtio-net, or a container's tap) hands Ethernet frames with
//! their [`frame::Offload`] to what it is plugged into, and offers it room for frames in
//! the other direction through [`frame::Interface`]. Behind that seam:
//!
//! | module | what it holds |
//! |---|---|
//! | [`frame`] | the seam: frames, offloads, the interface, reasons for drops |
//! | [`packet`] | IP packets: parsing what a guest sent, building what it gets |
//! | [`user`] | the user-mode network: NAT to host sockets, without privileges |

pub mod frame;
pub mod packet;
pub mod user;
