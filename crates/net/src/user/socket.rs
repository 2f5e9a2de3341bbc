//! Host sockets, as far as the standard library does not reach.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A socket address in the kernel's form.
pub struct Raw {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

impl Raw {
    pub fn new(address: SocketAddr) -> Raw {
        // SAFETY: all-zero bytes are a valid sockaddr_storage.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let length = match address {
            SocketAddr::V4(address) => {
                let raw = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                // SAFETY: sockaddr_storage is large enough and aligned for sockaddr_in.
                unsafe { std::ptr::from_mut(&mut storage).cast::<libc::sockaddr_in>().write(raw) };
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(address) => {
                let raw = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                };
                // SAFETY: sockaddr_storage is large enough and aligned for sockaddr_in6.
                unsafe { std::ptr::from_mut(&mut storage).cast::<libc::sockaddr_in6>().write(raw) };
                size_of::<libc::sockaddr_in6>()
            }
        };
        Raw { storage, length: length as libc::socklen_t }
    }

    pub fn pointer(&self) -> *const libc::sockaddr {
        std::ptr::from_ref(&self.storage).cast()
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A socket that does not block.
pub fn open(family: IpAddr, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    let domain = if family.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no preconditions; the result is checked.
    let fd = check(unsafe { libc::socket(domain, kind | flags, protocol) })?;
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Connects, or begins to.
pub fn connect(socket: BorrowedFd<'_>, to: SocketAddr) -> io::Result<()> {
    let raw = Raw::new(to);
    // SAFETY: the address is valid for its length.
    match check(unsafe { libc::connect(socket.as_raw_fd(), raw.pointer(), raw.length) }) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(()),
    }
}

/// A connected datagram socket.
pub fn datagrams(to: SocketAddr) -> io::Result<OwnedFd> {
    let socket = open(to.ip(), libc::SOCK_DGRAM, 0)?;
    connect(std::os::fd::AsFd::as_fd(&socket), to)?;
    Ok(socket)
}

pub fn set(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    let value = std::ptr::from_ref(&value).cast();
    // SAFETY: the value is an int of the size given.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, size) }).map(drop)
}

/// Whether datagrams may be cut on their way: if not, those that are too large fail.
pub fn set_whole_only(socket: BorrowedFd<'_>, v4: bool, only: bool) -> io::Result<()> {
    if v4 {
        let value = if only { libc::IP_PMTUDISC_DO } else { libc::IP_PMTUDISC_WANT };
        set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value)
    } else {
        let value = if only { libc::IPV6_PMTUDISC_DO } else { libc::IPV6_PMTUDISC_WANT };
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, value)
    }
}

/// The largest packet that the path of a connected socket takes, as far as is known.
pub fn path_mtu(socket: BorrowedFd<'_>, v4: bool) -> Option<u16> {
    let (level, option) =
        if v4 { (libc::IPPROTO_IP, libc::IP_MTU) } else { (libc::IPPROTO_IPV6, libc::IPV6_MTU) };
    let mut value: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    let pointer = std::ptr::from_mut(&mut value).cast();
    // SAFETY: the value is an int of the size given.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, pointer, &mut size) };
    (result == 0 && value > 0).then(|| value.min(i32::from(u16::MAX)) as u16)
}

/// The error that a socket has met, which is cleared.
pub fn take_error(socket: BorrowedFd<'_>) -> Option<io::Error> {
    let mut value: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    let pointer = std::ptr::from_mut(&mut value).cast();
    // SAFETY: the value is an int of the size given.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, pointer, &mut size)
    };
    match (result, value) {
        (0, 0) => None,
        (0, error) => Some(io::Error::from_raw_os_error(error)),
        _ => Some(io::Error::last_os_error()),
    }
}

pub fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the bytes are valid for reading.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

pub fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    let flags = flags | libc::MSG_DONTWAIT;
    // SAFETY: the bytes are valid for writing.
    let got =
        unsafe { libc::recv(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), flags) };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(got as usize) }
}

/// Throws away bytes at the front of a stream, without copying them.
pub fn discard(socket: BorrowedFd<'_>, count: usize) -> io::Result<usize> {
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: with MSG_TRUNC the kernel writes nothing to the buffer of a TCP socket.
    let got = unsafe { libc::recv(socket.as_raw_fd(), std::ptr::null_mut(), count, flags) };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(got as usize) }
}

