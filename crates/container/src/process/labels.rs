//! Labels of security modules that take effect at the next exec.
//!
//! They are written through a procfs that only this process holds (see
//! `rootfs::proc`), so that nothing a container mounts can turn the write into
//! another one (CVE-2025-52881).

use std::path::Path;

use crate::error::{Context, Error, Result};
use crate::rootfs::proc::PrivateProc;
use crate::spec::Process;

/// Whether the program gets a label.
pub fn wanted(process: &Process) -> bool {
    [&process.apparmor_profile, &process.selinux_label]
        .into_iter()
        .any(|label| label.as_deref().is_some_and(|l| !l.is_empty()))
}

/// Sets the AppArmor profile of the program.
pub fn apply_apparmor(proc: &PrivateProc, profile: &str) -> Result<()> {
    if !Path::new("/sys/kernel/security/apparmor").exists() && !enabled_by_parameter() {
        return Err(Error::unsupported(
            format!("the AppArmor profile {profile:?}"),
            "this kernel runs without AppArmor: leave out process.apparmorProfile",
        ));
    }
    let text = format!("exec {profile}");
    proc.write("self/attr/apparmor/exec", text.as_bytes())
        .or_else(|_| proc.write("self/attr/exec", text.as_bytes()))
        .during(|| format!("set the AppArmor profile {profile:?}"))
}

/// Sets the SELinux label of the program.
pub fn apply_selinux(proc: &PrivateProc, label: &str) -> Result<()> {
    proc.write("self/attr/exec", label.as_bytes()).during(|| {
        format!("set the SELinux label {label:?} (leave out process.selinuxLabel without SELinux)")
    })
}

/// Whether the host's kernel runs SELinux; only then do file systems take labels.
pub fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

fn enabled_by_parameter() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|t| t.starts_with(b"Y"))
}
