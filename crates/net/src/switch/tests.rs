//! A whole switch with ports in process.

mod fabric;

use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;

use super::client::{SwitchPort, Welcome, status};
use super::*;
use crate::driver::Driver;
use crate::frame::{Network, Offload, Receives};
use crate::namespace::{as_somebody_else, is_somebody_else};
use crate::packet::{Ethernet, Packet, TYPE_ARP, udp_frame};

const WAIT: Duration = Duration::from_secs(30);

/// A switch on a thread, and where it keeps its things.
struct Running {
    folder: tempfile::TempDir,
    stopper: Stopper,
    thread: Option<std::thread::JoinHandle<()>>,
}

fn config(host: bool) -> SwitchConfig {
    let policy = Policy { host, ..Policy::default() };
    SwitchConfig { mtu: 1500, policy, resolvers: Vec::new(), admitted: None }
}

impl Running {
    fn start() -> Running {
        Running::begin(tempfile::tempdir().unwrap())
    }

    fn begin(folder: tempfile::TempDir) -> Running {
        let book = Book::open(folder.path(), "lab", None).unwrap();
        let path = folder.path().join("socket");
        let mut switch = Switch::open(&path, book, config(true)).unwrap();
        let stopper = switch.stopper();
        let thread = std::thread::spawn(move || switch.run().unwrap());
        Running { folder, stopper, thread: Some(thread) }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn join(&self, name: &str, vlan: u16, isolated: bool) -> Result<Guest, SwitchError> {
        let join = Join { name: name.to_owned(), mac: None, vlan, isolated };
        let port = SwitchPort::open(&self.path(), join)?;
        let welcome = port.welcome();
        Ok(Guest { port, welcome, driver: Driver::default() })
    }

    fn stop(&mut self) {
        self.stopper.stop();
        self.thread.take().into_iter().for_each(|thread| thread.join().unwrap());
    }

    /// Drops of a port for a reason.
    fn drops(&self, name: &str, reason: Reason) -> u64 {
        let ports = status(&self.path()).unwrap();
        let port = ports.into_iter().find(|port| port.name == name).expect("the port");
        let found = port.drops.into_iter().find(|(text, _)| text == reason.name());
        found.map_or(0, |(_, count)| count)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Guest {
    port: SwitchPort,
    welcome: Welcome,
    driver: Driver,
}

impl Guest {
    fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.welcome.address4.into(), port)
    }

    fn datagram(&self, to_mac: Mac, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 42 + payload.len()];
        frame[42..].copy_from_slice(payload);
        let macs = (to_mac, self.welcome.mac);
        udp_frame(&mut frame, macs, self.address(4000), to, payload.len(), Receives::default());
        frame
    }

    fn send(&mut self, frame: &[u8]) {
        self.port.input(frame, Offload::default());
    }