/// Looks at the bytes of a stream that follow the first `skip`.
pub fn peek_after(socket: BorrowedFd<'_>, skip: &mut [u8], bytes: &mut [u8]) -> io::Result<usize> {
    let mut pieces = [
        libc::iovec { iov_base: skip.as_mut_ptr().cast(), iov_len: skip.len() },
        libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() },
    ];
    // SAFETY: all-zero bytes are a valid msghdr; both pieces are valid for writing.
    let got = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = pieces.as_mut_ptr();
        message.msg_iovlen = pieces.len();
        libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_PEEK | libc::MSG_DONTWAIT)
    };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(got as usize) }
}

pub fn shut_down_writing(socket: BorrowedFd<'_>) {
    // SAFETY: no preconditions; a socket that is gone already needs no shutdown.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) };
}

/// Makes closing the socket reset its connection.
pub fn reset_on_close(socket: BorrowedFd<'_>) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: the value is a linger structure of the size given; on failure the
    // connection ends in the orderly way, which is harmless.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            std::ptr::from_ref(&linger).cast(),
            size,
        )
    };
}

/// A listening socket of a port forward.
pub fn listen(at: SocketAddr) -> io::Result<OwnedFd> {
    let socket = open(at.ip(), libc::SOCK_STREAM, 0)?;
    let fd = std::os::fd::AsFd::as_fd(&socket);
    set(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    bind(fd, at)?;
    // SAFETY: no preconditions; the result is checked.
    check(unsafe { libc::listen(fd.as_raw_fd(), 1024) })?;
    Ok(socket)
}

pub fn bind(socket: BorrowedFd<'_>, at: SocketAddr) -> io::Result<()> {
    if at.is_ipv6() {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    let raw = Raw::new(at);
    // SAFETY: the address is valid for its length.
    check(unsafe { libc::bind(socket.as_raw_fd(), raw.pointer(), raw.length) }).map(drop)
}

/// Accepts a connection, and says where it comes from.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, SocketAddr)> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    with_address(|storage, length| {
        // SAFETY: the storage is valid for the length given.
        let fd = check(unsafe { libc::accept4(listener.as_raw_fd(), storage, length, flags) })?;
        // SAFETY: a fresh descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    })
}

pub fn receive_from(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    with_address(|storage, length| {
        // SAFETY: the bytes are valid for writing, the storage for the length given.
        let got = unsafe {
            libc::recvfrom(
                socket.as_raw_fd(),
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                libc::MSG_DONTWAIT,
                storage,
                length,
            )
        };
        if got < 0 { Err(io::Error::last_os_error()) } else { Ok(got as usize) }
    })
}

pub fn send_to(socket: BorrowedFd<'_>, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
    let raw = Raw::new(to);
    // SAFETY: the bytes and the address are valid for their lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
            raw.pointer(),
            raw.length,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

pub fn local_address(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    with_address(|storage, length| {
        // SAFETY: the storage is valid for the length given.
        check(unsafe { libc::getsockname(socket.as_raw_fd(), storage, length) })
    })
    .map(|(_, address)| address)
}

fn with_address<T>(
    call: impl FnOnce(*mut libc::sockaddr, *mut libc::socklen_t) -> io::Result<T>,
) -> io::Result<(T, SocketAddr)> {
    // SAFETY: all-zero bytes are a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    let value = call(std::ptr::from_mut(&mut storage).cast(), &mut length)?;
    let address = if i32::from(storage.ss_family) == libc::AF_INET6 {
        // SAFETY: the kernel says that this is a sockaddr_in6.
        let raw = unsafe { &*std::ptr::from_ref(&storage).cast::<libc::sockaddr_in6>() };
        SocketAddr::new(Ipv6Addr::from(raw.sin6_addr.s6_addr).into(), u16::from_be(raw.sin6_port))
    } else {
        // SAFETY: any other family here is AF_INET, whose fields any bytes are valid for.
        let raw = unsafe { &*std::ptr::from_ref(&storage).cast::<libc::sockaddr_in>() };
        let address = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
        SocketAddr::new(address.into(), u16::from_be(raw.sin_port))
    };
    Ok((value, address))
}
