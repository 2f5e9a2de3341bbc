//! One file or folder for each format; `blocks` is what those share that map
//! a disk by a table of equal blocks.

pub(crate) mod blocks;
pub mod luks;
pub mod ova;
pub mod parallels;
pub mod qcow2;
pub mod raw;
pub mod vdi;
pub mod vhd;
pub mod vhdx;
pub mod vmdk;
