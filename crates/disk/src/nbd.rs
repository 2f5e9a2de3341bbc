//! An NBD server: disks for other programs, over a Unix socket or the loopback
//! interface.
//!
//! Fixed newstyle negotiation, structured replies, block status with
//! `base:allocation` and the dirty bitmaps of qcow2 images. Each connection
//! has a thread; several connections to one export see each other's writes and
//! flushes, as they share one image.

mod negotiate;
mod transmit;
mod wire;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::device::BlockDevice;
use crate::error::{Error, Result};

/// A disk under a name.
#[derive(Clone)]
pub struct Export {
    pub name: String,
    pub description: String,
    pub device: BlockDevice,
    /// Writes are refused although the image could take them.
    pub readonly: bool,
    /// Dirty bitmaps that clients may ask for.
    pub bitmaps: Vec<String>,
}

impl Export {
    fn writable(&self) -> bool {
        self.device.writable() && !self.readonly
    }
}

/// Where clients connect.
#[derive(Clone, Debug)]
pub enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// The server before it serves.
pub struct Server {
    exports: Arc<Vec<Export>>,
    listener: Listener,
    stop: Arc<AtomicBool>,
}

enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

/// Ends a server from another thread, once its clients are gone.
#[derive(Clone)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// No new connections are taken.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Server {
    /// Binds the address. Only the loopback interface is served: the protocol
    /// has no access control here.
    pub fn bind(address: &Address, exports: Vec<Export>) -> Result<Self> {
        let listener = match address {
            Address::Unix(path) => {
                let bound = UnixListener::bind(path)
                    .map_err(|e| Error::io("listen on", path.display().to_string(), e))?;
                Listener::Unix(bound, path.clone())
            }
            Address::Tcp(address) if !address.ip().is_loopback() => {
                return Err(Error::option(
                    "address",
                    "only the loopback interface is served: there is no access control",
                ));
            }
            Address::Tcp(address) => Listener::Tcp(
                TcpListener::bind(address)
                    .map_err(|e| Error::io("listen on", address.to_string(), e))?,
            ),
        };
        Ok(Self { exports: Arc::new(exports), listener, stop: Arc::default() })
    }

    /// The address in use, where the system chose the port.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(..) => None,
        }
    }

    /// A handle that ends `run`.
    pub fn stopper(&self) -> Stop {
        Stop(Arc::clone(&self.stop))
    }

    /// Serves until stopped; with `clients`, until so many have come and all
    /// of them are gone.
    pub fn run(&self, clients: Option<usize>) -> Result<()> {
        let mut threads = Vec::new();
        let mut served = 0;
        while clients.is_none_or(|limit| served < limit) {
            let Some(connection) = self.accept()? else { break };
            served += 1;
            let exports = Arc::clone(&self.exports);
            threads.push(std::thread::spawn(move || {
                // A client that breaks the protocol loses its connection, and
                // nobody else is concerned.
                let _lost_connection = serve(connection, &exports);
            }));
            threads.retain(|thread| !thread.is_finished());
        }
        for thread in threads {
            let _panicked_alone = thread.join();
        }
        for export in self.exports.iter() {
            export.device.flush()?;
        }
        Ok(())
    }

    /// The next client; `None` when the server is to stop.
    fn accept(&self) -> Result<Option<Connection>> {
        let failed = |e| Error::io("accept on", "the NBD socket", e);
        let fd: &dyn std::os::fd::AsFd = match &self.listener {
            Listener::Unix(listener, _) => listener,
            Listener::Tcp(listener) => listener,
        };
        loop {
            if self.stop.load(Ordering::Acquire) {
                return Ok(None);
            }
            let mut polled =
                [rustix::event::PollFd::from_borrowed_fd(fd.as_fd(), rustix::event::PollFlags::IN)];
            let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
            match rustix::event::poll(&mut polled, Some(&wait)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(e) => return Err(failed(e.into())),
            }
            return Ok(Some(match &self.listener {
                Listener::Unix(listener, _) => {
                    let (stream, _) = listener.accept().map_err(failed)?;
                    Connection::new(stream.try_clone().map_err(failed)?, stream)
                }
                Listener::Tcp(listener) => {
                    let (stream, _) = listener.accept().map_err(failed)?;
                    stream.set_nodelay(true).map_err(failed)?;
                    Connection::new(stream.try_clone().map_err(failed)?, stream)
                }
            }));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = &self.listener {
            remove_socket(path);
        }
    }
}

fn remove_socket(path: &Path) {
    // Somebody may have removed it already.
    let _gone = std::fs::remove_file(path);
}

/// Both directions of a client's connection.
struct Connection {
    input: Box<dyn Read + Send>,
    output: Box<dyn Write + Send>,
}

impl Connection {
    fn new(input: impl Read + Send + 'static, output: impl Write + Send + 'static) -> Self {
        let input = Box::new(std::io::BufReader::with_capacity(64 << 10, input));
        let output = Box::new(std::io::BufWriter::with_capacity(64 << 10, output));
        Self { input, output }
    }
}

/// Serves one client over any pair of streams, until it leaves.
pub fn talk(
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
    exports: &[Export],
) -> std::io::Result<()> {
    serve(Connection::new(input, output), exports)
}

fn serve(mut connection: Connection, exports: &[Export]) -> std::io::Result<()> {
    match negotiate::negotiate(&mut connection, exports)? {
        Some(session) => transmit::transmit(&mut connection, &session),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
