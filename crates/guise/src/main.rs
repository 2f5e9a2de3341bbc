//! The `guise` binary: reads arguments, calls a library, prints. No logic of
//! its own: each subcommand is a file beside this one that turns its arguments
//! into one library call and the result into text and an exit code.

mod disk;

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
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match disk::called_as(&arguments).as_deref() {
        Some("qemu-img") => return disk::run_as_qemu_img(arguments),
        Some("qemu-io") => return disk::run_as_qemu_io(arguments),
        _ => {}
    }
    match Cli::parse().command {
        Command::Disk(args) => disk::run(args),
    }
}
