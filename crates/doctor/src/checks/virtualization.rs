//! Hardware virtualization: the extensions, nested paging, /dev/kvm, the IOMMU.

use std::fs;
use std::io::ErrorKind;

use super::{cpu_flags, read};
use crate::kvm::{self, Probe};
use crate::{Finding, Group};

pub fn examine() -> Group {
    let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
    let flags = cpu_flags(&cpuinfo);
    let findings = vec![extensions(&flags), nested_paging(&flags), kvm_device(), iommu()];
    Group { name: "Virtualization", findings }
}

pub(super) fn extensions(flags: &[&str]) -> Finding {
    const EFFECT: &str = "The kvm engine can run guests on the processor itself";
    if flags.contains(&"vmx") {
        Finding::found("VT-x / AMD-V", "Intel VT-x", EFFECT)
    } else if flags.contains(&"svm") {
        Finding::found("VT-x / AMD-V", "AMD-V", EFFECT)
    } else {
        let detail = match flags.contains(&"hypervisor") {
            true => "Neither, and this host is a virtual machine itself",
            false => "Neither is reported by the processor",
        };
        Finding::missing(
            "VT-x / AMD-V",
            detail,
            "The soft engine runs guests instead; it needs nothing from the host",
            "switch virtualization on in the firmware's set-up, or nested virtualization in the \
             hypervisor below",
        )
    }
}

pub(super) fn nested_paging(flags: &[&str]) -> Finding {
    for (flag, detail) in [("ept", "Intel EPT"), ("npt", "AMD nested page tables")] {
        if flags.contains(&flag) {
            return Finding::found("nested paging", detail, "Guests manage their memory freely");
        }
    }
    Finding::missing(
        "nested paging",
        "Neither EPT nor NPT is reported",
        "The soft engine translates guest addresses itself",
        "it comes with VT-x or AMD-V, see above",
    )
}

/// Whether /dev/kvm is there, may be opened, and runs what a kernel consists of.
fn kvm_device() -> Finding {
    const NAME: &str = "/dev/kvm";
    const INSTEAD: &str = "Guests run on the soft engine";
    match kvm::probe() {
        Probe::Usable { million_per_second } => Finding::found(
            NAME,
            format!("It runs a test guest ({million_per_second} million instructions a second)"),
            "`--engine auto` takes the kvm engine",
        ),
        Probe::Unusable { failed } => Finding::limited(
            NAME,
            format!("It opens but cannot run a kernel: {failed}"),
            INSTEAD,
            "it is emulated by the hypervisor below this host; nested virtualization there \
             gives a real one",
        ),
        Probe::Closed(error) if error.kind() == ErrorKind::NotFound => Finding::missing(
            NAME,
            "There is none",
            INSTEAD,
            "load the module kvm_intel or kvm_amd, or pass the device into this container",
        ),
        Probe::Closed(error) => Finding::missing(
            NAME,
            format!("It cannot be opened: {error}"),
            INSTEAD,
            "add yourself to the group kvm and log in again",
        ),
    }
}

fn iommu() -> Finding {
    let units = fs::read_dir("/sys/class/iommu").map_or(0, Iterator::count);
    match units {
        0 => Finding::missing(
            "IOMMU",
            "The kernel uses none",
            "A device of the host cannot be handed to a guest; virtual devices need none",
            "boot with intel_iommu=on or amd_iommu=on on hardware that has one",
        ),
        _ => Finding::found(
            "IOMMU",
            format!("{units} in use"),
            "Devices of the host are kept to the memory that they were given",
        ),
    }
}
