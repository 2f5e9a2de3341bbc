//! Unix sockets that processes of the host come to: each is its user's alone, takes the
//! place of one that a killed process left behind, and goes away with its owner.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A socket in a directory. Taking a connection from it never waits.
pub struct Listening {
    listener: UnixListener,
    path: PathBuf,
}

impl Listening {
    pub fn at(path: &Path) -> io::Result<Self> {
        let is_socket = path.metadata().is_ok_and(|found| found.file_type().is_socket());
        if is_socket
            && UnixStream::connect(path)
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        let listening = Self { listener, path: path.to_owned() };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listening.listener.set_nonblocking(true)?;
        Ok(listening)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// The next process that has come.
    pub fn visitor(&self) -> Option<UnixStream> {
        self.listener.accept().ok().map(|(stream, _)| stream)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Somebody may have put something else there.
        let ours = self.listener.local_addr().ok();
        let ours = ours.as_ref().and_then(SocketAddr::as_pathname) == Some(self.path.as_path());
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
