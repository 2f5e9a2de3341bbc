//! The host's side: who may be connected to, and who connects.
//!
//! Other processes use Unix sockets. The guest's connections to port N of the host go to
//! the socket `PATH_N`; who connects to `PATH` and writes `CONNECT N` and a line feed is
//! connected to port N of the guest, after a line `OK` with the port it comes from. The
//! machine's own process needs no files: [`Host::connect`] and [`Host::listen`].

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::listening::Listening;
use crate::worker::Kick;

/// Connections of this process that wait for the device, or for `accept`.
const MOST_WAITING: usize = 64;
/// The longest first line of a process at the Unix socket.
pub const LONGEST_GREETING: usize = 32;

/// Why a connection did not come about, or a place to listen at was not to be had.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("{doing}: {source}")]
    Io {
        doing: String,
        #[source]
        source: io::Error,
    },
    #[error("nobody listens on port {0} in the guest")]
    Refused(u32),
    #[error("the guest did not answer on port {port} within {limit:?}")]
    TimedOut { port: u32, limit: Duration },
    #[error("port {0} of the host is taken")]
    PortTaken(u32),
    #[error("too many connections wait for the guest")]
    Busy,
}

fn io_error(doing: impl Into<String>) -> impl FnOnce(io::Error) -> HostError {
    let doing = doing.into();
    move |source| HostError::Io { doing, source }
}

/// A connection that this process wants.
pub struct Order {
    pub port: u32,
    pub stream: UnixStream,
    /// Told when the guest has answered, dropped when it has refused.
    pub done: SyncSender<()>,
}

/// What the guest's sockets lead to. It outlives devices: a machine that is made anew
/// gets a new device over the same host.
pub struct Host {
    socket: Option<Listening>,
    listeners: Mutex<HashMap<u32, SyncSender<UnixStream>>>,
    orders: Mutex<Vec<Order>>,
    bell: Kick,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    fn make(socket: Option<Listening>) -> Result<Arc<Self>, HostError> {
        let bell = Kick::new().map_err(|error| HostError::Io {
            doing: "making an eventfd".to_owned(),
            source: io::Error::other(error),
        })?;
        Ok(Arc::new(Self { socket, listeners: Mutex::default(), orders: Mutex::default(), bell }))
    }

    /// A host that only this process is on.
    pub fn private() -> Result<Arc<Self>, HostError> {
        Self::make(None)
    }

    /// A host that other processes reach, and are reached, through Unix sockets. The
    /// socket is this user's alone, and goes away with the host.
    pub fn at(path: &Path) -> Result<Arc<Self>, HostError> {
        let listening = Listening::at(path);
        let listening = listening.map_err(io_error(format!("listening at {}", path.display())))?;
        Self::make(Some(listening))
    }

    /// Connects to a port of the guest. A guest whose driver is not up yet is waited for,
    /// as long as the limit allows.
    pub fn connect(&self, port: u32, limit: Duration) -> Result<UnixStream, HostError> {
        let pair = UnixStream::pair().map_err(io_error("making a pair of sockets"))?;
        let (ours, stream) = pair;
        let (done, answer) = mpsc::sync_channel(1);
        {
            let mut orders = lock(&self.orders);
            if orders.len() >= MOST_WAITING {
                return Err(HostError::Busy);
            }
            orders.push(Order { port, stream, done });
        }
        self.bell.ring();
        match answer.recv_timeout(limit) {
            Ok(()) => Ok(ours),
            Err(RecvTimeoutError::Disconnected) => Err(HostError::Refused(port)),
            Err(RecvTimeoutError::Timeout) => Err(HostError::TimedOut { port, limit }),
        }
    }

    /// Takes the guest's connections to a port of the host. They come here before they
    /// would go to a Unix socket.
    pub fn listen(self: &Arc<Self>, port: u32) -> Result<Listener, HostError> {
        let (sender, streams) = mpsc::sync_channel(MOST_WAITING);
        let mut listeners = lock(&self.listeners);
        if listeners.contains_key(&port) {
            return Err(HostError::PortTaken(port));
        }
        listeners.insert(port, sender);
        Ok(Listener { host: self.clone(), port, streams })
    }

    /// The guest connects to a port of the host. Nothing if nobody is there.
    pub(super) fn reach(&self, port: u32) -> Option<UnixStream> {
        if let Some(listener) = lock(&self.listeners).get(&port) {
            let (ours, theirs) = UnixStream::pair().ok()?;
            return listener.try_send(theirs).ok().map(|()| ours);
        }
        let mut name = self.socket.as_ref()?.path().as_os_str().as_bytes().to_vec();
        name.extend(format!("_{port}").as_bytes());
        match connect_now(&name) {
            Ok(stream) => Some(stream),
            Err(error) => {
                tracing::debug!(%error, port, "the guest cannot be connected to a Unix socket");
                None
            }
        }
    }

    pub(super) fn take_orders(&self) -> Vec<Order> {
        std::mem::take(&mut *lock(&self.orders))
    }

    /// The next process that has come to the Unix socket.
    pub(super) fn visitor(&self) -> Option<UnixStream> {
        self.socket.as_ref()?.visitor()
    }

    pub(super) fn socket(&self) -> Option<&UnixListener> {
        self.socket.as_ref().map(Listening::listener)
    }

    pub(super) fn bell(&self) -> &Kick {
        &self.bell
    }
}

/// A connection at once or not at all: a listener whose backlog is full must not hold up
/// the guest's other connections.
fn connect_now(path: &[u8]) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// Connections of the guest to one port of the host.
pub struct Listener {
    host: Arc<Host>,
    port: u32,
    streams: Receiver<UnixStream>,
}

impl Listener {
    /// The next connection; nothing if none comes within the limit.
    pub fn accept(&self, limit: Duration) -> Option<UnixStream> {
        self.streams.recv_timeout(limit).ok()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        lock(&self.host.listeners).remove(&self.port);
    }
}

/// The port in `CONNECT PORT`, and the length of the line. Nothing while the line is not
/// complete.
pub fn parse_greeting(bytes: &[u8]) -> Option<Result<(u32, usize), ()>> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return (bytes.len() >= LONGEST_GREETING).then_some(Err(()));
    };
    let line = std::str::from_utf8(&bytes[..end]).map_err(|_| ());
    let port = line.and_then(|line| {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(verb), Some(port), None) if verb.eq_ignore_ascii_case("connect") => {
                port.parse().map_err(|_| ())
            }
            _ => Err(()),
        }
    });
    Some(port.map(|port| (port, end + 1)))
}
