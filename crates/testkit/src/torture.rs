//! The program that tortures a kernel from user space: compiled here, run on the
//! host and in a guest, where it must print the same lines.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::TestkitError;
use crate::error::run;
use crate::initramfs::store;

/// Processes, threads, signals, memory, floating point, self-modifying code,
/// single steps: a static 64-bit program.
pub fn program() -> Result<PathBuf, TestkitError> {
    let flags = ["-O1", "-static", "-pthread", "-fno-stack-protector"];
    compile("torture/torture.c", "programs/torture", &flags)
}

/// The same kernel seen from a 32-bit program, which brings its own start-up code.
pub fn program_32() -> Result<PathBuf, TestkitError> {
    let flags = ["-O1", "-m32", "-static", "-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie"];
    compile("torture/torture32.c", "programs/torture32", &flags)
}

pub(crate) fn compile(source: &str, name: &str, flags: &[&str]) -> Result<PathBuf, TestkitError> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests").join(source);
    let output = crate::baremetal::scratch_file()?;
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=gnu11", "-Wall", "-Werror", "-Wl,--build-id=none"])
        .args(flags)
        .arg("-o")
        .arg(output.path())
        .arg(&source);
    run(&mut gcc)?;
    let bytes =
        std::fs::read(output.path()).map_err(TestkitError::file("reading", output.path()))?;
    let path = store(name, &bytes)?;
    make_executable(&path)?;
    Ok(path)
}

fn make_executable(path: &Path) -> Result<(), TestkitError> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
        .map_err(TestkitError::file("changing the mode of", path))
}
