//! Finding the program in the container, as a shell would.

use std::ffi::CString;
use std::io;

use rustix::fs::{Access, AtFlags, CWD, FileType};

use crate::error::{Error, Result};

/// Where programs are looked for when the environment names no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The path to execute for `name`, by the `PATH` of the program's own
/// environment. Has to run inside the container, as its user.
pub fn find(name: &str, env: &[String]) -> Result<CString> {
    let refuse = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            Error::ProgramNotFound(name.to_owned())
        }
        _ => Error::ProgramNotExecutable { program: name.to_owned(), source },
    };
    let text = |path: &str| {
        CString::new(path).map_err(|_| Error::config("process.args", "contains a NUL byte"))
    };
    if name.is_empty() {
        return Err(Error::ProgramNotFound(String::from("''")));
    }
    if name.contains('/') {
        check(name).map_err(refuse)?;
        return text(name);
    }
    let path = env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = format!("{directory}/{name}");
        match check(&candidate) {
            Ok(()) => return text(&candidate),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => failure = e,
            Err(_) => {}
        }
    }
    Err(refuse(failure))
}

fn check(path: &str) -> io::Result<()> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?;
    Ok(())
}
