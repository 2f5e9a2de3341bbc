//! What can go wrong while test guests are fetched or built.

use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum TestkitError {
    #[error("{doing} {}: {source}", path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("cannot run {program}: {source} (`make setup` installs what is missing)")]
    Start {
        program: String,
        #[source]
        source: std::io::Error,
    },
    /// A program ran and failed.
    #[error("{program} failed ({status}): {output}")]
    Failed { program: String, status: std::process::ExitStatus, output: String },
    /// A kernel's package without a module that it should have.
    #[error("the kernel {kernel} has no module {name}")]
    Module { name: String, kernel: &'static str },
    #[error("package {package} of {suite} {problem}")]
    Package { package: String, suite: &'static str, problem: &'static str },
}

impl TestkitError {
    /// For `map_err` on a file operation.
    pub(crate) fn file(
        doing: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::File { doing, path, source }
    }
}

/// Runs a program to its end and returns what it wrote to its standard output.
pub(crate) fn run(command: &mut std::process::Command) -> Result<String, TestkitError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|source| TestkitError::Start { program: program.clone(), source })?;
    if !output.status.success() {
        return Err(TestkitError::Failed {
            program,
            status: output.status,
            output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
