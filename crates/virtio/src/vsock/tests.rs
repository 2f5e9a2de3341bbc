use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::packet::*;
use super::*;
use crate::queue::driver::BUFFERS;
use crate::transport::guest::Guest;

const CID: u32 = 7;
const LIMIT: Duration = Duration::from_secs(60);
/// Where received packets go, and sent ones come from.
const SENT: u64 = BUFFERS + 0x10_0000;
const ROOM: u32 = 4096;

/// A guest's driver with a few buffers for packets.
struct Peer {
    guest: Guest,
    host: Arc<Host>,
    /// What the guest tells of itself.
    forwarded: u32,
    buffer: u32,
}

impl Peer {
    fn new(host: Arc<Host>) -> Self {
        let mut peer = Self::without_buffers(host);
        for index in 0..8 {
            peer.guest.queues[0].add(&[(BUFFERS + index * u64::from(ROOM), ROOM, true)]);
        }
        peer.guest.notify(0);
        peer
    }

    fn without_buffers(host: Arc<Host>) -> Self {
        let mut guest = Guest::new(Vsock::new(CID, host.clone()));
        guest.start(0, false, true);
        Self { guest, host, forwarded: 0, buffer: 64 << 10 }
    }

    fn header(&self, ports: (u32, u32), operation: u16) -> Header {
        Header {
            source_cid: u64::from(CID),
            destination_cid: HOST_CID,
            source_port: ports.1,
            destination_port: ports.0,
            kind: STREAM,
            operation,
            buffer: self.buffer,
            forwarded: self.forwarded,
            ..Header::default()
        }
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        let queue = &mut self.guest.queues[1];
        queue.put(SENT, &header.bytes());
        queue.put(SENT + 64, data);
        let length = data.len() as u32;
        let buffers = [(SENT, LENGTH as u32, false), (SENT + 64, length, false)];
        queue.add(if data.is_empty() { &buffers[..1] } else { &buffers });
        self.guest.notify(1);
        self.guest.queues[1].wait_used();
    }

    fn tell(&mut self, ports: (u32, u32), operation: u16) {
        self.send(self.header(ports, operation), &[]);
    }

    fn data(&mut self, ports: (u32, u32), data: &[u8]) {
        let header = Header { length: data.len() as u32, ..self.header(ports, DATA) };
        self.send(header, data);
    }

    /// The next packet from the host; its buffer goes back to the device.
    fn next(&mut self) -> (Header, Vec<u8>) {
        let used = self.guest.queues[0].wait_used();
        self.open(used)
    }

    /// The same, if one has come.
    fn glance(&mut self) -> Option<Header> {
        let used = self.guest.queues[0].used()?;
        Some(self.open(used).0)
    }

    fn open(&mut self, (id, written): (u16, u32)) -> (Header, Vec<u8>) {
        let at = BUFFERS + u64::from(id) * u64::from(ROOM);
        let bytes: [u8; ROOM as usize] = self.guest.queues[0].get(at);
        let (header, data) = bytes[..written as usize].split_first_chunk::<LENGTH>().unwrap();
        let (header, data) = (Header::parse(header), data.to_vec());
        assert_eq!(header.length as usize, data.len());
        assert_eq!((header.source_cid, header.destination_cid), (HOST_CID, u64::from(CID)));
        self.guest.queues[0].offer(id);
        self.guest.notify(0);
        (header, data)
    }

    fn expect(&mut self, operation: u16) -> Header {
        let (header, _) = self.next();
        assert_eq!(header.operation, operation, "{header:?}");
        header
    }

    /// A connection of the guest to a port of the host, with its other end.
    fn connected(&mut self) -> UnixStream {
        let listener = self.host.listen(1000).unwrap();
        self.tell((1000, 5), REQUEST);
        self.expect(RESPONSE);
        listener.accept(LIMIT).unwrap()
    }
}

const PORTS: (u32, u32) = (1000, 5);

#[test]
fn headers_survive_the_way_through_bytes() {
    let header = Header {
        source_cid: 0x1_0000_0002,
        destination_cid: 3,
        source_port: 4,
        destination_port: 0xdead_beef,
        length: 6,
        kind: 7,
        operation: 8,
        flags: 9,
        buffer: 10,
        forwarded: 11,
    };
    assert_eq!(Header::parse(&header.bytes()), header);
    assert_eq!(header.bytes()[20..24], [0xef, 0xbe, 0xad, 0xde]);
}

