//! Executes x86-64 guests on the host's processor, through /dev/kvm.
//!
//! The local APICs are the kernel's, everything else is Guise's own ("split
//! irqchip"): an I/O APIC pin and a device's MSI both reach the kernel as messages,
//! the 8259 pair as an external interrupt of vCPU 0.
//!
//! | module | what it holds |
//! |---|---|
//! | [`vm`] | memory slots, messages, doorbells, the dirty log, the clock |
//! | [`vcpu`] | the run loop: exits in, platform calls and [`guise_engine::Exit`]s out |
//! | [`kick`] | how other threads get a vCPU out of `KVM_RUN` |
//! | [`state`] | KVM's structures to and from the neutral state |
//! | [`lapic`] | the local APIC's page and its timer, likewise |
//! | [`probe`] | a small guest that tells whether KVM is usable on this host |
//! | [`cpuid`] | what the guest is told, from the CPU models |

mod cpuid;
mod kick;
mod lapic;
pub mod probe;
mod state;
mod vcpu;
mod vm;

use std::path::Path;
use std::sync::Arc;

use guise_engine::{Engine, EngineError, MAX_VCPUS, Vm, VmConfig};
use kvm_ioctls::{Cap, Kvm};

const DEVICE: &str = "/dev/kvm";

/// What Guise cannot do without, with the names a user can look up.
const NEEDED: [(Cap, &str); 7] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
];

/// The engine of hosts with usable virtualization extensions.
pub struct KvmEngine {
    kvm: Kvm,
}

impl KvmEngine {
    /// Opens /dev/kvm and checks that it has what Guise needs. That a kernel runs
    /// on it is another question, which only a guest can answer.
    pub fn new() -> Result<KvmEngine, EngineError> {
        let kvm = Kvm::new().map_err(|error| unavailable(error.errno()))?;
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(missing(format!("its interface has version {version}, not 12")));
        }
        match NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            Some((_, name)) => Err(missing(format!("this kernel's KVM has no {name}"))),
            None => Ok(KvmEngine { kvm }),
        }
    }
}

fn missing(reason: String) -> EngineError {
    EngineError::Unavailable { engine: "kvm", reason }
}

/// Why the device did not open, and what to do about it.
fn unavailable(errno: i32) -> EngineError {
    let there = Path::new(DEVICE).exists();
    missing(match errno {
        libc::ENOENT | libc::ENXIO | libc::ENODEV if !there => format!(
            "there is no {DEVICE}; load the module kvm_intel or kvm_amd, or use --engine soft"
        ),
        libc::EACCES | libc::EPERM => format!(
            "no permission to open {DEVICE}; join the group that owns it (usually kvm), or use --engine soft"
        ),
        errno => format!("{DEVICE}: {}", std::io::Error::from_raw_os_error(errno)),
    })
}

impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn create_vm(&self, config: &VmConfig) -> Result<Arc<dyn Vm>, EngineError> {
        let max = (self.kvm.get_max_vcpus() as u32).min(MAX_VCPUS);
        if config.vcpus == 0 || config.vcpus > max {
            return Err(EngineError::VcpuCount { wanted: config.vcpus, max });
        }
        Ok(Arc::new(vm::KvmVm::new(&self.kvm, config)?))
    }
}

/// A failed ioctl as an error of the seam.
fn failed(doing: &'static str) -> impl Fn(kvm_ioctls::Error) -> EngineError {
    move |error| EngineError::Host {
        doing,
        source: std::io::Error::from_raw_os_error(error.errno()),
    }
}

#[cfg(test)]
mod tests;
