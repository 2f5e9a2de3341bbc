//! Executes x86-64 guests in software, on any x86-64 host.
//!
//! Two tiers over one decoder: an interpreter, complete and precise, and a
//! translator. Guest and host are the same architecture, so neither of them
//! re-writes the processor's arithmetic: what can run on the host runs there, and
//! this crate supplies what cannot, that is memory, privilege and control flow.
//!
//! | module | what it holds |
//! |---|---|
//! | [`vm`] | a virtual machine: memory slots, marks on pages, requests between vCPUs |
//! | [`vcpu`] | a vCPU as the seam sees it, and what happens between instructions |
//! | [`cpu`] | what an instruction touches: segments, exceptions, control registers, MSRs |
//! | [`memory`] | paging, TLB banks, accesses by linear address |
//! | [`interpret`] | decoding, blocks, handlers of instructions |
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
pub mod cpu;
pub mod exception;
pub mod fpu;
pub mod host;
pub mod interpret;
pub mod memory;
pub mod model;
pub mod paravirt;
pub mod state;
pub mod tlb;
pub mod translate;
pub mod vcpu;
pub mod vm;

use std::sync::Arc;

use guise_engine::{Engine, EngineError, Vm, VmConfig};

/// How guest code is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// The interpreter only.
    Interpreter,
    /// The translator, with the interpreter for the rest.
    Translator,
    /// Both, each block twice, and compared. For machines with one vCPU and no device
    /// that writes memory; see `docs/translator.md`.
    Lockstep,
}

/// The engine that needs nothing of the host but its processor.
#[derive(Clone, Copy, Debug)]
pub struct SoftEngine {
    tier: Tier,
}

impl SoftEngine {
    pub fn new(tier: Tier) -> SoftEngine {
        SoftEngine { tier }
    }
}

impl Engine for SoftEngine {
    fn name(&self) -> &'static str {
        match self.tier {
            Tier::Interpreter => "interp",
            Tier::Translator => "soft",
            Tier::Lockstep => "lockstep",
        }
    }

    fn create_vm(&self, config: &VmConfig) -> Result<Arc<dyn Vm>, EngineError> {
        Ok(vm::SoftVm::new(config, self.tier)?)
    }
}
