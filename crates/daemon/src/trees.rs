//! Removing what instances wrote: folders of instances, volumes.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use guise_api::{ApiError, Code};
use guise_container::namespaces::ranges;
use guise_worker::birth::{MAPPED, News};
use guise_worker::removal;

use crate::ids;

/// Why a tree is there yet.
#[derive(Debug, thiserror::Error)]
pub enum Left {
    #[error(transparent)]
    Failed(#[from] io::Error),
    /// It stays until somebody changes something.
    #[error("{0}; give this user the range of ids that it was written with, or remove it as root")]
    Foreign(String),
}

impl Left {
    /// For whoever wanted it removed.
    pub fn told(self, path: &Path) -> ApiError {
        let what = format!("remove {}: {self}", path.display());
        match self {
            Left::Failed(_) => ApiError::internal(what),
            Left::Foreign(_) => ApiError::new(Code::Unsupported, what),
        }
    }
}

/// Removes a tree, if it is there. To be called where waiting is no harm.
pub fn remove(path: &Path) -> Result<(), Left> {
    match removal::remove_tree(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => remove_as_all(path, error),
        other => Ok(other?),
    }
}

/// Removes what other users of a plain user's containers have left, which that user may not.
fn remove_as_all(path: &Path, refused: io::Error) -> Result<(), Left> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    if uid.is_root() {
        return Err(refused.into());
    }
    if let Err(lack) = ranges::of(uid.as_raw(), gid.as_raw()) {
        return Err(Left::Foreign(format!(
            "{refused}, because another user has written it, and {lack}"
        )));
    }
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("worker").arg(removal::ARGUMENT).arg(path);
    command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn()?;
    // With our copy of its end it would never be seen to end.
    drop(command);
    let mapped = serve(&ours, child.id());
    drop(ours);
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    mapped?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match output.status.code() {
        Some(code) if code == i32::from(removal::REFUSED) => Err(Left::Foreign(format!(
            "{said}, because a user has written it who is not in this user's ranges"
        ))),
        _ => Err(io::Error::other(said).into()),
    }
}

/// Maps the ids of the process at the other end, when it asks for that.
fn serve(stream: &UnixStream, child: u32) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    // One that has died says why elsewhere.
    if let Ok(News::MapMe { process, users }) = serde_json::from_str(&line) {
        ids::map(process, child, users).map_err(io::Error::other)?;
        let mut stream = stream;
        stream.write_all(MAPPED.as_bytes())?;
    }
    Ok(())
}
