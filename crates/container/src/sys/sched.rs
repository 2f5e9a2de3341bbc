//! CPU and I/O scheduling of the calling process.

use std::io;
use std::mem::size_of;

use super::check;

/// The kernel's `struct sched_attr`, first version.
#[repr(C)]
#[derive(Default, Debug, Clone, Copy)]
pub struct SchedAttr {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// Sets policy and parameters.
pub fn set_scheduler(mut attr: SchedAttr) -> io::Result<()> {
    attr.size = size_of::<SchedAttr>() as u32;
    // SAFETY: the structure has the size it states and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw mut attr, 0) }).map(drop)
}

/// Sets class (1 realtime, 2 best effort, 3 idle) and level.
pub fn set_io_priority(class: u32, level: u32) -> io::Result<()> {
    const WHO_PROCESS: u32 = 1;
    const CLASS_SHIFT: u32 = 13;
    // SAFETY: takes integers.
    check(unsafe {
        libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, class << CLASS_SHIFT | level)
    })
    .map(drop)
}

/// A set of numbers as the kernel's bits.
fn bits(numbers: &[usize]) -> Vec<u64> {
    let top = numbers.iter().max().map_or(0, |n| n + 1);
    let mut words = vec![0u64; top.div_ceil(64).max(1)];
    for number in numbers {
        words[number / 64] |= 1 << (number % 64);
    }
    words
}

/// Sets on which nodes the calling process's memory is taken.
pub fn set_memory_policy(mode: u32, nodes: &[usize]) -> io::Result<()> {
    let words = bits(nodes);
    // The kernel counts one more than it reads; without nodes there is no set at all.
    let (mask, length) = match nodes {
        [] => (std::ptr::null(), 0),
        _ => (words.as_ptr(), words.len() * 64 + 1),
    };
    // SAFETY: pointer and length in bits describe the set, or there is none.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, length) }).map(drop)
}

/// Binds a process to CPUs.
pub fn set_affinity(pid: i32, cpus: &[usize]) -> io::Result<()> {
    let words = bits(cpus);
    // SAFETY: pointer and length in bytes describe the mask.
    check(unsafe {
        libc::syscall(libc::SYS_sched_setaffinity, pid, words.len() * 8, words.as_ptr())
    })
    .map(drop)
}
