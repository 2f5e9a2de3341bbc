//! Which host sockets have something to say: an epoll set with edge-triggered members,
//! because data for a guest that has no room stays in its socket.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::NetError;

/// A member of the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    Tcp(u32, Ready),
    Udp(u32),
    Echo(u32),
    Listener(u32),
}

/// What happened to a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    pub readable: bool,
    pub writable: bool,
    /// The other end sends nothing more.
    pub hung_up: bool,
    pub failed: bool,
}

pub struct Poller {
    epoll: OwnedFd,
    found: VecDeque<Token>,
    /// Nothing more was found the last time: the next call asks the kernel again.
    drained: bool,
}

const BATCH: usize = 64;

impl Poller {
    pub fn new() -> Result<Poller, NetError> {
        // SAFETY: no preconditions; the result is checked.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            let source = std::io::Error::last_os_error();
            return Err(NetError::Host { doing: "watch sockets", source });
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Poller { epoll, found: VecDeque::new(), drained: false })
    }

    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Adds a socket; it leaves the set when it is closed.
    pub fn add(&self, socket: BorrowedFd<'_>, token: Token) -> std::io::Result<()> {
        let (kind, number) = match token {
            Token::Tcp(number, _) => (0u64, number),
            Token::Udp(number) => (1, number),
            Token::Echo(number) => (2, number),
            Token::Listener(number) => (3, number),
        };
        let events = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET;
        let events = if kind == 0 { events | libc::EPOLLOUT } else { events };
        let mut event =
            libc::epoll_event { events: events as u32, u64: kind << 32 | u64::from(number) };
        let (epoll, socket) = (self.epoll.as_raw_fd(), socket.as_raw_fd());
        // SAFETY: both descriptors are open, the event is a valid structure.
        let result = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, socket, &mut event) };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    }

    /// The next socket that is ready; none when all have been named.
    pub fn next(&mut self) -> Option<Token> {
        if self.found.is_empty() && !self.drained {
            self.ask();
        }
        let next = self.found.pop_front();
        if next.is_none() {
            self.drained = false;
        }
        next
    }

    fn ask(&mut self) {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
        // SAFETY: the array has room for as many events as are asked for.
        let count = unsafe {
            libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), BATCH as i32, 0)
        };
        let count = count.max(0) as usize;
        // A full batch may not be all.
        self.drained = count < BATCH;
        for event in &events[..count] {
            let (bits, data) = (event.events as i32, event.u64);
            let number = data as u32;
            self.found.push_back(match data >> 32 {
                0 => Token::Tcp(
                    number,
                    Ready {
                        readable: bits & libc::EPOLLIN != 0,
                        writable: bits & libc::EPOLLOUT != 0,
                        hung_up: bits & (libc::EPOLLRDHUP | libc::EPOLLHUP) != 0,
                        failed: bits & (libc::EPOLLERR | libc::EPOLLHUP) != 0,
                    },
                ),
                1 => Token::Udp(number),
                2 => Token::Echo(number),
                _ => Token::Listener(number),
            });
        }
    }
}
