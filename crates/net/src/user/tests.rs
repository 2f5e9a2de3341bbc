//! The network from a guest's side, in process: the guest here is a driver that makes
//! and takes frames, with a small TCP of its own; the other ends are sockets on the
//! host's loopback, which the policy lets it reach as the router.

mod guest;
mod hostile;
mod large;
mod long;
mod services;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use super::*;
use crate::frame::Receives;
use crate::packet::{ACK, FIN, RST};
use guest::{Connection, Guest};

/// A network whose router's address leads to the host's loopback.
fn open_network() -> UserNetwork {
    let policy = Policy { host: true, ..Policy::default() };
    UserNetwork::new(Config { policy, ..Config::default() }).unwrap()
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn data_goes_out_whole_and_the_end_of_it_too() {
    let (listener, port) = listener();
    let server = thread::spawn(move || {
        let mut got = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut got).unwrap();
        got
    });
    let sent = pattern(3_000_000);
    let mut guest = Guest::new(open_network());
    let mut connection = Connection::open(&mut guest, port);
    connection.write_all(&mut guest, &sent);
    connection.finish(&mut guest);
    connection.wait_for_end(&mut guest);
    assert!(server.join().unwrap() == sent);
    guest.until("the flow is gone", |guest| guest.network.flows().0 == 0);
}

#[test]
fn data_comes_in_whole_whatever_the_driver_takes() {
    for (checksum, cut) in [(false, false), (true, false), (true, true)] {
        let (listener, port) = listener();
        let sent = pattern(2_000_000);
        let expected = sent.clone();
        let server = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            stream.write_all(&sent).unwrap();
        });
        let mut guest = Guest::new(open_network());
        guest.receives = Receives { checksum, tcp4: cut, tcp6: cut };
        let mut connection = Connection::open(&mut guest, port);
        let got = connection.read_to_end(&mut guest);
        assert!(got == expected, "checksum {checksum}, cut {cut}");
        connection.finish(&mut guest);
        server.join().unwrap();
        guest.until("the flow is gone", |guest| guest.network.flows().0 == 0);
    }
}

#[test]
fn lost_frames_are_sent_again() {
    let (listener, port) = listener();
    let sent = pattern(400_000);
    let expected = sent.clone();
    let server = thread::spawn(move || listener.accept().unwrap().0.write_all(&sent).unwrap());
    let mut guest = Guest::new(open_network());
    guest.lose_every = Some(7);
    let mut connection = Connection::open(&mut guest, port);
    assert!(connection.read_to_end(&mut guest) == expected);
    server.join().unwrap();
}

#[test]
fn either_side_may_go_on_after_the_other_has_ended() {
    let (listener, port) = listener();
    let server = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut question = Vec::new();
        stream.read_to_end(&mut question).unwrap();
        stream.write_all(&pattern(300_000)).unwrap();
        question
    });
    let mut guest = Guest::new(open_network());
    let mut connection = Connection::open(&mut guest, port);
    connection.write_all(&mut guest, b"question");
    connection.finish(&mut guest);
    assert!(connection.read_to_end(&mut guest) == pattern(300_000));
    assert_eq!(server.join().unwrap(), b"question");
}

#[test]
fn a_refusal_is_a_refusal() {
    let (listener, port) = listener();
    drop(listener);
    let mut guest = Guest::new(open_network());
    let mut connection = Connection::begin(&mut guest, port);
    guest.until("a reset", |guest| connection.take(guest).is_some_and(|flags| flags & RST != 0));
    guest.until("the flow is gone", |guest| guest.network.flows().0 == 0);
}

#[test]
fn resets_cross_in_both_directions() {
    let (listener, port) = listener();
    let mut guest = Guest::new(open_network());
    let mut connection = Connection::open(&mut guest, port);
    let mut server = listener.accept().unwrap().0;
    connection.send(&mut guest, RST | ACK, &[]);
    server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert!(server.read(&mut [0; 1]).is_err(), "a reset is no orderly end");

    let mut connection = Connection::open(&mut guest, port);
    let server = listener.accept().unwrap().0;
    connection.write_all(&mut guest, b"unread");
    guest.until("the data is there", |_| server.peek(&mut [0; 6]).is_ok_and(|got| got == 6));
    // Closing with unread data resets.
    drop(server);
    guest.until("a reset", |guest| connection.take(guest).is_some_and(|flags| flags & RST != 0));
}

