//! Forwarded ports: what comes to an address of the host is handed to the guest.
//!
//! The guest sees the real source where that is an address elsewhere, and the router
//! where it is one of the host's own loopback, which it could not answer.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use super::poller::Token;
use super::tcp_flow::Key;
use super::{Context, NetError, socket, tcp, udp};
use crate::frame::{Interface, Reason};
use crate::packet::{ETHERNET, IPV4, UDP, udp_frame};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// An address of the host and a port of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub transport: Transport,
    /// With port 0 the host chooses one.
    pub at: SocketAddr,
    pub guest_port: u16,
}

const LARGEST_DATAGRAM: usize = 65_507;

struct Listener {
    forward: Forward,
    socket: OwnedFd,
}

#[derive(Default)]
pub struct Forwards {
    listeners: Vec<Option<Listener>>,
    /// Ports of the router that stand for loopback peers.
    next_port: u16,
}

impl Forwards {
    pub(super) fn add(
        &mut self,
        context: &mut Context,
        forward: Forward,
    ) -> Result<SocketAddr, NetError> {
        let failed = |source| NetError::Forward { address: forward.at, source };
        let socket = match forward.transport {
            Transport::Tcp => socket::listen(forward.at),
            Transport::Udp => socket::open(forward.at.ip(), libc::SOCK_DGRAM, 0)
                .and_then(|socket| socket::bind(socket.as_fd(), forward.at).map(|()| socket)),
        }
        .map_err(failed)?;
        let at = socket::local_address(socket.as_fd()).map_err(failed)?;
        let number = self.listeners.iter().position(Option::is_none).unwrap_or_else(|| {
            self.listeners.push(None);
            self.listeners.len() - 1
        });
        context.poller.add(socket.as_fd(), Token::Listener(number as u32)).map_err(failed)?;
        self.listeners[number] = Some(Listener { forward: Forward { at, ..forward }, socket });
        Ok(at)
    }

    pub(super) fn remove(
        &mut self,
        _: &mut Context,
        transport: Transport,
        at: SocketAddr,
    ) -> Result<(), NetError> {
        let matches = |listener: &Listener| {
            listener.forward.transport == transport && listener.forward.at == at
        };
        let found = self.listeners.iter_mut().find(|slot| slot.as_ref().is_some_and(matches));
        found.and_then(Option::take).map(drop).ok_or(NetError::NoForward(at))
    }

    /// Something came to a forwarded port.
    pub(super) fn ready(
        &mut self,
        context: &mut Context,
        number: u32,
        tcp: &mut tcp::Flows,
        udp: &mut udp::Flows,
        interface: &mut dyn Interface,
    ) {
        let Some(Some(listener)) = self.listeners.get(number as usize) else { return };
        match listener.forward.transport {
            Transport::Tcp => self.accept(context, number, tcp),
            Transport::Udp => self.datagrams(context, number, udp, interface),
        }
    }

    fn accept(&mut self, context: &mut Context, number: u32, tcp: &mut tcp::Flows) {
        loop {
            let Some(Some(listener)) = self.listeners.get(number as usize) else { return };
            let guest_port = listener.forward.guest_port;
            match socket::accept(listener.socket.as_fd()) {
                Ok((socket, peer)) => {
                    let guest = SocketAddr::new(context.config.guest4.into(), guest_port);
                    let remote = self.shown_to_guest(context, peer);
                    if let Err(reason) = tcp.open_to_guest(context, Key { guest, remote }, socket) {
                        context.counters.drop_for(reason);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn datagrams(
        &mut self,
        context: &mut Context,
        number: u32,
        udp: &mut udp::Flows,
        interface: &mut dyn Interface,
    ) {
        let headers = ETHERNET + IPV4 + UDP;
        let size = (usize::from(context.config.mtu) + ETHERNET).min(headers + LARGEST_DATAGRAM);
        let mut payload = vec![0; LARGEST_DATAGRAM];
        loop {
            let Some(Some(listener)) = self.listeners.get(number as usize) else { return };
            let (got, peer) = match socket::receive_from(listener.socket.as_fd(), &mut payload) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => continue,
            };
            let guest = SocketAddr::new(context.config.guest4.into(), listener.forward.guest_port);
            let remote = match peer.ip() {
                IpAddr::V4(ip) if !ip.is_loopback() => peer,
                _ => SocketAddr::new(context.config.router4.into(), peer.port()),
            };
            if let Err(reason) = udp.forwarded(context, guest, remote, &listener.socket, peer) {
                context.counters.drop_for(reason);
                continue;
            }
            if got > size - headers {
                udp.send_fragments(context, remote, guest, &payload[..got]);
                continue;
            }
            let receives = interface.receives();
            let Some(room) = interface.room(size) else {
                context.counters.drop_for(Reason::NoRoom);
                continue;
            };
            room[headers..headers + got].copy_from_slice(&payload[..got]);
            let mac = (context.config.guest_mac, context.config.router_mac);
            let (size, offload) = udp_frame(room, mac, remote, guest, got, receives);
            interface.deliver(size, offload);
            context.counters.frames_out += 1;
            context.counters.bytes_out += size as u64;
        }
    }

    /// The address by which the guest knows a peer.
    fn shown_to_guest(&mut self, context: &Context, peer: SocketAddr) -> SocketAddr {
        match peer.ip() {
            IpAddr::V4(ip) if !ip.is_loopback() => peer,
            // Two loopback addresses may use the same port, so the router's ports are
            // given out one after another.
            _ => {
                self.next_port = self.next_port.checked_add(1).unwrap_or(0).max(1024);
                SocketAddr::new(context.config.router4.into(), self.next_port)
            }
        }
    }
}
