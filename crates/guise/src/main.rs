//! The `guise` binary: reads arguments, calls a library, prints. No logic of
//! its own: each subcommand is a file beside this one that turns its arguments
//! into one library call and the result into text and an exit code.

mod boot;
mod daemon;
mod disk;
mod doctor;
mod engine;
mod image;
mod instance;
mod oci;
mod pipe;
mod print;
mod switch;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

/// One image as a VM, a microVM, a container or a WebAssembly program.
#[derive(Parser)]
#[command(name = "guise", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    way: instance::Way,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(instance::Run),
    Create(instance::Create),
    Exec(instance::Exec),
    #[command(flatten)]
    Manage(instance::Manage),
    Logs(instance::Logs),
    /// Copy files between this host and an instance
    Cp(instance::Copy),
    Stats(instance::Stats),
    Events(instance::Events),
    /// Folders that outlive instances
    #[command(subcommand)]
    Volume(instance::Volume),
    /// Networks on which instances find each other by name
    #[command(subcommand)]
    Network(instance::Network),
    /// Long work that goes on by itself: images that are fetched, sent or built
    #[command(
        subcommand,
        after_help = "Examples:
  guise task ls
  guise task wait 402857136119
  guise task cancel 402857136119"
    )]
    Task(instance::Task),
    /// Objects that belong together, with a quota
    #[command(
        subcommand,
        after_help = "Examples:
  guise project create lab --instances 10 --memory 4G
  guise --project lab run -d -m 512M --name web debian:12 sleep 1h
  guise project ls
  guise --project lab rm -f web
  guise project rm lab"
    )]
    Project(instance::Project),
    /// Who may use the daemon from other hosts, and for what
    #[command(subcommand)]
    Token(instance::Token),
    Audit(instance::Audit),
    Info(instance::Info),
    Boot(boot::Arguments),
    Daemon(daemon::Arguments),
    /// Disk images: make, inspect, convert, change
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Disk(disk::DiskArgs),
    Doctor(doctor::Arguments),
    /// Fetch, list, inspect and remove images
    Image(image::ImageArgs),
    /// The command line of an OCI runtime, for podman, Docker and containerd
    #[command(disable_help_flag = true)]
    Oci {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    Switch(switch::Arguments),
    /// Print what completes this command line in a shell
    #[command(after_help = "Examples:
  guise completion bash > /etc/bash_completion.d/guise
  guise completion zsh > ~/.zfunc/_guise")]
    Completion {
        shell: clap_complete::Shell,
    },
}

/// Something went wrong in the way that the exit code says.
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// The command could not do what it was asked to.
    fn failed(error: impl std::fmt::Display) -> Self {
        Failure { code: 1, message: error.to_string() }
    }

    /// The command line asks for what cannot be.
    fn usage(error: impl std::fmt::Display) -> Self {
        Failure { code: 2, message: error.to_string() }
    }
}

fn main() -> ExitCode {
    // A tenth of the time that a container takes to start would go into the
    // description of all subcommands.
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(std::ffi::OsStr::to_str) {
        Some("oci") => return oci::main(args.collect()),
        // What the daemon starts for each instance; nobody else does.
        Some("worker") => return daemon::worker(args),
        _ => {}
    }
    let arguments: Vec<_> = std::env::args_os().collect();
    match disk::called_as(&arguments).as_deref() {
        Some("qemu-img") => return disk::run_as_qemu_img(arguments),
        Some("qemu-io") => return disk::run_as_qemu_io(arguments),
        _ => {}
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    instance::choose(cli.way);
    match cli.command {
        Command::Run(arguments) => report(instance::run(arguments)),
        Command::Create(arguments) => report(instance::create(arguments)),
        Command::Exec(arguments) => report(instance::exec(arguments)),
        Command::Manage(command) => report(instance::manage(command)),
        Command::Logs(arguments) => report(instance::logs(arguments)),
        Command::Cp(arguments) => report(instance::copy(arguments)),
        Command::Stats(arguments) => report(instance::stats(arguments)),
        Command::Events(arguments) => report(instance::events(arguments)),
        Command::Volume(command) => report(instance::volume(command)),
        Command::Network(command) => report(instance::network(command)),
        Command::Task(command) => report(instance::task(command)),
        Command::Project(command) => report(instance::project(command)),
        Command::Token(command) => report(instance::token(command)),
        Command::Audit(arguments) => report(instance::audit(arguments)),
        Command::Info(arguments) => report(instance::info(arguments)),
        Command::Boot(arguments) => report(boot::run(arguments)),
        Command::Daemon(arguments) => report(daemon::run(arguments)),
        Command::Disk(arguments) => disk::run(arguments),
        Command::Doctor(arguments) => report(doctor::run(&arguments)),
        Command::Image(arguments) => image::run(arguments),
        Command::Oci { args } => oci::main(args),
        Command::Switch(arguments) => report(switch::run(&arguments)),
        Command::Completion { shell } => {
            pipe::end_with_the_reader();
            let mut description = Cli::command();
            clap_complete::generate(shell, &mut description, "guise", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
    }
}

fn report(result: Result<ExitCode, Failure>) -> ExitCode {
    result.unwrap_or_else(|failure| {
        eprintln!("guise: {}", failure.message);
        ExitCode::from(failure.code)
    })
}

/// Help goes out as it is; an error becomes one line.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        // Whoever closed the pipe has read enough.
        let _ = error.print();
        return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
    }
    let text = error.to_string();
    // clap puts names of missing arguments on lines of their own.
    let said: Vec<_> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let said = said.join(" ");
    let said = said.strip_prefix("error: ").unwrap_or(&said);
    eprintln!("guise: {said} (see --help)");
    ExitCode::from(2)
}
