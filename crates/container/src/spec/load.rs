//! Reading configuration files, with a bound on their size.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{Process, Resources, Spec};
use crate::error::{Context, Error, Result};

/// The largest `config.json` that is read. Real ones have tens of kilobytes;
/// the kernel's own limit on arguments would stop far smaller ones from running.
pub const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Reads and checks a container's configuration; returns its text as well,
/// which the state directory keeps.
pub fn load_spec(path: &Path) -> Result<(Spec, Vec<u8>)> {
    let text = read_bounded(path)?;
    let spec = parse_spec(&text).map_err(|e| name_file(e, path))?;
    Ok((spec, text))
}

/// Parses and checks a configuration.
pub fn parse_spec(text: &[u8]) -> Result<Spec> {
    let spec: Spec = serde_json::from_slice(text)
        .map_err(|source| Error::Json { what: "config.json".into(), source })?;
    spec.check()?;
    Ok(spec)
}

/// Reads a process description, as `exec --process` takes it.
pub fn load_process(path: &Path) -> Result<Process> {
    let text = read_bounded(path)?;
    let process: Process = serde_json::from_slice(&text)
        .map_err(|source| Error::Json { what: path.display().to_string(), source })?;
    process.check()?;
    Ok(process)
}

/// Reads resources, as `update --resources` takes them; `-` is standard input.
pub fn load_resources(path: &Path) -> Result<Resources> {
    let text = if path.as_os_str() == "-" {
        read_all(std::io::stdin().lock(), path)?
    } else {
        read_bounded(path)?
    };
    serde_json::from_slice(&text)
        .map_err(|source| Error::Json { what: path.display().to_string(), source })
}

fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).during(|| format!("open {}", path.display()))?;
    read_all(file, path)
}

fn read_all(input: impl Read, path: &Path) -> Result<Vec<u8>> {
    const USUAL: usize = 32 << 10;
    let mut text = Vec::with_capacity(USUAL);
    input
        .take(MAX_CONFIG_BYTES + 1)
        .read_to_end(&mut text)
        .during(|| format!("read {}", path.display()))?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(Error::config(
            path.display().to_string(),
            format!("larger than {} MiB", MAX_CONFIG_BYTES >> 20),
        ));
    }
    Ok(text)
}

fn name_file(error: Error, path: &Path) -> Error {
    match error {
        Error::Json { source, .. } => Error::Json { what: path.display().to_string(), source },
        other => other,
    }
}
