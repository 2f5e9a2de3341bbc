//! The host's processor as a part of the engine: memory for generated code, the
//! traps that happen in it, and single guest instructions run on the host.
//!
//! | module | what it holds |
//! |---|---|
//! | [`arena`] | memory for generated code |
//! | [`traps`] | traps in generated code, and who decides about them |
//! | [`classify`] | who executes which instruction |
//! | [`stub`] | single instructions run on the host |
//! | [`masked`] | gathers, scatters, masked moves |
//! | [`decimal`] | what 64-bit mode no longer has |

pub mod arena;
pub mod classify;
pub mod decimal;
pub mod masked;
pub mod stub;
pub mod traps;
