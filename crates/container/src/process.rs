//! Turning the container's first process into the program it is for:
//! credentials, limits, scheduling, terminal, and the final exec.

pub mod caps;
pub mod enter;
pub mod labels;
pub mod landlock;
pub mod limits;
pub mod lookup;
pub mod memory_policy;
pub mod schedule;
pub mod terminal;
