//! The agent as a program. The kernel starts it as the first process of a microVM, or before that
//! of a system that boots by itself; everything else is for itself (`beside`, `export`, `import`,
//! `await-system`) or for tests (`serve`).

#![cfg_attr(not(test), forbid(clippy::unwrap_used, clippy::expect_used))]

mod guest;

use std::ffi::OsString;
use std::process::ExitCode;

use guise_agent::protocol::BESIDE_AGENT;

fn main() -> ExitCode {
    // What the kernel passes on to a system's first process may be anything.
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let arguments: Vec<OsString> = arguments.collect();
    if std::process::id() == 1 {
        return if name == BESIDE_AGENT { guest::beside::begin(&arguments) } else { guest::init() };
    }
    let arguments: Vec<&str> =
        arguments.iter().map(|argument| argument.to_str().unwrap_or_default()).collect();
    let result = match arguments[..] {
        ["beside"] => guest::beside::run(),
        ["export", path] => guest::archive::export(path),
        ["import", path] => guest::archive::import(path),
        ["await-system"] => guest::system::await_it(),
        // Sessions on a host: the connection is standard input.
        ["serve"] => guest::serve_standard_input(),
        _ => Err(std::io::Error::other(
            "this is the first process of a microVM; on a host it does nothing",
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guise-agent: {error}");
            ExitCode::FAILURE
        }
    }
}
