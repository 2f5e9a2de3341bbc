//! One file or folder for each format.

pub mod qcow2;
pub mod raw;
