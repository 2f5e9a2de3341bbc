//! Engines that cannot be had: one line each, that says what to do.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::{have, not_run};
use guise_testkit::baremetal::Program;

const NOBODY: u32 = 65534;

/// The binary where any user can execute it.
struct Public(tempfile::TempDir);

impl Public {
    fn new() -> Public {
        let directory = tempfile::tempdir().expect("a directory");
        let everybody = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), everybody).expect("it is ours");
        let copies = [
            (Path::new(env!("CARGO_BIN_EXE_guise")), "guise"),
            (&have(Program::PowerOff.image()), "kernel"),
        ];
        for (from, name) in copies {
            std::fs::copy(from, directory.path().join(name)).expect("room for a copy");
        }
        Public(directory)
    }

    /// `guise boot` under a shell's limits.
    fn boot(&self, limits: &str, arguments: &[&str]) -> Command {
        let mut shell = Command::new("sh");
        shell
            .arg("-c")
            .arg(format!("{limits}; exec ./guise boot --kernel kernel \"$@\""))
            .arg("sh");
        shell.args(["--timeout", "60", "--testdev"]).args(arguments);
        shell.current_dir(self.0.path()).stdin(Stdio::null());
        shell
    }
}

#[track_caller]
fn refused(output: &Output, says: &[&str]) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(output.stdout.is_empty());
    assert_eq!(errors.lines().count(), 1, "{errors}");
    for text in says {
        assert!(errors.contains(text), "{text:?} is not in {errors}");
    }
}

#[test]
fn kvm_that_may_not_be_opened_or_is_not_there() {
    let public = Public::new();
    let mut command = public.boot("true", &["--engine", "kvm"]);
    let says = match std::fs::metadata("/dev/kvm") {
        Err(_) => ["there is no /dev/kvm", "--engine soft"],
        Ok(device) if device.permissions().mode() & 0o6 != 0 => {
            return not_run("a /dev/kvm without permission", "everybody may open this host's");
        }
        Ok(_) => {
            if rustix::process::geteuid().is_root() {
                command.uid(NOBODY).gid(NOBODY);
            } else if std::fs::File::open("/dev/kvm").is_ok() {
                return not_run("a /dev/kvm without permission", "this user may open it");
            }
            ["no permission to open /dev/kvm; join the group", "--engine soft"]
        }
    };
    refused(&command.output().expect("the binary starts"), &says);
}

#[test]
fn a_host_without_memory_for_the_guest() {
    let public = Public::new();
    // Half a gigabyte of addresses for all of the process.
    let output = public.boot("ulimit -v 524288", &["--engine", "soft", "--memory", "1G"]).output();
    refused(&output.expect("the binary starts"), &["the host gave no RAM (1 GiB)", "memory"]);
}
