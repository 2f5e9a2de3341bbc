//! Kernel modules, with those that they need, in the order in which they go in.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::TestkitError;
use crate::assets::Kernel;

/// What lets a kernel drive every virtio device.
pub const VIRTIO: [&str; 9] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "virtio_mem",
    "vmw_vsock_virtio_transport",
    "virtiofs",
];

/// Name and content of modules that are to be loaded one after the other. What is built
/// into the kernel is left out.
pub fn with_needs(kernel: Kernel, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>, TestkitError> {
    let directory = kernel.modules()?;
    let builtin = directory.join("modules.builtin");
    let builtin = fs::read_to_string(&builtin).map_err(TestkitError::file("reading", &builtin))?;
    let mut set = Set {
        kernel,
        files: BTreeMap::new(),
        builtin: builtin.lines().map(|line| name_of(Path::new(line))).collect(),
        loaded: Vec::new(),
    };
    set.find(&directory)?;
    for name in names {
        set.add(name)?;
    }
    Ok(set.loaded)
}

struct Set {
    kernel: Kernel,
    files: BTreeMap<String, PathBuf>,
    builtin: Vec<String>,
    loaded: Vec<(String, Vec<u8>)>,
}

/// A module's name: its file's without endings, with `_` for `-`.
fn name_of(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

impl Set {
    fn find(&mut self, directory: &Path) -> Result<(), TestkitError> {
        let entries = fs::read_dir(directory).map_err(TestkitError::file("reading", directory))?;
        for entry in entries {
            let path = entry.map_err(TestkitError::file("reading", directory))?.path();
            if path.is_symlink() {
                continue;
            } else if path.is_dir() {
                self.find(&path)?;
            } else if path.to_string_lossy().contains(".ko") {
                self.files.insert(name_of(&path), path);
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &str) -> Result<(), TestkitError> {
        if self.builtin.iter().any(|builtin| builtin == name)
            || self.loaded.iter().any(|(loaded, _)| loaded == name)
        {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else {
            return Err(TestkitError::Module { name: name.to_owned(), kernel: self.kernel.name() });
        };
        let content = read(path)?;
        for need in needs(&content) {
            self.add(&need)?;
        }
        self.loaded.push((name.to_owned(), content));
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TestkitError> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).map_err(TestkitError::file("reading", path));
    }
    let output = Command::new("xz").arg("-dc").arg(path).output();
    let output =
        output.map_err(|source| TestkitError::Start { program: "xz".to_owned(), source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(TestkitError::Failed { program: "xz".to_owned(), status: output.status, output: said })
}

/// The modules that a module says it needs: `depends=a,b` between zeros.
fn needs(module: &[u8]) -> Vec<String> {
    const MARK: &[u8] = b"\0depends=";
    let Some(at) = module.windows(MARK.len()).position(|window| window == MARK) else {
        return Vec::new();
    };
    let rest = &module[at + MARK.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    let text = String::from_utf8_lossy(&rest[..end]);
    text.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_are_found_in_a_module() {
        assert_eq!(
            needs(b"x\0license=GPL\0depends=virtio,net-failover\0y"),
            ["virtio", "net_failover"]
        );
        assert!(needs(b"\0depends=\0").is_empty());
        assert!(needs(b"nothing").is_empty());
        assert_eq!(name_of(Path::new("kernel/drivers/virtio-rng.ko.xz")), "virtio_rng");
    }
}
