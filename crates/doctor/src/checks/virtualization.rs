//! Hardware virtualization: the extensions, nested paging, /dev/kvm, the IOMMU.

use std::fs;
use std::path::Path;

use guise_engine_kvm::{KvmEngine, probe};

use super::{cpu_flags, read};
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
    let engine = match KvmEngine::new() {
        Ok(engine) => engine,
        Err(error) if Path::new(NAME).exists() => {
            let remedy = "join the group that owns it (usually kvm) and log in again";
            return Finding::missing(NAME, sentence(error), INSTEAD, remedy);
        }
        Err(_) => {
            let remedy = "load the module kvm_intel or kvm_amd, or pass the device into this \
                          container";
            return Finding::missing(NAME, "There is none", INSTEAD, remedy);
        }
    };
    let remedy = "a hypervisor below this host that emulates it, or a slow one, is no use; \
                  nested virtualization there gives a real one";
    match probe::run(&engine) {
        Ok(verdict) if verdict.usable() => Finding::found(
            NAME,
            format!("It runs a test guest ({:.0} MIPS)", verdict.speed.unwrap_or_default()),
            "`--engine auto` takes the kvm engine",
        ),
        Ok(verdict) => {
            let reason = verdict.reason().unwrap_or_else(|| "the test guest failed".to_owned());
            let detail = format!("It opens but cannot run a kernel: {reason}");
            Finding::limited(NAME, detail, INSTEAD, remedy)
        }
        Err(error) => Finding::limited(NAME, sentence(error), INSTEAD, remedy),
    }
}

/// An error as the beginning of a line.
fn sentence(error: impl std::fmt::Display) -> String {
    let text = error.to_string();
    let mut characters = text.chars();
    characters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
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
