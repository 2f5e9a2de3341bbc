//! The connection to the host: never blocks, holds what could not be sent yet.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use guise_agent::protocol::{Decoder, Frame, Kind, ToHost, encode};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

pub struct Channel {
    fd: OwnedFd,
    decoder: Decoder,
    out: Vec<u8>,
    /// What of `out` has been sent.
    sent: usize,
}

/// Output of processes is not read while more than this waits to be sent.
const BUSY: usize = 256 << 10;

impl Channel {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Channel { fd, decoder: Decoder::default(), out: Vec::new(), sent: 0 })
    }

    pub fn standard_input() -> io::Result<Self> {
        let fd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        Self::new(fd)
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn send(&mut self, session: u32, message: &ToHost) {
        encode(&mut self.out, Kind::Control, session, &message.bytes());
    }

    pub fn send_data(&mut self, kind: Kind, session: u32, bytes: &[u8]) {
        encode(&mut self.out, kind, session, bytes);
    }

    pub fn has_output(&self) -> bool {
        self.sent < self.out.len()
    }

    pub fn is_busy(&self) -> bool {
        self.out.len() - self.sent > BUSY
    }

    /// Sends as much as goes.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.out.len() {
            match rustix::io::write(&self.fd, &self.out[self.sent..]) {
                Ok(length) => self.sent += length,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.out.drain(..self.sent);
                    self.sent = 0;
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    /// Sends everything, however long it takes.
    pub fn flush_all(&mut self) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&self.fd, false)?;
        self.flush()
    }

    /// Waits until the host has something to say or has hung up, for so long at the most.
    pub fn await_host(&self, limit: Duration) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        match rustix::event::poll(&mut fds, Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads what is there. Says whether the connection still stands.
    pub fn receive(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 32 << 10];
        match rustix::io::read(&self.fd, &mut buffer) {
            Ok(0) => Ok(false),
            Ok(length) => {
                self.decoder.push(&buffer[..length]);
                Ok(true)
            }
            Err(Errno::INTR | Errno::AGAIN) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    pub fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        self.decoder.next_frame().map_err(io::Error::other)
    }
}
