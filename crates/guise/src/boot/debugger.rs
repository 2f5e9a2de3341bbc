//! `--gdb`: a Unix socket at which a debugger can have the machine, one at a time.
//!
//! The machine runs until a debugger comes, and goes on when it has let go; it can come
//! back later. With `,wait` the machine stands still until the first one comes.

use std::convert::Infallible;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use guise_machine::debug::Debugged;
use guise_machine::{Ending, Machine};

use crate::Failure;

/// How often somebody looks whether a debugger is there.
const GLANCE: Duration = Duration::from_millis(50);

/// `--gdb SOCKET[,wait]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    path: PathBuf,
    wait: bool,
}

impl FromStr for Address {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let (path, wait) = match text.strip_suffix(",wait") {
            Some(path) => (path, true),
            None => (text, false),
        };
        Ok(Address { path: path.into(), wait })
    }
}

/// The socket. It is removed with this value.
pub struct Socket {
    listener: UnixListener,
    address: Address,
}

impl Socket {
    pub fn open(address: &Address) -> Result<Socket, Failure> {
        let path = &address.path;
        let failed = |error| Failure::failed(format!("--gdb {}: {error}", path.display()));
        // What a process left that has ended is in nobody's use; all else stays.
        let is_socket = path.metadata().is_ok_and(|found| found.file_type().is_socket());
        if is_socket && UnixStream::connect(path).is_err() {
            std::fs::remove_file(path).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let socket = Socket { listener, address: address.clone() };
        socket.listener.set_nonblocking(true).map_err(failed)?;
        Ok(socket)
    }

    fn visitor(&self) -> Option<UnixStream> {
        let (stream, _) = self.listener.accept().ok()?;
        stream.set_nonblocking(false).is_ok().then_some(stream)
    }

    /// Runs a machine until it ends or the deadline has come; nothing then.
    pub fn run(
        &mut self,
        machine: &Machine,
        deadline: Option<Instant>,
    ) -> Result<Option<Ending>, Failure> {
        if std::mem::take(&mut self.address.wait) {
            let path = self.address.path.display();
            eprintln!("guise: waiting for a debugger: gdb -ex 'target remote {path}'");
        } else {
            machine.resume();
        }
        loop {
            if let Some(stream) = self.visitor() {
                machine.pause().map_err(Failure::failed)?;
                match machine.debug(stream, deadline).map_err(Failure::failed)? {
                    Debugged::Detached => machine.resume(),
                    Debugged::Killed => return Ok(Some(Ending::Left)),
                    Debugged::Ended(ending) => return Ok(Some(ending)),
                }
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            let glance = left.map_or(GLANCE, |left| left.min(GLANCE));
            if let Some(ending) = machine.wait(Some(glance)) {
                return Ok(Some(ending));
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Somebody may have removed it before.
        let _ = std::fs::remove_file(&self.address.path);
    }
}