    /// The next frame for which `wanted` finds something.
    fn wait<T>(&mut self, what: &str, wanted: impl Fn(&[u8], Offload) -> Option<T>) -> T {
        let deadline = Instant::now() + WAIT;
        loop {
            self.port.poll(&mut self.driver);
            while let Some((frame, offload)) = self.driver.frames.pop_front() {
                if let Some(found) = wanted(&frame, offload) {
                    return found;
                }
            }
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn wait_for_datagram(&mut self, payload: &[u8]) {
        self.wait("a datagram", |frame, _| frame.ends_with(payload).then_some(()));
    }

    /// Takes what has come so far; none of it may be a datagram with this payload.
    fn has_not(&mut self, payload: &[u8]) {
        self.port.poll(&mut self.driver);
        assert!(!self.driver.frames.iter().any(|(frame, _)| frame.ends_with(payload)), "a leak");
    }

    /// The payload of the next datagram from a port of the gateway's.
    fn answer(&mut self, from_port: u16) -> Vec<u8> {
        self.wait("an answer", |frame, offload| {
            let ethernet = Ethernet::parse(frame).ok()?;
            let packet = Packet::parse(ethernet.kind, ethernet.payload).ok()?;
            let udp = packet.udp(&offload).ok()?;
            (udp.source == from_port).then(|| udp.payload.to_vec())
        })
    }
}

const BROADCAST: Mac = [0xff; 6];

#[test]
fn frames_go_where_they_should_and_nowhere_else() {
    let running = Running::start();
    let mut a = running.join("a", 0, false).unwrap();
    let mut b = running.join("b", 0, false).unwrap();
    let mut c = running.join("c", 0, false).unwrap();
    let mut other = running.join("other", 7, false).unwrap();
    let to_b = a.datagram(b.welcome.mac, b.address(9), b"for b alone");
    a.send(&to_b);
    b.wait_for_datagram(b"for b alone");
    let to_all = a.datagram(BROADCAST, b.address(9), b"for all");
    a.send(&to_all);
    b.wait_for_datagram(b"for all");
    c.wait("the broadcast", |frame, _| {
        assert!(!frame.ends_with(b"for b alone"), "a leak to another port");
        frame.ends_with(b"for all").then_some(())
    });
    // Nothing crosses to another VLAN, not even to who knows the address.
    let to_other = a.datagram(other.welcome.mac, other.address(9), b"across");
    a.send(&to_other);
    let unknown = a.datagram([2, 9, 9, 9, 9, 9], b.address(9), b"nobody");
    a.send(&unknown);
    let last = a.datagram(b.welcome.mac, b.address(9), b"last");
    a.send(&last);
    b.wait("the last", |frame, _| {
        assert!(!frame.ends_with(b"nobody"), "an unknown address is not flooded");
        frame.ends_with(b"last").then_some(())
    });
    for payload in [&b"across"[..], b"for all", b"for b alone"] {
        other.has_not(payload);
    }
    assert_eq!(running.drops("a", Reason::Policy), 1);
    assert_eq!(running.drops("a", Reason::Unreachable), 1);
}

#[test]
fn isolated_ports_reach_the_others_but_not_each_other() {
    let running = Running::start();
    let mut a = running.join("a", 0, true).unwrap();
    let mut b = running.join("b", 0, true).unwrap();
    let mut open = running.join("open", 0, false).unwrap();
    for to in [b.welcome.mac, BROADCAST] {
        let frame = a.datagram(to, b.address(9), b"isolated");
        a.send(&frame);
    }
    open.wait_for_datagram(b"isolated");
    b.has_not(b"isolated");
    let back = open.datagram(a.welcome.mac, a.address(9), b"back");
    open.send(&back);
    a.wait_for_datagram(b"back");
    assert_eq!(running.drops("a", Reason::Policy), 1);
}

#[test]
fn nobody_speaks_for_another() {
    let running = Running::start();
    let mut a = running.join("a", 0, false).unwrap();
    let mut b = running.join("b", 0, false).unwrap();
    // b's MAC, then b's address, from a's port.
    let mut frame = a.datagram(BROADCAST, b.address(9), b"spoofed");
    frame[6..12].copy_from_slice(&b.welcome.mac);
    a.send(&frame);
    let mut frame = vec![0; 42];
    let macs = (BROADCAST, a.welcome.mac);
    udp_frame(&mut frame, macs, b.address(1), a.address(1), 0, Receives::default());
    a.send(&frame);
    // The gateway's address by ARP.
    let mut arp = vec![0; 42];
    arp[..6].copy_from_slice(&BROADCAST);
    arp[6..12].copy_from_slice(&a.welcome.mac);
    arp[12..14].copy_from_slice(&TYPE_ARP.to_be_bytes());
    arp[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
    arp[22..28].copy_from_slice(&a.welcome.mac);
    let [x, y, z, _] = a.welcome.address4.octets();
    arp[28..32].copy_from_slice(&[x, y, z, 2]);
    a.send(&arp);
    let last = a.datagram(b.welcome.mac, b.address(9), b"last");
    a.send(&last);
    b.wait("the last", |frame, _| {
        assert!(!frame.ends_with(b"spoofed"), "a spoofed frame came through");
        assert_ne!(frame[12..14], TYPE_ARP.to_be_bytes(), "spoofed ARP came through");
        frame.ends_with(b"last").then_some(())
    });
    assert_eq!(running.drops("a", Reason::Spoofed), 3);
}

#[test]
fn names_resolve_and_the_gateway_leads_out() {
    let running = Running::start();
    let mut a = running.join("a", 0, false).unwrap();
    let b = running.join("web", 0, false).unwrap();
    let router_mac =
        Book::open(tempfile::tempdir().unwrap().path(), "lab", None).unwrap().router_mac();
    let [x, y, z, _] = a.welcome.address4.octets();
    let at = |host, port| SocketAddr::new([x, y, z, host].into(), port);
    let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x00\x00\x01\x00\x01";
    let frame = a.datagram(router_mac, at(3, 53), query);
    a.send(&frame);
    let answer = a.answer(53);
    assert_eq!(answer[answer.len() - 4..], b.welcome.address4.octets());
    // A server of the host, by the gateway.
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(WAIT)).unwrap();
    let port = server.local_addr().unwrap().port();
    let frame = a.datagram(router_mac, at(2, port), b"question");
    a.send(&frame);
    let mut bytes = [0; 100];
    let (size, peer) = server.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..size], b"question");
    server.send_to(b"answer", peer).unwrap();
    assert_eq!(a.answer(port), b"answer");
}

