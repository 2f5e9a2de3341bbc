//! The host's processor as a part of the engine: memory for generated code, the
//! traps that happen in it, and single guest instructions run on the host.

pub mod arena;
pub mod classify;
pub mod features;
pub mod stub;
pub mod traps;
