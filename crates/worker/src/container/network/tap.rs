//! A network namespace with taps in it that have their addresses and, where there is
//! one, a router.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use guise_net::packet::Mac;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// What an interface is set to.
pub struct Settings {
    pub mac: Mac,
    pub mtu: u16,
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub router: Option<Ipv4Addr>,
}

/// Makes all on a thread of their own, so that this process stays in its namespace. The
/// interfaces are eth0, eth1, ….
pub fn make(interfaces: Vec<Settings>) -> io::Result<(OwnedFd, Vec<File>)> {
    let made = std::thread::spawn(move || make_here(&interfaces)).join();
    made.unwrap_or_else(|_| Err(io::Error::other("the thread that makes it failed")))
}

fn make_here(interfaces: &[Settings]) -> io::Result<(OwnedFd, Vec<File>)> {
    // SAFETY: only this thread moves, and it ends here; it shares nothing that other
    // threads rely on.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    let namespace = File::open("/proc/thread-self/ns/net")?;
    // SAFETY: a plain system call that returns a fresh descriptor.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    up(&socket, b"lo")?;
    let taps: io::Result<Vec<File>> = interfaces
        .iter()
        .enumerate()
        .map(|(number, settings)| {
            let name = format!("eth{number}");
            let tap = open(name.as_bytes())?;
            configure(&socket, name.as_bytes(), settings)?;
            Ok(tap)
        })
        .collect();
    Ok((namespace.into(), taps?))
}

/// A tap belongs to the namespace in which the device was opened. It stays when the file is closed,
/// until the namespace ends: the kernel takes a namespace apart on its own time, but whoever
/// closes the last file of a tap that goes with it waits for some 16 ms until nobody can see it.
fn open(name: &[u8]) -> io::Result<File> {
    let tap = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = named(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
    change(tap.as_raw_fd(), libc::TUNSETIFF, &mut request)?;
    // SAFETY: the request takes a number, and no memory.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST, 1) })?;
    rustix::io::ioctl_fionbio(&tap, true)?;
    Ok(tap)
}

fn up(socket: &OwnedFd, name: &[u8]) -> io::Result<()> {
    let mut request = named(name);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    change(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &mut request)
}

fn configure(owned: &OwnedFd, name: &[u8], settings: &Settings) -> io::Result<()> {
    let socket = owned.as_raw_fd();
    let mut request = named(name);
    request.ifr_ifru.ifru_hwaddr = libc::sockaddr {
        sa_family: libc::ARPHRD_ETHER,
        sa_data: std::array::from_fn(|i| settings.mac.get(i).map_or(0, |b| b.cast_signed())),
    };
    change(socket, libc::SIOCSIFHWADDR, &mut request)?;
    let mut request = named(name);
    request.ifr_ifru.ifru_mtu = settings.mtu.into();
    change(socket, libc::SIOCSIFMTU, &mut request)?;
    let mut request = named(name);
    request.ifr_ifru.ifru_addr = address(settings.address);
    change(socket, libc::SIOCSIFADDR, &mut request)?;
    let mut request = named(name);
    let mask = u32::MAX.checked_shl(32 - u32::from(settings.prefix)).unwrap_or(0);
    request.ifr_ifru.ifru_netmask = address(Ipv4Addr::from(mask));
    change(socket, libc::SIOCSIFNETMASK, &mut request)?;
    up(owned, name)?;
    let Some(router) = settings.router else { return Ok(()) };
    // SAFETY: a route is plain integers and a pointer, for which all-zero is valid.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = address(router);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: the request reads one route, which outlives the call.
    check(unsafe { libc::ioctl(socket, libc::SIOCADDRT, &raw const route) })
}

/// A request about the interface of this name.
fn named(name: &[u8]) -> libc::ifreq {
    // SAFETY: a request is plain integers and arrays, for which all-zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    request
}

fn address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data[2..].iter_mut().zip(address.octets()) {
        *to = from.cast_signed();
    }
    libc::sockaddr { sa_family: libc::AF_INET as u16, sa_data: data }
}

fn change(fd: i32, what: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: each of these requests reads or writes one ifreq, which outlives the call.
    check(unsafe { libc::ioctl(fd, what, std::ptr::from_mut(request)) })
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
