//! The processor: its name, and which CPU models a guest can have here.

use super::{cpu_flags, read};
use crate::{Finding, Group};

/// What each level of the psABI asks for, by the kernel's names.
const V2: [&str; 7] = ["cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3", "pni"];
const V3: [&str; 9] = ["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"];

pub fn examine() -> Group {
    let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    Group { name: "Processor", findings: vec![model(&cpuinfo, count), level(&cpuinfo)] }
}

fn model(cpuinfo: &str, count: usize) -> Finding {
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    let name = name.unwrap_or("a processor without a name").trim_matches([' ', '\t', ':']);
    let detail = format!("{count} × {name}");
    Finding::found("model", detail, "A machine may have up to 8 vCPUs, each of them a thread")
}

pub(super) fn level(cpuinfo: &str) -> Finding {
    let flags = cpu_flags(cpuinfo);
    let missing = |wanted: &[&str]| {
        let missing: Vec<_> = wanted.iter().copied().filter(|flag| !flags.contains(flag)).collect();
        missing.join(", ")
    };
    let remedy = "newer hardware, or a hypervisor that passes its processor's features on";
    match (missing(&V2), missing(&V3)) {
        (v2, _) if !v2.is_empty() => Finding::limited(
            "instruction set",
            format!("x86-64 without {v2}"),
            "Guests can have the CPU model baseline",
            remedy,
        ),
        (_, v3) if !v3.is_empty() => Finding::limited(
            "instruction set",
            format!("x86-64-v2; for v3 it lacks {v3}"),
            "Guests can have the CPU models baseline and x86-64-v2",
            remedy,
        ),
        _ => Finding::found(
            "instruction set",
            "x86-64-v3",
            "Guests can have every CPU model: baseline, x86-64-v2, x86-64-v3, host",
        ),
    }
}
