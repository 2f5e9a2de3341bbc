//! `guise doctor`: what this host can do, what it cannot, and what to change.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::Failure;

/// What this host can do, what it cannot, and what to change.
#[derive(Args)]
pub struct Arguments {
    /// How to print the report
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Wider lines are hard to read even where there is room.
const WIDEST: usize = 100;
const DEFAULT_WIDTH: usize = 80;

pub fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let report = guise_doctor::examine();
    let text = match arguments.output {
        Output::Table => report.table(width(), std::io::stdout().is_terminal()),
        Output::Json => serde_json::to_string_pretty(&report).map_err(Failure::failed)? + "\n",
    };
    crate::pipe::end_with_the_reader();
    std::io::stdout().write_all(text.as_bytes()).map_err(Failure::failed)?;
    Ok(ExitCode::SUCCESS)
}

fn width() -> usize {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col).min(WIDEST),
        _ => DEFAULT_WIDTH,
    }
}
