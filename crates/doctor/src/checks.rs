//! The checks, a file for each group of the report.

pub mod cgroups;
pub mod confidential;
pub mod kernel;
pub mod limits;
pub mod memory;
pub mod namespaces;
pub mod processor;
pub mod virtualization;

use std::fs;

/// A file of the kernel's, without the line break at its end; nothing if it is not
/// there or may not be read.
fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

/// The processor's features as the kernel names them.
fn cpu_flags(cpuinfo: &str) -> Vec<&str> {
    let mut flags = Vec::new();
    for key in ["flags", "vmx flags"] {
        let line = cpuinfo.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == key).then_some(value)
        });
        flags.extend(line.unwrap_or_default().split_whitespace());
    }
    flags
}

/// Opens a device for reading and writing, as those who use it do.
fn open_device(path: &str) -> std::io::Result<fs::File> {
    fs::OpenOptions::new().read(true).write(true).open(path)
}

#[cfg(test)]
mod tests;
