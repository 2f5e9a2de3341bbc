//! Executes x86-64 guests in software, on any x86-64 host.
//!
//! Two tiers over one decoder: an interpreter, complete and precise, and a
//! translator. Guest and host are the same architecture, so neither of them
//! re-writes the processor's arithmetic: what can run on the host runs there, and
//! this crate supplies what cannot, that is memory, privilege and control flow.
//!
//! | module | what it holds |
//! |---|---|
//! | [`apic`] | local APICs and delivery between them |
//! | [`state`] | the registers of a vCPU, laid out for generated code |
//! | [`tlb`] | the software TLB that both tiers read |
//! | [`exception`] | exceptions on their way to the guest |
//! | [`translate`] | the translator |
//! | [`access`] | what instructions with large operands need of a vCPU |
//! | [`model`] | what CPUID and the feature MSRs tell of each CPU model |
//! | [`paravirt`] | the interface that kernels know from KVM: clock, hypercalls |
//! | [`fpu`] | floating-point and vector state in memory, and when it may be used |
//! | [`host`] | executable memory, host traps in it, single instructions run on the host |

pub mod access;
pub mod apic;
pub mod exception;
pub mod fpu;
pub mod host;
pub mod model;
pub mod paravirt;
pub mod state;
pub mod tlb;
pub mod translate;
