//! Tests that need other privileges than the process has: they run themselves again.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::Command;

const INSIDE: &str = "GUISE_NET_TEST_INSIDE";
/// Nobody's numbers by custom.
const SOMEBODY: u32 = 65_534;

/// Runs a test again, by its whole name, in namespaces where it may do all.
pub fn in_a_namespace(test: &str, body: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let mut command = Command::new("unshare");
    command.args(["-rn", "--"]).arg(std::env::current_exe().unwrap());
    again(command, test, "unshare failed");
}

/// Whether the test runs as what [`as_somebody_else`] makes of it.
pub fn is_somebody_else() -> bool {
    !rustix::process::geteuid().is_root()
}

/// Runs a test again as a user who is not root, with a variable in its environment.
pub fn as_somebody_else(test: &str, (name, value): (&str, &OsStr)) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.uid(SOMEBODY).gid(SOMEBODY).current_dir("/").env(name, value);
    again(command, test, "ermission denied");
}

fn again(mut command: Command, test: &str, impossible: &str) {
    command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    match command.output() {
        Err(error) => println!("not run: {test}: {:?}: {error}", command.get_program()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            if !output.status.success() && said.contains(impossible) && !said.contains("panicked") {
                println!("not run: {test}: {said}");
                return;
            }
            let out = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && out.contains("1 passed"), "{out}{said}");
        }
    }
}
