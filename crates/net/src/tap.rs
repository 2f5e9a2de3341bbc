//! A tap of the host, for those who may: made here or found, with several queues,
//! offloads passed through, and a bridge as its master.
//!
//! A tap that is made here is not persistent: it belongs to its descriptors, so the
//! kernel removes it with the process, also when that is killed. One that an
//! administrator has made for this user is used as it is, and stays.

mod netlink;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::frame::{Counters, Interface, Network, Occupied, Offload};
use crate::header;
use crate::wire::Wire;
use netlink::{Link, Netlink};

const DEVICE: &str = "/dev/net/tun";
/// With the terminating zero.
const NAME_SIZE: usize = 16;
const OFFLOADS: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;

#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error("'{0}' is not an interface's name: at most 15 letters, digits, '-', '_', '.'")]
    Name(String),
    #[error("{DEVICE} cannot be opened: {0}; the kernel's module 'tun' gives it")]
    Device(io::Error),
    #[error(
        "no permission for the tap {0}; run as root, or let root make it for you: \
         ip tuntap add {0} mode tap user NAME"
    )]
    Permission(String),
    #[error("the tap {0} is in use by another process")]
    InUse(String),
    #[error("{0} is not a tap with {1} queues; with one, give queues=1")]
    Other(String, usize),
    #[error("there is no bridge '{0}'; make one with: ip link add {0} type bridge")]
    NoBridge(String),
    #[error("'{0}' is an interface, but not a bridge")]
    NotABridge(String),
    #[error("cannot {doing} {name}: {source}")]
    Host {
        doing: &'static str,
        name: String,
        #[source]
        source: io::Error,
    },
}

/// What a tap is to be like.
#[derive(Clone, Debug)]
pub struct TapOptions {
    pub name: String,
    pub bridge: Option<String>,
    pub queues: u16,
    /// The bridge's, or the tap's own, where it is not given.
    pub mtu: Option<u16>,
}

pub struct Tap {
    wire: Wire,
    mtu: u16,
}

/// The kernel's `struct ifreq`, as far as taps need it.
#[repr(C)]
struct Request {
    name: [u8; NAME_SIZE],
    flags: libc::c_short,
    rest: [u8; 22],
}

fn check_name(name: &str) -> Result<(), TapError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let fits = (1..NAME_SIZE).contains(&name.len()) && name.bytes().all(good);
    if fits && name != "." && name != ".." { Ok(()) } else { Err(TapError::Name(name.to_owned())) }
}

fn failed(doing: &'static str, name: &str, error: Errno) -> TapError {
    match error {
        Errno::PERM | Errno::ACCESS => TapError::Permission(name.to_owned()),
        _ => TapError::Host { doing, name: name.to_owned(), source: error.into() },
    }
}

/// Opens one queue of a tap, which is made with the first.
fn open_queue(name: &str, queues: u16) -> Result<OwnedFd, TapError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let queue = rustix::fs::open(DEVICE, flags, Mode::empty()).map_err(|error| match error {
        Errno::PERM | Errno::ACCESS => TapError::Permission(name.to_owned()),
        error => TapError::Device(error.into()),
    })?;
    let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
    let mut request =
        Request { name: [0; NAME_SIZE], flags: flags as libc::c_short, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    let fd = queue.as_raw_fd();
    let header = header::LENGTH as libc::c_int;
    // SAFETY: the descriptor is open; the first call reads and writes a structure of the
    // kernel's size for it, the second reads an int, the third takes a number.
    let result = unsafe {
        match libc::ioctl(fd, libc::TUNSETIFF, std::ptr::from_mut(&mut request)) {
            0 => libc::ioctl(fd, libc::TUNSETVNETHDRSZ, std::ptr::from_ref(&header))
                .min(libc::ioctl(fd, libc::TUNSETOFFLOAD, libc::c_ulong::from(OFFLOADS))),
            error => error,
        }
    };
    if result == 0 {
        return Ok(queue);
    }
    Err(match Errno::from_io_error(&io::Error::last_os_error()) {
        Some(Errno::BUSY) => TapError::InUse(name.to_owned()),
        Some(Errno::INVAL) => TapError::Other(name.to_owned(), usize::from(queues)),
        error => failed("open the tap", name, error.unwrap_or(Errno::IO)),
    })
}

impl Tap {
    pub fn open(options: &TapOptions) -> Result<Tap, TapError> {
        let name = options.name.as_str();
        check_name(name)?;
        let mut netlink =
            Netlink::open().map_err(|error| failed("ask the kernel about", name, error))?;
        let bridge = options.bridge.as_deref().map(|bridge| find_bridge(&mut netlink, bridge));
        let bridge = bridge.transpose()?;
        let queues = options.queues.max(1);
        let queues: Result<Vec<OwnedFd>, TapError> =
            (0..queues).map(|_| open_queue(name, queues)).collect();
        let queues = queues?;
        let link = netlink.link(name).map_err(|error| failed("look at the tap", name, error))?;
        let link = link.ok_or_else(|| failed("look at the tap", name, Errno::NODEV))?;
        let wanted = options.mtu.map(u32::from).or(bridge.as_ref().map(|bridge| bridge.mtu));
        let mtu = wanted.unwrap_or(link.mtu);
        let master = bridge.map_or(link.master, |bridge| bridge.index);
        // Somebody without the privilege uses what an administrator has set.
        if mtu != link.mtu || master != link.master || !link.up {
            netlink
                .set(&link, mtu, master)
                .map_err(|error| failed("set up the tap", name, error))?;
        }
        let wire = Wire::new(queues).map_err(|error| failed("watch the tap", name, error))?;
        Ok(Tap { wire, mtu: mtu.min(u32::from(crate::user::MAX_MTU)) as u16 })
    }

    pub fn mtu(&self) -> u16 {
        self.mtu
    }
}

fn find_bridge(netlink: &mut Netlink, name: &str) -> Result<Link, TapError> {
    check_name(name)?;
    let found = netlink.link(name).map_err(|error| failed("look at the bridge", name, error))?;
    let bridge = found.ok_or_else(|| TapError::NoBridge(name.to_owned()))?;
    if bridge.kind != "bridge" {
        return Err(TapError::NotABridge(name.to_owned()));
    }
    Ok(bridge)
}

/// What tells this host from others, for addresses that must differ between them.
pub fn host_seed() -> String {
    let read = |path| io::read_to_string(File::open(path)?);
    read("/etc/machine-id")
        .or_else(|_| read("/proc/sys/kernel/hostname"))
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

impl Network for Tap {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.wire.descriptor()
    }

    fn timer(&self) -> Option<Duration> {
        self.wire.timer()
    }

    fn input(&mut self, frame: &[u8], offload: Offload) {
        self.wire.input(frame, offload);
    }

    fn poll(&mut self, interface: &mut dyn Interface) {
        self.wire.poll(interface);
    }

    fn counters(&self) -> Counters {
        self.wire.counters()
    }

    fn occupied(&self) -> Vec<Occupied> {
        self.wire.occupied()
    }
}

#[cfg(test)]
mod tests;
