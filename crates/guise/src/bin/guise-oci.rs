//! `guise oci` alone, for callers that want the path of a runtime: podman's
//! `--runtime`, Docker's and containerd's configuration.

#[path = "../oci/mod.rs"]
mod oci;

use std::process::ExitCode;

fn main() -> ExitCode {
    oci::main(std::env::args_os().skip(1).collect())
}
