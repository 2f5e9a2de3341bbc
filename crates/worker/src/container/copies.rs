//! Files in and out of a container: each time by a process of its own, for which the
//! container's root is all there is.
//!
//! It has the right to pass over what files allow, because the container's users are others,
//! and no other. Of its standard streams one is the archive and one the root.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use guise_container::jail::Cell;
use guise_container::rootfs::path::open_host;

use super::system;
use crate::body::{BodyError, failed};
use crate::{files, jail};

/// Of what it says when it fails, so much is told.
const LONGEST_COMPLAINT: u64 = 4096;

/// What is copied where, seen from the container.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Out,
    In,
}

impl Way {
    const ALL: [Way; 2] = [Way::Out, Way::In];

    /// The argument that stands for it.
    fn argument(self) -> &'static str {
        match self {
            Way::Out => "--copy-out",
            Way::In => "--copy-in",
        }
    }
}

/// A copy under way.
pub struct Copying(Child);

impl Copying {
    /// Begins one; gives the end of the archive's stream besides.
    pub fn begin(way: Way, root: OwnedFd, path: &str) -> Result<(Copying, OwnedFd), BodyError> {
        let (read, write) = io::pipe().map_err(system("make a pipe"))?;
        let mut command = Command::new("/proc/self/exe");
        command.args(["worker", way.argument(), path]).env_clear().stderr(Stdio::piped());
        let ours: OwnedFd = match way {
            Way::Out => {
                command.stdin(root).stdout(write);
                read.into()
            }
            Way::In => {
                command.stdin(read).stdout(root);
                write.into()
            }
        };
        let child = command.spawn().map_err(system("start a process that copies"))?;
        Ok((Copying(child), ours))
    }

    /// Waits until it is over.
    pub fn finish(mut self) -> Result<(), BodyError> {
        let mut said = Vec::new();
        if let Some(complaints) = self.0.stderr.take() {
            // What there is of it is as good as all.
            let _ = complaints.take(LONGEST_COMPLAINT).read_to_end(&mut said);
        }
        let status = self.0.wait().map_err(system("wait for a process that copies"))?;
        match status.success() {
            true => Ok(()),
            false => Err(BodyError::Failed(match String::from_utf8_lossy(&said).trim() {
                "" => format!("the process that copies failed ({status})"),
                said => said.to_owned(),
            })),
        }
    }
}

/// The process that copies, by its arguments. None where they are others.
pub fn copy(arguments: &[String]) -> Option<Result<(), BodyError>> {
    let [way, path] = arguments else { return None };
    let way = Way::ALL.into_iter().find(|known| known.argument() == way)?;
    Some(copy_here(way, path))
}

fn copy_here(way: Way, path: &str) -> Result<(), BodyError> {
    let own = |stream: BorrowedFd<'_>| {
        stream.try_clone_to_owned().map_err(system("use a standard stream"))
    };
    let (input, output) = (io::stdin(), io::stdout());
    let (root, archive) = match way {
        Way::Out => (own(input.as_fd())?, own(output.as_fd())?),
        Way::In => (own(output.as_fd())?, own(input.as_fd())?),
    };
    Cell { folder: root, capabilities: jail::OF_COPIES, calls: jail::calls_of_copies() }
        .enter()
        .map_err(failed)?;
    let root = open_host("/").map_err(system("open the root file system"))?;
    let mut archive = File::from(archive);
    match way {
        Way::Out => files::copy_out(root, path, &mut archive),
        Way::In => files::copy_in(root, path, &mut archive),
    }
}
