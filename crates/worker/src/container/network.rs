//! The networks of a container: a network namespace with a tap for each in it, whose
//! other end a thread of the worker drives.
//!
//! On the user-mode network, connections that the container makes go on from sockets of
//! the worker, in the host's namespace and with the user's rights; published ports are
//! sockets of the worker too, and closed before its end is told. A named network is a port of
//! its switch.

mod tap;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use guise_net::frame::{Interface, Network, Offload, Receives};
use guise_net::switch::client::SwitchPort;
use guise_net::switch::hello::Join;
use guise_net::user::{Config, Forward, MAX_MTU, Transport, UserNetwork};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::system;
use crate::body::BodyError;
use crate::job::{self, Job, Protocol};

/// The largest frame: the largest packet and its Ethernet header.
const LARGEST: usize = MAX_MTU as usize + 14;
/// How many frames are taken before what they cause is sent.
const BATCH: usize = 64;

/// A namespace, and what it is plugged into.
pub struct Plug {
    pub namespace: OwnedFd,
    ends: Vec<(Box<dyn Network>, File)>,
}

/// Makes the namespace; none where the container has only loopback, or the host's interfaces.
pub fn plug(job: &Job) -> Result<Option<Plug>, BodyError> {
    let mut ends: Vec<(tap::Settings, Box<dyn Network>)> = Vec::new();
    if job.network == job::Network::User {
        ends.push(user_network(job)?);
    }
    if let Some(plug) = &job.plug {
        ends.push(switch_port(plug)?);
    }
    if ends.is_empty() {
        return Ok(None);
    }
    let (settings, networks): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
    let (namespace, taps) = tap::make(settings).map_err(|error| BodyError::Unsupported {
        what: format!("a network for the container (/dev/net/tun: {error})"),
        instead: "use --network none or host, or have the administrator open /dev/net/tun".into(),
    })?;
    Ok(Some(Plug { namespace, ends: networks.into_iter().zip(taps).collect() }))
}

/// Networks that are driven, as long as this lives.
pub struct Driven {
    /// Readable when the threads are to end.
    stop: Arc<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Driven {
    fn drop(&mut self) {
        // One more does not overflow it.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                eprintln!("a thread that drove a network has panicked");
            }
        }
    }
}

impl Plug {
    /// Starts a thread for each network. The namespace is for who starts programs in it.
    pub fn drive(self) -> Result<(OwnedFd, Driven), BodyError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC);
        let stop = stop.map_err(|e| system("make an event")(e.into()))?;
        let mut driven = Driven { stop: Arc::new(stop), threads: Vec::new() };
        for (network, tap) in self.ends {
            let stop = driven.stop.clone();
            let thread = std::thread::Builder::new().name("network".to_owned()).spawn(move || {
                if let Err(error) = drive(network, &tap, &stop) {
                    eprintln!("the network stopped: {error}");
                }
            });
            driven.threads.push(thread.map_err(system("start a thread for the network"))?);
        }
        Ok((self.namespace, driven))
    }
}

fn user_network(job: &Job) -> Result<(tap::Settings, Box<dyn Network>), BodyError> {
    let config =
        Config { mtu: MAX_MTU, host_name: Some(job.host_name.clone()), ..Config::default() };
    let settings = tap::Settings {
        mac: config.guest_mac,
        mtu: config.mtu,
        address: config.guest4,
        prefix: config.prefix4,
        router: Some(config.router4),
    };
    let mut network = UserNetwork::new(config).map_err(|e| BodyError::Failed(e.to_string()))?;
    for port in &job.ports {
        let transport = match port.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
        };
        let at = SocketAddr::new(port.address, port.host);
        network
            .add_forward(Forward { transport, at, guest_port: port.inside })
            .map_err(|error| BodyError::Failed(error.to_string()))?;
    }
    Ok((settings, Box::new(network)))
}

fn switch_port(plug: &job::Plug) -> Result<(tap::Settings, Box<dyn Network>), BodyError> {
    let who = Join { name: plug.name.clone(), mac: None, vlan: 0, isolated: false };
    let port = SwitchPort::open(&plug.socket, who).map_err(|e| BodyError::Failed(e.to_string()))?;
    let welcome = port.welcome();
    let settings = tap::Settings {
        mac: welcome.mac,
        mtu: welcome.mtu,
        address: welcome.address4,
        prefix: plug.subnet.prefix(),
        // Outwards leads the user-mode network.
        router: None,
    };
    Ok((settings, Box::new(port)))
}

/// Moves frames until it is to stop.
fn drive(mut network: Box<dyn Network>, tap: &File, stop: &OwnedFd) -> io::Result<()> {
    let mut room = Room { tap, frame: vec![0; LARGEST] };
    let mut frame = vec![0; LARGEST];
    loop {
        let timeout = network.timer().map(|after| Timespec {
            tv_sec: after.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: after.subsec_nanos().into(),
        });
        let mut ready = [
            PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(network.descriptor(), PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        match poll(&mut ready, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !ready[2].revents().is_empty() {
            return Ok(());
        }
        for _ in 0..BATCH {
            match (&mut &*tap).read(&mut frame) {
                Ok(length) => network.input(&frame[..length], Offload::default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        network.poll(&mut room);
    }
}

/// The tap as the network's interface: it always has room, and drops what the container
/// does not take in time, as a wire does.
struct Room<'a> {
    tap: &'a File,
    frame: Vec<u8>,
}

impl Interface for Room<'_> {
    fn receives(&self) -> Receives {
        Receives::default()
    }

    fn room(&mut self, size: usize) -> Option<&mut [u8]> {
        self.frame.get_mut(..size)
    }

    fn filled(&self, size: usize) -> &[u8] {
        &self.frame[..size]
    }

    fn deliver(&mut self, size: usize, _: Offload) {
        // A full queue drops it, and its sender sends again.
        let _ = (&mut &*self.tap).write(&self.frame[..size]);
    }
}
