//! What tests boot: Debian's kernels as packaged, initial RAM disks, bare-metal
//! programs, and a program that tortures a kernel from user space.
//!
//! Nothing of this is in the repository. [`assets`] fetches packages once, with
//! apt's own signature checks, into a directory that git ignores; [`initramfs`]
//! writes RAM disks; [`debian_root`] makes a disk with a whole Debian, [`system_image`] images
//! that boot by themselves; [`baremetal`] and [`torture`] compile programs from the sources under
//! `guests/` with the host's C compiler.

pub mod assets;
pub mod baremetal;
pub mod corpus;
pub mod debian_root;
pub mod initramfs;
pub mod modules;
pub mod programs;
pub mod system_image;
pub mod torture;

mod error;

pub use error::TestkitError;
