//! The user-mode network's TCP throughput, in process: a frame source on one side, a
//! socket on the host's loopback on the other, each on a thread of its own. Prints
//! Gbit/s and the packet path's CPU seconds per GiB, for both directions.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use guise_net::frame::{Interface, Offload, Receives};
use guise_net::packet::{ACK, Ethernet, FIN, Headers, Packet, SYN, TcpFields, tcp_frame};
use guise_net::user::{Config, Policy, UserNetwork};

const ALL: Receives = Receives { checksum: true, tcp4: true, tcp6: true };
const PAYLOAD: usize = 65_160;

/// A driver with a small ring of large buffers, as mergeable buffers give.
struct Driver {
    frames: Vec<(Vec<u8>, usize, Offload)>,
    spare: Vec<Vec<u8>>,
}

impl Interface for Driver {
    fn receives(&self) -> Receives {
        ALL
    }

    fn room(&mut self, _: usize) -> Option<&mut [u8]> {
        self.spare.last_mut().map(Vec::as_mut_slice)
    }

    fn filled(&self, size: usize) -> &[u8] {
        self.spare.last().map_or(&[], |room| &room[..size])
    }

    fn deliver(&mut self, size: usize, offload: Offload) {
        if let Some(frame) = self.spare.pop() {
            self.frames.push((frame, size, offload));
        }
    }
}

struct Guest {
    network: UserNetwork,
    driver: Driver,
    fields: TcpFields,
    headers: Headers,
    acknowledged: u32,
    window: u32,
    shift: u8,
    received: u64,
    ended: bool,
}

impl Guest {
    fn connect(to: SocketAddr) -> Guest {
        let policy = Policy { host: true, ..Policy::default() };
        let config = Config { policy, mtu: 65_520, ..Config::default() };
        let headers = Headers {
            to_mac: config.router_mac,
            from_mac: config.guest_mac,
            source: config.guest4.into(),
            destination: IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2)),
        };
        let fields = TcpFields {
            source: 40_000,
            destination: to.port(),
            sequence: 1,
            acknowledgement: 0,
            flags: SYN,
            window: 65_535,
            options: Some((65_480, Some(7))),
        };
        let driver =
            Driver { frames: Vec::new(), spare: (0..64).map(|_| vec![0; 70_000]).collect() };
        let network = UserNetwork::new(config).expect("a network");
        let mut guest = Guest {
            network,
            driver,
            fields,
            headers,
            acknowledged: 1,
            window: 0,
            shift: 0,
            received: 0,
            ended: false,
        };
        guest.send(&mut Vec::new(), 0);
        guest.fields.sequence = 2;
        guest.fields.options = None;
        guest.fields.flags = ACK;
        while guest.window == 0 {
            guest.turn();
        }
        guest.acknowledge();
        guest
    }

    fn send(&mut self, frame: &mut Vec<u8>, payload: usize) {
        let at = self.fields.payload_at(&self.headers);
        frame.resize(at + payload, 0x5a);
        let (size, offload) = tcp_frame(frame, &self.headers, &self.fields, payload, 1460, ALL);
        self.network.input(&frame[..size], offload);
    }

    fn acknowledge(&mut self) {
        self.fields.flags = ACK;
        self.send(&mut Vec::new(), 0);
    }

    fn turn(&mut self) {
        self.network.poll(&mut self.driver);
        let mut answer = false;
        for (frame, size, offload) in std::mem::take(&mut self.driver.frames) {
            let ethernet = Ethernet::parse(&frame[..size]).expect("a frame");
            let packet = Packet::parse(ethernet.kind, ethernet.payload).expect("a packet");
            let tcp = packet.tcp(&offload).expect("a segment");
            if tcp.has(SYN) {
                self.fields.acknowledgement = tcp.sequence.wrapping_add(1);
                self.shift = tcp.window_shift.expect("a scaled window");
            } else if tcp.length() > 0 {
                assert_eq!(tcp.sequence, self.fields.acknowledgement, "in order");
                self.fields.acknowledgement = tcp.sequence.wrapping_add(tcp.length());
                self.received += tcp.payload.len() as u64;
                self.ended |= tcp.has(FIN);
                answer = true;
            }
            self.acknowledged = tcp.acknowledgement;
            self.window = u32::from(tcp.window) << self.shift;
            self.driver.spare.push(frame);
        }
        if answer {
            self.acknowledge();
        }
    }
}

fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn report(direction: &str, bytes: u64, wall: Duration, cpu: Duration) {
    let gbit = bytes as f64 * 8.0 / 1e9;
    println!(
        "{direction:>4}: {:6.1} Gbit/s, {:6.1} Gbit per CPU second of the packet path",
        gbit / wall.as_secs_f64(),
        gbit / cpu.as_secs_f64(),
    );
}

fn outward(bytes: u64) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let to = listener.local_addr().expect("its address");
    let sink = thread::spawn(move || {
        let mut stream = listener.accept().expect("a connection").0;
        let mut buffer = vec![0; 1 << 20];
        while stream.read(&mut buffer).expect("data") > 0 {}
    });
    let mut guest = Guest::connect(to);
    let (start, cpu) = (Instant::now(), thread_cpu());
    let mut frame = Vec::new();
    let mut left = bytes;
    while left > 0 {
        let open = guest.window - guest.fields.sequence.wrapping_sub(guest.acknowledged);
        if open as usize >= PAYLOAD {
            guest.send(&mut frame, PAYLOAD);
            guest.fields.sequence = guest.fields.sequence.wrapping_add(PAYLOAD as u32);
            left = left.saturating_sub(PAYLOAD as u64);
        }
        guest.turn();
    }
    report("out", bytes, start.elapsed(), thread_cpu() - cpu);
    guest.fields.flags = FIN | ACK;
    guest.send(&mut Vec::new(), 0);
    while !sink.is_finished() {
        guest.turn();
    }
}

fn inward(bytes: u64) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let to = listener.local_addr().expect("its address");
    let source = thread::spawn(move || {
        let mut stream = listener.accept().expect("a connection").0;
        let buffer = vec![0x5a; 1 << 20];
        for _ in 0..bytes >> 20 {
            stream.write_all(&buffer).expect("data goes out");
        }
    });
    let mut guest = Guest::connect(to);
    let (start, cpu) = (Instant::now(), thread_cpu());
    while !guest.ended {
        guest.turn();
    }
    assert_eq!(guest.received, bytes);
    report("in", bytes, start.elapsed(), thread_cpu() - cpu);
    source.join().expect("the source ends");
}

fn main() {
    // Under `cargo test` this file is only built to see that it runs at all.
    let bytes =
        if std::env::args().any(|argument| argument == "--bench") { 4 << 30 } else { 4 << 20 };
    for _ in 0..3 {
        outward(bytes);
        inward(bytes);
    }
}
