//! What takes long: large transfers, checked by a hash at both ends, and connections on
//! which nothing happens.

use std::hash::{DefaultHasher, Hasher};
use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use super::guest::{Connection, Guest};
use super::{listener, open_network, pattern};

const PIECE: usize = 1 << 20;

/// `make soak` asks for more.
fn mebibytes() -> usize {
    let asked = std::env::var("GUISE_TRANSFER_MIB").ok().and_then(|text| text.parse().ok());
    asked.unwrap_or(64)
}

#[test]
fn a_large_transfer_goes_out_whole() {
    let (listener, port) = listener();
    let server = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let (mut hash, mut bytes) = (DefaultHasher::new(), vec![0; PIECE]);
        loop {
            match stream.read(&mut bytes).unwrap() {
                0 => return hash.finish(),
                size => bytes[..size].iter().for_each(|byte| hash.write_u8(*byte)),
            }
        }
    });
    let mut guest = Guest::new(open_network());
    let mut connection = Connection::open(&mut guest, port);
    let (mut piece, mut hash) = (pattern(PIECE), DefaultHasher::new());
    for number in 0..mebibytes() {
        piece[..8].copy_from_slice(&number.to_le_bytes());
        piece.iter().for_each(|byte| hash.write_u8(*byte));
        connection.write_all(&mut guest, &piece);
    }
    connection.finish(&mut guest);
    // The network may hold what the server has not read yet.
    let deadline = Instant::now() + Duration::from_secs(600);
    while !server.is_finished() {
        guest.turn();
        assert!(Instant::now() < deadline, "the transfer does not end");
    }
    assert_eq!(server.join().unwrap(), hash.finish());
}

#[test]
fn a_large_transfer_comes_in_whole() {
    let (listener, port) = listener();
    let server = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let (mut piece, mut hash) = (pattern(PIECE), DefaultHasher::new());
        for number in 0..mebibytes() {
            piece[..8].copy_from_slice(&number.to_le_bytes());
            piece.iter().for_each(|byte| hash.write_u8(*byte));
            stream.write_all(&piece).unwrap();
        }
        hash.finish()
    });
    let mut guest = Guest::new(open_network());
    let mut connection = Connection::open(&mut guest, port);
    let mut hash = DefaultHasher::new();
    let deadline = Instant::now() + Duration::from_secs(600);
    while !connection.ended {
        guest.turn();
        while connection.take(&mut guest).is_some() {}
        connection.received.drain(..).for_each(|byte| hash.write_u8(byte));
        assert!(Instant::now() < deadline, "the transfer does not end");
    }
    assert_eq!(server.join().unwrap(), hash.finish());
}

#[test]
fn an_idle_connection_lives() {
    let (listener, port) = listener();
    let mut guest = Guest::new(open_network());
    let mut connection = Connection::open(&mut guest, port);
    let mut server = listener.accept().unwrap().0;
    connection.write_all(&mut guest, b"before");
    let mut got = [0; 6];
    server.read_exact(&mut got).unwrap();
    // Ten minutes, and then a day, in steps as a timer would make them.
    let start = Instant::now();
    for minutes in (1..=10).chain([24 * 60]) {
        guest.turn_at(start + Duration::from_secs(60 * minutes));
    }
    assert_eq!(guest.network.flows().0, 1);
    connection.write_all(&mut guest, b"after!");
    server.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"after!");
    server.write_all(b"and back").unwrap();
    drop(server);
    assert_eq!(connection.read_to_end(&mut guest), b"and back");
}
