//! End to end: the real binary on real kernels, bare-metal guests and bad input.

mod bad_input;
mod baremetal;
mod debugger;
mod doctor;
mod engines;
mod handover;
mod linux;
mod support;