#[test]
fn a_closed_window_stops_data_and_opens_again() {
    let (listener, port) = listener();
    let server = thread::spawn(move || {
        listener.accept().unwrap().0.write_all(&pattern(200_000)).unwrap();
    });
    let mut guest = Guest::new(open_network());
    let mut connection = Connection::open(&mut guest, port);
    connection.window = 0;
    connection.send(&mut guest, ACK, &[]);
    guest.run_for(Duration::from_millis(50));
    let before = connection.received.len();
    guest.run_for(Duration::from_millis(400));
    while connection.take(&mut guest).is_some() {}
    assert!(connection.received.len() <= before + 65_536);
    // Nothing but the answer to the probe says that it is open again.
    connection.window = 65_535;
    assert!(connection.read_to_end(&mut guest) == pattern(200_000));
    server.join().unwrap();
}

#[test]
fn a_slow_reader_holds_the_guest_back_and_loses_nothing() {
    let (listener, port) = listener();
    let mut guest = Guest::new(open_network());
    let mut connection = Connection::open(&mut guest, port);
    let mut server = listener.accept().unwrap().0;
    let sent = pattern(12_000_000);
    let mut at = 0;
    // Nobody reads: the guest stops at some point.
    loop {
        let count = connection.write_some(&mut guest, &sent[at..]);
        if count == 0 {
            break;
        }
        at += count;
    }
    assert!(at < sent.len(), "memory for a guest's data is bounded");
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        got
    });
    connection.write_all(&mut guest, &sent[at..]);
    connection.finish(&mut guest);
    connection.wait_for_end(&mut guest);
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn a_thousand_connections_at_once() {
    let (listener, port) = listener();
    let server = thread::spawn(move || {
        let streams: Vec<TcpStream> = (0..1000).map(|_| listener.accept().unwrap().0).collect();
        for (n, mut stream) in streams.into_iter().enumerate() {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&[byte[0], n as u8]).unwrap();
        }
    });
    let mut guest = Guest::new(open_network());
    // Frames for all of them at once.
    guest.ring = 10_000;
    let mut connections: Vec<Connection> =
        (0..1000).map(|_| Connection::open(&mut guest, port)).collect();
    assert_eq!(guest.network.flows().0, 1000);
    for (n, connection) in connections.iter_mut().enumerate() {
        connection.write_all(&mut guest, &[n as u8]);
    }
    for (n, connection) in connections.iter_mut().enumerate() {
        assert_eq!(connection.read_to_end(&mut guest)[0], n as u8);
    }
    server.join().unwrap();
}

#[test]
fn forwarded_ports_reach_the_guest() {
    let mut guest = Guest::new(UserNetwork::new(Config::default()).unwrap());
    let at: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let forward = Forward { transport: Transport::Tcp, at, guest_port: 80 };
    let at = guest.network.add_forward(forward).unwrap();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    });
    let mut connection = Connection::accept(&mut guest, 80);
    assert_eq!(connection.read_to_end(&mut guest), b"hello");
    connection.write_all(&mut guest, b"and goodbye");
    connection.send(&mut guest, FIN | ACK, &[]);
    let answer = {
        guest.until("the client is done", |_| client.is_finished());
        client.join().unwrap()
    };
    assert_eq!(answer, b"and goodbye");
    let taken = guest.network.add_forward(Forward { at, ..forward });
    assert!(matches!(taken, Err(NetError::Forward { .. })));
    guest.network.remove_forward(Transport::Tcp, at).unwrap();
    assert!(TcpStream::connect(at).is_err());
    assert!(guest.network.remove_forward(Transport::Tcp, at).is_err());
}

#[test]
fn datagrams_go_both_ways() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let to = SocketAddr::new("10.0.2.2".parse().unwrap(), server.local_addr().unwrap().port());
    let mut guest = Guest::new(open_network());
    guest.send_datagram(4000, to, b"ping");
    let mut bytes = [0; 2000];
    let (size, from) = server.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..size], b"ping");
    server.send_to(b"pong", from).unwrap();
    let (source, payload) = guest.receive_datagram(4000);
    assert_eq!((source, payload.as_slice()), (to, &b"pong"[..]));

    let at: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let forward = Forward { transport: Transport::Udp, at, guest_port: 53 };
    let at = guest.network.add_forward(forward).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    client.send_to(b"question", at).unwrap();
    let (source, payload) = guest.receive_datagram(53);
    assert_eq!(payload, b"question");
    guest.send_datagram(53, source, b"answer");
    let size = client.recv(&mut bytes).unwrap();
    assert_eq!(&bytes[..size], b"answer");
}

#[test]
fn an_idle_network_has_no_timer() {
    let (listener, port) = listener();
    let mut guest = Guest::new(open_network());
    assert_eq!(guest.network.timer(), None);
    let mut connection = Connection::open(&mut guest, port);
    connection.write_all(&mut guest, b"x");
    let _server = listener.accept().unwrap();
    guest.until("quiet", |guest| guest.network.timer().is_none());
}
