//! The `guise` binary: reads arguments, calls a library, prints. No logic of
//! its own: each subcommand is a file beside this one that turns its arguments
//! into one library call and the result into text and an exit code.

mod image;

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
    /// Fetch, list, inspect and remove images
    Image(image::ImageArgs),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Image(args) => image::run(args),
    }
}
