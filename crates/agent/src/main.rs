//! The agent as a program. The kernel starts it as the first process of a microVM;
//! everything else is for itself (`export`, `import`) or for tests (`serve`).

#![cfg_attr(not(test), forbid(clippy::unwrap_used, clippy::expect_used))]

mod guest;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if std::process::id() == 1 {
        return guest::init();
    }
    let result = match arguments[..] {
        ["export", path] => guest::archive::export(path),
        ["import", path] => guest::archive::import(path),
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
