//! Executes x86-64 guests in software, on any x86-64 host.
//!
//! Two tiers over one decoder: an interpreter, complete and precise, and a
//! translator. Guest and host are the same architecture, so neither of them
//! re-writes the processor's arithmetic: what can run on the host runs there, and
//! this crate supplies what cannot, that is memory, privilege and control flow.
//!
//! | module | what it holds |
//! |---|---|
//! | [`state`] | the registers of a vCPU, laid out for generated code |
//! | [`tlb`] | the software TLB that both tiers read |
//! | [`exception`] | exceptions on their way to the guest |
//! | [`translate`] | the translator |
//! | [`host`] | executable memory, host traps in it, single instructions run on the host |

pub mod exception;
pub mod host;
pub mod state;
pub mod tlb;
pub mod translate;
