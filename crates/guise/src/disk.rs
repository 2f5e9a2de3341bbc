//! `guise disk`, and the same under the name `qemu-img`: arguments into
//! library calls, results into text. Options have the letters of `qemu-img`, so
//! one description of the command line serves both names; what differs is in
//! [`Persona`].

mod change;
mod common;
mod convert;
mod create;
mod inspect;
mod output;
mod partitions;
mod qemu_io;
mod run;
mod serve;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Disk images: make, inspect, convert, change.
#[derive(Args)]
pub struct DiskArgs {
    #[command(subcommand)]
    command: Command,
}

/// The command line under the name `qemu-img`.
#[derive(Parser)]
#[command(name = "qemu-img", disable_version_flag = true)]
struct QemuImg {
    #[command(subcommand)]
    command: Command,
}

/// Under which name the program was called.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Persona {
    /// `guise disk`: formats are not guessed for writing, and images refer to
    /// files in their own directory only.
    Guise,
    /// `qemu-img`: as careless as scripts written for it expect.
    QemuImg,
}

#[derive(Subcommand)]
enum Command {
    /// Make a new image
    Create(create::CreateArgs),
    /// Show what an image is
    Info(inspect::InfoArgs),
    /// Copy images into a new one, in any format
    Convert(convert::ConvertArgs),
    /// Verify an image, and repair it if asked
    Check(inspect::CheckArgs),
    /// Compare the contents of two images
    Compare(inspect::CompareArgs),
    /// Show where the contents are
    Map(inspect::MapArgs),
    /// Calculate how large an image would become
    Measure(inspect::MeasureArgs),
    /// Change the size of a disk
    Resize(change::ResizeArgs),
    /// List, make, apply and delete internal snapshots
    Snapshot(change::SnapshotArgs),
    /// Change the backing file
    Rebase(change::RebaseArgs),
    /// Write changes into the backing file
    Commit(change::CommitArgs),
    /// Change options of an image
    Amend(change::AmendArgs),
    /// Add, remove and change dirty bitmaps
    Bitmap(change::BitmapArgs),
    /// Copy a part, with the options of dd(1)
    Dd(convert::DdArgs),
    /// Measure how fast requests are served
    Bench(run::BenchArgs),
    /// List the partitions of a disk
    Ls(partitions::LsArgs),
    /// Write a disk or one of its partitions to standard output
    Cat(partitions::CatArgs),
    /// Serve a disk to other programs (NBD)
    Serve(serve::ServeArgs),
}

/// Runs `guise disk`.
pub fn run(args: DiskArgs) -> ExitCode {
    finish(dispatch(args.command, Persona::Guise), "guise disk")
}

/// Runs under the name `qemu-img`.
pub fn run_as_qemu_img(arguments: Vec<OsString>) -> ExitCode {
    if arguments.get(1).is_some_and(|first| first == "--version" || first == "-V") {
        // Scripts ask for the version to know the options: these are those of 10.0.
        println!("qemu-img version 10.0.0 (guise {})", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    match QemuImg::try_parse_from(arguments) {
        Ok(args) => finish(dispatch(args.command, Persona::QemuImg), "qemu-img"),
        Err(error) if !error.use_stderr() => {
            // Nothing can be done when even the help cannot be printed.
            let _unprintable = error.print();
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("qemu-img: {}", misuse(&error));
            eprintln!("Try 'qemu-img --help' for more information");
            ExitCode::from(1)
        }
    }
}

/// What `qemu-img` says of a command line that cannot be.
fn misuse(error: &clap::Error) -> String {
    use clap::error::{ContextKind, ErrorKind};
    match (error.kind(), error.get(ContextKind::InvalidSubcommand)) {
        (ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand, _) => {
            "Not enough arguments".to_owned()
        }
        (_, Some(name)) => format!("Command not found: {name}"),
        _ => {
            let text = error.to_string();
            text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
        }
    }
}

/// Runs under the name `qemu-io`.
pub fn run_as_qemu_io(arguments: Vec<OsString>) -> ExitCode {
    crate::pipe::end_with_the_reader();
    qemu_io::run(arguments)
}

fn dispatch(command: Command, persona: Persona) -> common::Outcome {
    if !matches!(command, Command::Serve(_)) {
        crate::pipe::end_with_the_reader();
    }
    match command {
        Command::Create(args) => create::create(args, persona),
        Command::Info(args) => inspect::info(args, persona),
        Command::Convert(args) => convert::convert(args, persona),
        Command::Check(args) => inspect::check(args, persona),
        Command::Compare(args) => inspect::compare(args, persona),
        Command::Map(args) => inspect::map(args, persona),
        Command::Measure(args) => inspect::measure(args, persona),
        Command::Resize(args) => change::resize(args, persona),
        Command::Snapshot(args) => change::snapshot(args, persona),
        Command::Rebase(args) => change::rebase(args, persona),
        Command::Commit(args) => change::commit(args, persona),
        Command::Amend(args) => change::amend(args, persona),
        Command::Bitmap(args) => change::bitmap(args, persona),
        Command::Dd(args) => convert::dd(args, persona),
        Command::Bench(args) => run::bench(args, persona),
        Command::Ls(args) => partitions::ls(args, persona),
        Command::Cat(args) => partitions::cat(args, persona),
        Command::Serve(args) => serve::serve(args, persona),
    }
}

fn finish(outcome: common::Outcome, program: &str) -> ExitCode {
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("{program}: {}", failure.text);
            ExitCode::from(failure.code)
        }
    }
}

/// The name by which the program was called, without its directory.
pub fn called_as(arguments: &[OsString]) -> Option<String> {
    let name = PathBuf::from(arguments.first()?);
    Some(name.file_name()?.to_string_lossy().into_owned())
}
