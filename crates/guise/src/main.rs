//! The `guise` binary: reads arguments, calls a library, prints. No logic of
//! its own: each subcommand is a file beside this one that turns its arguments
//! into one library call and the result into text and an exit code.

mod oci;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// One image as a VM, a microVM, a container or a WebAssembly program.
#[derive(Parser)]
#[command(name = "guise", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The command line of an OCI runtime, for podman, Docker and containerd
    #[command(disable_help_flag = true)]
    Oci {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    if let Some(args) = oci::arguments() {
        return oci::main(args);
    }
    match Cli::parse().command {
        Command::Oci { args } => oci::main(args),
    }
}
