//! System calls that neither the standard library nor rustix wraps, or that
//! this crate needs in a narrower form. Nearly all of the crate's `unsafe`
//! lives in this folder; what leaves it is safe to call unless it says so.

pub mod bpf;
pub mod clone;
pub mod cred;
pub mod exec;
pub mod files;
pub mod landlock;
pub mod mount;
pub mod sched;
pub mod seccomp;
pub mod socket;
pub mod terminal;

use std::io;

/// The error of a raw system call's return value.
fn check(value: libc::c_long) -> io::Result<libc::c_long> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}
