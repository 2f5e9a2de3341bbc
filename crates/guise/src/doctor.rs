//! `guise doctor`: what this host can do, what it cannot, and what to change.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Args;

use crate::Failure;
use crate::print::{Output, whole};

/// What this host can do, what it cannot, and what to change.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    output: Output,
}

/// Wider lines are hard to read even where there is room.
const WIDEST: usize = 100;
const DEFAULT_WIDTH: usize = 80;

pub fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let report = guise_doctor::examine();
    if !arguments.output.is_table() {
        whole(&report, arguments.output.format())?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = report.table(width(), std::io::stdout().is_terminal());
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
