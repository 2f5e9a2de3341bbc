//! The `guise` binary: reads arguments, calls a library, prints. No logic of
//! its own: each subcommand is a file beside this one that turns its arguments
//! into one library call and the result into text and an exit code.

mod disk;
mod image;
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
    /// Disk images: make, inspect, convert, change
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Disk(disk::DiskArgs),
    /// Fetch, list, inspect and remove images
    Image(image::ImageArgs),
    /// The command line of an OCI runtime, for podman, Docker and containerd
    #[command(disable_help_flag = true)]
    Oci {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    // A container's start is measured in milliseconds: its command line comes first, and
    // does without the tree of all others.
    if let Some(args) = oci::arguments() {
        return oci::main(args);
    }
    let arguments: Vec<_> = std::env::args_os().collect();
    if disk::called_as(&arguments).as_deref() == Some("qemu-img") {
        return disk::run_as_qemu_img(arguments);
    }
    match Cli::parse().command {
        Command::Disk(args) => disk::run(args),
        Command::Image(args) => image::run(args),
        Command::Oci { args } => oci::main(args),
    }
}
