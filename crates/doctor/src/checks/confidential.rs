//! Memory that the host cannot read: SEV, TDX, SGX.

use std::path::Path;

use super::{cpu_flags, read};
use crate::{Finding, Group};

pub fn examine() -> Group {
    let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
    let flags = cpu_flags(&cpuinfo);
    let kvm_parameter = |module: &str, name: &str| {
        let path = format!("/sys/module/{module}/parameters/{name}");
        read(&path).is_some_and(|value| matches!(value.as_str(), "Y" | "1"))
    };
    let sev = kvm_parameter("kvm_amd", "sev") || Path::new("/dev/sev").exists();
    let tdx = kvm_parameter("kvm_intel", "tdx");
    let sgx = Path::new("/dev/sgx_enclave").exists();
    let findings = vec![
        technology("AMD SEV", flags.contains(&"sev"), sev, "boot with kvm_amd.sev=1"),
        technology(
            "Intel TDX",
            flags.contains(&"tdx_host_platform"),
            tdx,
            "switch TDX on in the firmware's set-up and boot with kvm_intel.tdx=1",
        ),
        technology("Intel SGX", flags.contains(&"sgx"), sgx, "switch SGX on in the firmware"),
    ];
    Group { name: "Confidential computing", findings }
}

pub(super) fn technology(
    name: &'static str,
    in_processor: bool,
    in_kernel: bool,
    remedy: &'static str,
) -> Finding {
    const WITHOUT: &str = "Guests' memory is protected from other guests, not from the host";
    match (in_processor, in_kernel) {
        (_, true) => Finding::found(
            name,
            "The processor and the kernel have it",
            "It is reported only: Guise does not use it for guests yet",
        ),
        (true, false) => Finding::limited(
            name,
            "The processor has it and the kernel does not use it",
            WITHOUT,
            remedy,
        ),
        (false, false) => Finding::missing(
            name,
            "The processor does not report it",
            WITHOUT,
            "only hardware that has it gives it",
        ),
    }
}
