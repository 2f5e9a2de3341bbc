//! End to end: the real binary on real kernels, bare-metal guests and bad input.

mod bad_input;
mod baremetal;
mod control;
mod debian_root;
mod debugger;
mod devices;
mod doctor;
mod engines;
mod handover;
mod linux;
mod network;
mod soak;
mod space;
mod support;
mod upkeep;
