//! Message sockets between the runtime and a container's first process, and
//! descriptors sent over them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// The longest message; an error text is cut to fit.
pub const MAX_MESSAGE: usize = 8192;

/// As many descriptors as a message may carry: two for each hierarchy of cgroups, of which
/// Linux has fewer than twenty.
pub const MOST_DESCRIPTORS: usize = 64;

/// One end of a pair of sockets that keep message boundaries.
pub struct Channel(OwnedFd);

impl Channel {
    /// Two connected ends, closed on exec.
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let (a, b) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Channel(a), Channel(b)))
    }

    /// Wraps a connected socket of that kind.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Channel(fd)
    }

    /// Sends one message, with a descriptor if there is one.
    pub fn send(&self, message: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let message = &message[..message.len().min(MAX_MESSAGE)];
        send_fd(self.0.as_fd(), message, fd)
    }

    /// Sends one message with as many descriptors as one may carry.
    pub fn send_many(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        send_fds(self.0.as_fd(), message, fds)
    }

    /// Receives one message; an empty one means the other end is gone.
    pub fn receive(&self) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
        receive_fd(self.0.as_fd(), MAX_MESSAGE)
    }

    /// Receives one message and all descriptors that came with it.
    pub fn receive_many(&self) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        receive_fds(self.0.as_fd(), MAX_MESSAGE)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sends bytes and perhaps a descriptor over a unix socket.
pub fn send_fd(socket: BorrowedFd<'_>, data: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    send_fds(socket, data, fd.as_slice())
}

fn send_fds(socket: BorrowedFd<'_>, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("no room for descriptors"));
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(data)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Receives up to `limit` bytes and at most one descriptor; others are closed.
pub fn receive_fd(socket: BorrowedFd<'_>, limit: usize) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    receive_fds(socket, limit).map(|(data, fds)| (data, fds.into_iter().next()))
}

fn receive_fds(socket: BorrowedFd<'_>, limit: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut data = vec![0u8; limit];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut reset = false;
    let length = loop {
        let mut parts = [IoSliceMut::new(&mut data)];
        match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received.bytes,
            Err(rustix::io::Errno::INTR) => {}
            // Told once, of an end that went without reading everything: what that said before is
            // yet to be heard.
            Err(rustix::io::Errno::CONNRESET) if !std::mem::replace(&mut reset, true) => {}
            Err(e) => return Err(e.into()),
        }
    };
    data.truncate(length);
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            fds.extend(came);
        }
    }
    Ok((data, fds))
}

#[cfg(test)]
mod tests;
