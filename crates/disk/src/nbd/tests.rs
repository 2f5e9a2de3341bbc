use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::*;
use crate::formats::raw::Raw;
use crate::graph::{Image, Node};
use crate::storage::{MemoryStorage, SharedStorage};

fn export() -> Export {
    let storage: SharedStorage = Arc::new(MemoryStorage::from_bytes("memory", &[5; 1 << 20]));
    let format = Box::new(Raw::open(storage).expect("open"));
    let image = Image::new(format, None, Path::new("memory"), true);
    Export {
        name: "disk".to_owned(),
        description: String::new(),
        device: BlockDevice::over(Arc::new(image)),
        readonly: false,
        bitmaps: Vec::new(),
    }
}

/// What the server says to these bytes before it gives up or ends.
fn say(bytes: &[u8]) -> Vec<u8> {
    let (mut client, server) = UnixStream::pair().expect("pair");
    let input = server.try_clone().expect("clone");
    let thread = std::thread::spawn(move || {
        let exports = [export()];
        let _lost_connection = serve(Connection::new(input, server), &exports);
    });
    client.write_all(bytes).expect("write");
    client.shutdown(std::net::Shutdown::Write).expect("shutdown");
    let mut answer = Vec::new();
    // A server that has given up may have closed with our bytes unread.
    let _reset = client.read_to_end(&mut answer);
    thread.join().expect("the server does not panic");
    answer
}

fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = wire::OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn request(kind: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = wire::REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend(0_u16.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(77_u64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

#[test]
fn reads_by_the_oldest_way() {
    let mut talk = 3_u32.to_be_bytes().to_vec();
    talk.extend(option(1, b"disk"));
    talk.extend(request(0, 4096, 512));
    talk.extend(request(0, 1 << 20, 512));
    talk.extend(request(2, 0, 0));
    let answer = say(&talk);
    let after = &answer[18 + 10..];
    assert_eq!(&after[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
    assert_eq!(&after[16..528], [5; 512]);
    assert_eq!(&after[528..536], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22]);
}

#[test]
fn nonsense_ends_the_connection_only() {
    for talk in [&b""[..], &[0xff; 64], &[0, 0, 0, 3, 1, 2, 3], &option(7, &[0xff; 10])[..]] {
        say(talk);
        let mut after_hello = 3_u32.to_be_bytes().to_vec();
        after_hello.extend(talk);
        say(&after_hello);
    }
    let mut long = 3_u32.to_be_bytes().to_vec();
    long.extend(option(1, b"disk"));
    long.extend(request(1, 0, u32::MAX));
    say(&long);
    let mut unknown = 3_u32.to_be_bytes().to_vec();
    unknown.extend(option(1, b"disk"));
    unknown.extend(request(99, u64::MAX, u32::MAX));
    unknown.extend(request(7, u64::MAX, u32::MAX));
    unknown.extend(request(4, u64::MAX - 5, 100));
    say(&unknown);
}

#[test]
fn serves_over_a_socket_and_stops() {
    let path = std::env::temp_dir().join(format!("guise-nbd-{}", std::process::id()));
    let shared = export();
    let server = Server::bind(&Address::Unix(path.clone()), vec![shared.clone()]).expect("bind");
    let stop = server.stopper();
    let thread = std::thread::spawn(move || server.run(None));
    let mut client = UnixStream::connect(&path).expect("connect");
    let mut hello = [0; 18];
    client.read_exact(&mut hello).expect("hello");
    let mut talk = 3_u32.to_be_bytes().to_vec();
    talk.extend(option(1, b""));
    talk.extend(request(1, 512, 512));
    talk.extend([9; 512]);
    talk.extend(request(3, 0, 0));
    client.write_all(&talk).expect("write");
    let mut answer = [0; 10 + 16 + 16];
    client.read_exact(&mut answer).expect("answers");
    drop(client);
    stop.stop();
    thread.join().expect("join").expect("run");
    let mut sector = [0; 512];
    shared.device.image().read(512, &mut sector).expect("read");
    assert_eq!(sector, [9; 512]);
    assert!(!path.exists(), "the socket is gone");
}