#[test]
fn a_port_that_cannot_be_is_refused_in_one_line() {
    let running = Running::start();
    let _a = running.join("a", 0, false).unwrap();
    let refused = |name: &str, vlan| match running.join(name, vlan, false) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("'{name}' on VLAN {vlan} was let in"),
    };
    assert!(refused("a", 0).contains("an instance named 'a' is on this switch already"));
    assert!(refused("b", 4095).contains("there is no VLAN 4095"));
    assert!(refused("B!", 0).contains("not a name"));
    let twice = Book::open(running.folder.path(), "second", None).unwrap();
    let twice = Switch::open(&running.path(), twice, config(false)).err().unwrap();
    assert!(matches!(twice, SwitchError::InUse { .. }), "{twice}");
    let nowhere = running.folder.path().join("nowhere");
    let join = Join { name: "a".to_owned(), mac: None, vlan: 0, isolated: false };
    let nobody = SwitchPort::open(&nowhere, join).err().unwrap().to_string();
    assert!(nobody.contains("no switch answers") && !nobody.contains('\n'), "{nobody}");
}

#[test]
fn a_switch_that_begins_again_is_joined_again() {
    let mut running = Running::start();
    let mut a = running.join("a", 0, false).unwrap();
    let mut b = running.join("b", 0, false).unwrap();
    running.stop();
    let folder = std::mem::replace(&mut running.folder, tempfile::tempdir().unwrap());
    a.port.poll(&mut a.driver);
    let _running = Running::begin(folder);
    let deadline = Instant::now() + WAIT;
    loop {
        for guest in [&mut a, &mut b] {
            guest.port.poll(&mut guest.driver);
        }
        let frame = a.datagram(b.welcome.mac, b.address(9), b"again");
        a.send(&frame);
        b.port.poll(&mut b.driver);
        if b.driver.frames.iter().any(|(frame, _)| frame.ends_with(b"again")) {
            break;
        }
        assert!(Instant::now() < deadline, "the ports are not back");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn strange_greetings_end_a_connection_and_not_the_switch() {
    let running = Running::start();
    for message in [&b"\0"[..], b"{}", b"{\"guise\":9,\"hello\":\"status\"}", &[b'['; 5000]] {
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let socket = socket.unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(running.path()).unwrap()).unwrap();
        rustix::io::write(&socket, message).unwrap();
        let mut answer = [0; 4096];
        let size = rustix::io::read(&socket, &mut answer[..]).unwrap();
        assert!(answer[..size].starts_with(b"{\"refusal\""));
        assert_eq!(rustix::io::read(&socket, &mut answer[..]).unwrap(), 0);
    }
    assert!(status(&running.path()).unwrap().is_empty());
}

#[test]
fn other_users_are_not_served() {
    const AT: &str = "GUISE_SWITCH_TEST_SOCKET";
    const NAME: &str = "switch::tests::other_users_are_not_served";
    if let Some(path) = std::env::var_os(AT) {
        let path = PathBuf::from(path);
        let join = Join { name: "guest".to_owned(), mac: None, vlan: 0, isolated: false };
        assert!(SwitchPort::open(&path, join).is_err());
        assert!(status(&path).is_err());
        return;
    }
    if is_somebody_else() {
        println!("not run: only root can be another user");
        return;
    }
    // Even where the socket's mode would let them in.
    let running = Running::start();
    let open = |path: &Path| {
        let all = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(path, all).unwrap();
    };
    open(running.folder.path());
    open(&running.path());
    as_somebody_else(NAME, (AT, running.path().as_os_str()));
    running.join("own", 0, false).unwrap();
}
