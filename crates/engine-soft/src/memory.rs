//! Guest memory as instructions see it: linear addresses, paging, TLB banks, devices.

pub mod access;
pub mod fetch;
pub mod journal;
pub mod spaces;
pub mod walk;