#[test]
fn greetings_are_read_to_their_end() {
    use super::host::parse_greeting;
    assert_eq!(parse_greeting(b"CONN"), None);
    assert_eq!(parse_greeting(b"CONNECT 52\nmore"), Some(Ok((52, 11))));
    assert_eq!(parse_greeting(b"connect 4294967295\r\n"), Some(Ok((u32::MAX, 20))));
    for wrong in ["CONNECT\n", "CONNECT x\n", "CONNECT 1 2\n", "\n", "CONNECT 4294967296\n"] {
        assert_eq!(parse_greeting(wrong.as_bytes()), Some(Err(())), "{wrong:?}");
    }
    assert_eq!(parse_greeting(&[b'x'; 32]), Some(Err(())));
    assert_eq!(parse_greeting(b"\xff\n"), Some(Err(())));
}

#[test]
fn the_guest_knows_its_address() {
    let peer = Peer::new(Host::private().unwrap());
    assert_eq!(peer.guest.config::<8>(0), [7, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn the_guest_connects_to_this_process() {
    let mut peer = Peer::new(Host::private().unwrap());
    peer.tell((99, 5), REQUEST);
    let refused = peer.expect(RESET);
    assert_eq!((refused.source_port, refused.destination_port), (99, 5));
    let mut stream = peer.connected();
    peer.data(PORTS, b"hello");
    let mut got = [0; 5];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    stream.write_all(b"and back").unwrap();
    let (header, data) = peer.next();
    assert_eq!((header.operation, &*data, header.forwarded), (DATA, &b"and back"[..], 5));
    // The guest closes: it is answered, and the host sees the end.
    peer.send(Header { flags: 3, ..peer.header(PORTS, SHUTDOWN) }, &[]);
    peer.expect(RESET);
    assert_eq!(stream.read(&mut got).unwrap(), 0);
}

#[test]
fn the_host_connects_and_closes() {
    let mut peer = Peer::new(Host::private().unwrap());
    let host = peer.host.clone();
    let refused = std::thread::spawn(move || host.connect(52, LIMIT).map(drop));
    let request = peer.expect(REQUEST);
    assert_eq!(request.destination_port, 52);
    peer.tell((request.source_port, 52), RESET);
    assert!(matches!(refused.join().unwrap(), Err(HostError::Refused(52))));

    let host = peer.host.clone();
    let wanted = std::thread::spawn(move || host.connect(52, LIMIT));
    let request = peer.expect(REQUEST);
    let ports = (request.source_port, 52);
    peer.tell(ports, RESPONSE);
    let mut stream = wanted.join().unwrap().unwrap();
    stream.write_all(b"x").unwrap();
    assert_eq!(peer.next().1, b"x");
    // Half closed: the guest may still send.
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(peer.expect(SHUTDOWN).flags, NO_SEND);
    peer.data(ports, b"late");
    let mut got = [0; 4];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"late");
    drop(stream);
    peer.expect(RESET);
}

#[test]
fn a_guest_that_does_not_answer_is_given_up() {
    let mut peer = Peer::new(Host::private().unwrap());
    let result = peer.host.connect(52, Duration::from_millis(50));
    assert!(matches!(result, Err(HostError::TimedOut { port: 52, .. })));
    peer.expect(REQUEST);
    peer.expect(RESET);
}

#[test]
fn processes_connect_through_unix_sockets() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let mut peer = Peer::new(Host::at(&path).unwrap());
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client.write_all(b"CONNECT 80\nearly").unwrap();
    let request = peer.expect(REQUEST);
    peer.tell((request.source_port, 80), RESPONSE);
    let expected = format!("OK {}\n", request.source_port);
    let mut got = vec![0; expected.len()];
    client.read_exact(&mut got).unwrap();
    assert_eq!(got, expected.as_bytes());
    assert_eq!(peer.next().1, b"early");

    let mut wrong = UnixStream::connect(&path).unwrap();
    wrong.set_read_timeout(Some(LIMIT)).unwrap();
    wrong.write_all(b"hello\n").unwrap();
    assert_eq!(wrong.read(&mut [0; 9]).unwrap_or(0), 0);

    // The other way: a listener at PATH_PORT.
    let listener = std::os::unix::net::UnixListener::bind(directory.path().join("socket_1234"));
    let listener = listener.unwrap();
    peer.tell((1234, 6), REQUEST);
    peer.expect(RESPONSE);
    peer.data((1234, 6), b"ping");
    let (mut stream, _) = listener.accept().unwrap();
    let mut got = [0; 4];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ping");
    drop(peer);
    assert!(!path.exists(), "the socket stays behind");
}

#[test]
fn a_slow_reader_costs_the_guest_its_credit_and_no_more() {
    let mut peer = Peer::new(Host::private().unwrap());
    let mut stream = peer.connected();
    let piece = vec![0xab; 64 << 10];
    let mut sent = 0_u64;
    let mut forwarded = 0_u32;
    let mut last = Instant::now();
    // As much as the device keeps, besides what the socket does.
    loop {
        while let Some(told) = peer.glance() {
            assert_eq!((told.operation, told.buffer), (CREDIT_UPDATE, 256 << 10));
            forwarded = told.forwarded;
        }
        let room = (256 << 10) - (sent - u64::from(forwarded));
        assert!(sent < 8 << 20, "somebody takes everything");
        if room > 0 {
            let length = piece.len().min(room as usize);
            peer.data(PORTS, &piece[..length]);
            sent += length as u64;
        } else if last.elapsed() < Duration::from_millis(300) {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        } else {
            break;
        }
        last = Instant::now();
    }
    // Nothing is lost, and credit comes back by itself.
    let mut got = vec![0; sent as usize];
    stream.read_exact(&mut got).unwrap();
    assert!(got.iter().all(|byte| *byte == 0xab));
    let told = peer.expect(CREDIT_UPDATE);
    assert!(told.forwarded > forwarded);
}

#[test]
fn more_than_its_credit_ends_a_guests_connection() {
    let mut peer = Peer::new(Host::private().unwrap());
    let _stream = peer.connected();
    let mut header = peer.header(PORTS, DATA);
    header.length = 300 << 10;
    let queue = &mut peer.guest.queues[1];
    queue.put(SENT, &header.bytes());
    queue.add(&[(SENT, LENGTH as u32, false), (0x8_0000, 300 << 10, false)]);
    peer.guest.notify(1);
    peer.expect(RESET);
}

#[test]
fn the_host_sends_what_the_guest_has_room_for() {
    let mut peer = Peer::new(Host::private().unwrap());
    peer.buffer = 10;
    let mut stream = peer.connected();
    stream.write_all(b"0123456789abcdef").unwrap();
    assert_eq!(peer.next().1, b"0123456789");
    assert!(peer.guest.queues[0].used().is_none());
    peer.forwarded = 10;
    peer.tell(PORTS, CREDIT_UPDATE);
    assert_eq!(peer.next().1, b"abcdef");
    // What makes no sense gives no credit.
    peer.forwarded = 17;
    peer.tell(PORTS, CREDIT_UPDATE);
    stream.write_all(b"x").unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert!(peer.guest.queues[0].used().is_none());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut peer = Peer::new(Host::private().unwrap());
    let _stream = peer.connected();
    for (change, refused) in [
        (Header { kind: 2, ..peer.header((1, 2), REQUEST) }, true),
        (Header { length: 10, ..peer.header((1, 2), DATA) }, true),
        (peer.header((1, 2), RESPONSE), true),
        (peer.header((1, 2), RESET), false),
        (Header { source_cid: 99, ..peer.header((1, 2), REQUEST) }, false),
        (peer.header((1, 2), 77), true),
    ] {
        peer.send(change, &[]);
        if refused {
            assert_eq!(peer.expect(RESET).destination_port, change.source_port);
        }
    }
    // An answer that nobody asked for ends a connection that stands.
    peer.tell(PORTS, RESPONSE);
    assert_eq!(peer.expect(RESET).source_port, PORTS.0);
    assert!(peer.guest.queues[0].used().is_none());
}

#[test]
fn a_guest_without_buffers_is_not_listened_to() {
    let mut peer = Peer::without_buffers(Host::private().unwrap());
    // Each of these wants an answer, for which there is no room.
    let header = peer.header((1, 2), REQUEST);
    peer.guest.queues[1].put(SENT, &header.bytes());
    let mut taken = 0;
    let mut last = Instant::now();
    let mut under_way = 0;
    while last.elapsed() < Duration::from_millis(300) {
        if under_way < 8 {
            peer.guest.queues[1].add(&[(SENT, LENGTH as u32, false)]);
            peer.guest.notify(1);
            under_way += 1;
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
        while peer.guest.queues[1].used().is_some() {
            under_way -= 1;
            taken += 1;
            last = Instant::now();
        }
        assert!(taken <= 256, "answers pile up");
    }
    assert_eq!(taken, 256);
    peer.guest.queues[0].add(&[(BUFFERS, ROOM, true)]);
    peer.guest.notify(0);
    assert_eq!(peer.expect(RESET).source_port, 1);
}

#[test]
fn connections_outlive_saving_and_not_restoring() {
    let mut peer = Peer::new(Host::private().unwrap());
    let mut stream = peer.connected();
    let state = peer.guest.function.state();
    stream.write_all(b"still here").unwrap();
    assert_eq!(peer.next().1, b"still here");

    let other = Guest::in_memory(Vsock::new(CID, peer.host.clone()), peer.guest.memory.clone());
    peer.guest.queues[2].add(&[(SENT, 4, true)]);
    peer.guest.queues[2].put(SENT, &[0xff; 4]);
    other.function.set_state(&state).unwrap();
    other.notify(2);
    assert_eq!(peer.guest.queues[2].wait_used().1, 4);
    assert_eq!(peer.guest.queues[2].get::<4>(SENT), [0; 4]);
}
