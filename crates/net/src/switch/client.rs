//! A port of a switch, from the side of the process that has the guest.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with, sockopt};

use super::hello::{self, Answer, Hello, Join, PortStatus};
use super::{SwitchError, host};
use crate::frame::{Counters, Interface, Network, Occupied, Offload};
use crate::packet::Mac;
use crate::wire::Wire;

/// How long a switch may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same when a guest waits meanwhile.
const SHORT: Duration = Duration::from_millis(200);
/// How long to wait before a switch that went is looked for again.
const AGAIN: Duration = Duration::from_secs(1);

/// What the switch gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    pub mac: Mac,
    pub address4: Ipv4Addr,
    pub address6: Ipv6Addr,
    pub mtu: u16,
}

/// A port. A switch that ends and begins again is joined again.
pub struct SwitchPort {
    wire: Wire,
    path: PathBuf,
    join: Join,
    welcome: Welcome,
    retry: Option<Instant>,
    closed: bool,
}

fn question(
    path: &Path,
    hello: Hello,
    patience: Duration,
) -> Result<(OwnedFd, Answer), SwitchError> {
    let failed = |error: Errno| SwitchError::Socket { path: path.to_owned(), source: error.into() };
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(failed)?;
    rustix::net::connect(&socket, &address).map_err(|error| match error {
        Errno::NOENT | Errno::CONNREFUSED => SwitchError::Nobody { path: path.to_owned() },
        Errno::PROTOTYPE => SwitchError::Language { path: path.to_owned() },
        _ => failed(error),
    })?;
    let _ = sockopt::set_socket_send_buffer_size(&socket, 1 << 20);
    hello::ask(&socket, hello).map_err(failed)?;
    let mut fds = [PollFd::new(&socket, PollFlags::IN)];
    let limit = Timespec::try_from(patience).ok();
    if rustix::event::poll(&mut fds, limit.as_ref()).map_err(failed)? == 0 {
        return Err(SwitchError::Language { path: path.to_owned() });
    }
    let mut bytes = vec![0; hello::LONGEST_ANSWER];
    let size = rustix::io::read(&socket, &mut bytes[..]).map_err(failed)?;
    let answer = serde_json::from_slice(&bytes[..size])
        .map_err(|_| SwitchError::Language { path: path.to_owned() })?;
    Ok((socket, answer))
}

fn join(path: &Path, join: &Join, patience: Duration) -> Result<(OwnedFd, Welcome), SwitchError> {
    match question(path, Hello::Join(join.clone()), patience)? {
        (socket, Answer::Welcome { mac, address4, address6, mtu }) => {
            Ok((socket, Welcome { mac, address4, address6, mtu }))
        }
        (_, Answer::Refusal { error }) => Err(SwitchError::Refused(error)),
        (_, Answer::Status { .. }) => Err(SwitchError::Language { path: path.to_owned() }),
    }
}

/// The ports of a switch that runs.
pub fn status(path: &Path) -> Result<Vec<PortStatus>, SwitchError> {
    match question(path, Hello::Status, PATIENCE)? {
        (_, Answer::Status { ports }) => Ok(ports),
        (_, Answer::Refusal { error }) => Err(SwitchError::Refused(error)),
        (_, Answer::Welcome { .. }) => Err(SwitchError::Language { path: path.to_owned() }),
    }
}

impl SwitchPort {
    pub fn open(path: &Path, who: Join) -> Result<SwitchPort, SwitchError> {
        let (socket, welcome) = join(path, &who, PATIENCE)?;
        // The same again, also when others have come meanwhile.
        let who = Join { mac: Some(welcome.mac), ..who };
        let wire = Wire::new(vec![socket]).map_err(host("watch sockets"))?;
        Ok(SwitchPort {
            wire,
            path: path.to_owned(),
            join: who,
            welcome,
            retry: None,
            closed: false,
        })
    }

    pub fn welcome(&self) -> Welcome {
        self.welcome
    }

    /// Joins a switch again that was down.
    fn rejoin(&mut self) {
        let now = Instant::now();
        let at = *self.retry.get_or_insert(now + AGAIN);
        if at > now {
            return;
        }
        let joined = join(&self.path, &self.join, SHORT);
        // Another address would be the guest's no more.
        let done = joined.is_ok_and(|(socket, welcome)| {
            welcome == self.welcome && self.wire.replace(vec![socket]).is_ok()
        });
        self.retry = (!done).then(|| now + AGAIN);
    }
}

impl Network for SwitchPort {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.wire.descriptor()
    }

    fn timer(&self) -> Option<Duration> {
        match self.retry {
            Some(at) => Some(at.saturating_duration_since(Instant::now())),
            None => self.wire.timer(),
        }
    }

    fn input(&mut self, frame: &[u8], offload: Offload) {
        self.wire.input(frame, offload);
    }

    fn poll(&mut self, interface: &mut dyn Interface) {
        if !self.wire.is_down() {
            self.wire.poll(interface);
        }
        if self.wire.is_down() && !self.closed {
            // A socket that has hung up is readable for good.
            let _ = self.wire.replace(Vec::new());
            self.rejoin();
        }
    }

    fn counters(&self) -> Counters {
        self.wire.counters()
    }

    fn close(&mut self) {
        self.closed = true;
        self.retry = None;
        // Without descriptors there is nothing that could fail.
        let _ = self.wire.replace(Vec::new());
    }

    fn occupied(&self) -> Vec<Occupied> {
        self.wire.occupied()
    }
}
