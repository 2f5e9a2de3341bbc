//! A guest that is a loop in this process: it makes and takes frames of 64 KiB on one side
//! of a network; on the other side is a socket of the host on a thread of its own. Prints
//! Gbit/s, and Gbit for each CPU second of the thread that drives the network.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use guise_net::frame::{Interface, Network, Offload, Receives};
use guise_net::packet::{ACK, Ethernet, FIN, Headers, Packet, SYN, TcpFields, tcp_frame};

const ALL: Receives = Receives { checksum: true, tcp4: true, tcp6: true };
const PAYLOAD: usize = 65_160;
/// How long the guest waits for an acknowledgement before it sends again.
const PATIENCE: Duration = Duration::from_millis(20);

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

/// A guest with one connection.
pub struct Guest<N> {
    network: N,
    driver: Driver,
    fields: TcpFields,
    headers: Headers,
    acknowledged: u32,
    /// When the host last took something that was new to it.
    progress: Instant,
    window: u32,
    /// How much may be under way, whatever the window.
    limit: u32,
    shift: u8,
    /// How much the host has acknowledged, and how much came from it.
    sent: u64,
    received: u64,
    ended: bool,
}

impl<N: Network> Guest<N> {
    /// Connects to a port of the host; the headers say who both are.
    pub fn connect(network: N, headers: Headers, port: u16) -> Guest<N> {
        let fields = TcpFields {
            source: 40_000,
            destination: port,
            sequence: 1,
            acknowledgement: 0,
            flags: SYN,
            window: 65_535,
            options: Some((65_480, Some(7))),
        };
        let driver =
            Driver { frames: Vec::new(), spare: (0..64).map(|_| vec![0; 70_000]).collect() };
        let mut guest = Guest {
            network,
            driver,
            fields,
            headers,
            acknowledged: 1,
            progress: Instant::now(),
            window: 0,
            limit: u32::MAX,
            shift: 0,
            sent: 0,
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
        guest.sent = 0;
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
            if self.take(&frame[..size], &offload).is_some_and(|answers| answers) {
                answer = true;
            }
            self.driver.spare.push(frame);
        }
        if answer {
            self.acknowledge();
        }
    }

    /// Takes a frame; `None` if it is no segment. Whether it is to be acknowledged.
    fn take(&mut self, frame: &[u8], offload: &Offload) -> Option<bool> {
        let ethernet = Ethernet::parse(frame).ok()?;
        let packet = Packet::parse(ethernet.kind, ethernet.payload).ok()?;
        let tcp = packet.tcp(offload).ok()?;
        let mut answer = false;
        if tcp.has(SYN) {
            self.fields.acknowledgement = tcp.sequence.wrapping_add(1);
            self.shift = tcp.window_shift.expect("a scaled window");
        } else if tcp.length() > 0 {
            // What comes a second time is acknowledged once more.
            if tcp.sequence == self.fields.acknowledgement {
                self.fields.acknowledgement = tcp.sequence.wrapping_add(tcp.length());
                self.received += tcp.payload.len() as u64;
                self.ended |= tcp.has(FIN);
            }
            answer = true;
        }
        let news = tcp.acknowledgement.wrapping_sub(self.acknowledged);
        if (news as i32) > 0 {
            self.sent += u64::from(news);
            self.acknowledged = tcp.acknowledgement;
            self.progress = Instant::now();
        }
        self.window = u32::from(tcp.window) << self.shift;
        Some(answer)
    }

    /// Sends a large segment, the last of so many bytes may be smaller, if the window has room.
    /// A kernel drops segments that its window promised room for: then all since goes again,
    /// and half as much is under way from then on.
    fn send_large(&mut self, frame: &mut Vec<u8>, bytes: u64) {
        let mut under_way = self.fields.sequence.wrapping_sub(self.acknowledged);
        if under_way > 0 && self.progress.elapsed() > PATIENCE {
            self.fields.sequence = self.acknowledged;
            self.progress = Instant::now();
            self.limit = (under_way / 2).max(2 * PAYLOAD as u32);
            under_way = 0;
        }
        let open = self.window.min(self.limit).saturating_sub(under_way);
        let left = (bytes - self.sent - u64::from(under_way)).min(PAYLOAD as u64) as u32;
        // A window that is smaller than a large segment is used as it is, lest nothing moves.
        let payload = if under_way == 0 { left.min(open) } else { left };
        if payload == 0 || open < payload {
            return;
        }
        self.send(frame, payload as usize);
        self.fields.sequence = self.fields.sequence.wrapping_add(payload);
    }

    /// Says that nothing more comes.
    fn finish(&mut self) {
        self.fields.flags = FIN | ACK;
        self.send(&mut Vec::new(), 0);
    }
}

fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn report(name: &str, direction: &str, bytes: u64, wall: Duration, cpu: Duration) {
    let gbit = bytes as f64 * 8.0 / 1e9;
    println!(
        "{name:>12} {direction:>3}: {:6.1} Gbit/s, {:6.1} Gbit per CPU second of the packet path",
        gbit / wall.as_secs_f64(),
        gbit / cpu.as_secs_f64(),
    );
}

/// How a bench gets a guest that is connected to a port of the host.
pub type Connect<'a, N> = &'a dyn Fn(u16) -> Guest<N>;

/// Sends so much to a socket at an address of the host.
pub fn outward<N: Network>(name: &str, at: IpAddr, connect: Connect<'_, N>, bytes: u64) {
    let listener = TcpListener::bind((at, 0)).expect("a listener");
    let port = listener.local_addr().expect("its address").port();
    let sink = thread::spawn(move || {
        let mut stream = listener.accept().expect("a connection").0;
        let mut buffer = vec![0; 1 << 20];
        while stream.read(&mut buffer).expect("data") > 0 {}
    });
    let mut guest = connect(port);
    let (start, cpu) = (Instant::now(), thread_cpu());
    let mut frame = Vec::new();
    while guest.sent < bytes {
        guest.send_large(&mut frame, bytes);
        guest.turn();
    }
    report(name, "out", bytes, start.elapsed(), thread_cpu() - cpu);
    guest.finish();
    while !sink.is_finished() {
        guest.turn();
    }
}

/// Receives so much from a socket at an address of the host.
pub fn inward<N: Network>(name: &str, at: IpAddr, connect: Connect<'_, N>, bytes: u64) {
    let listener = TcpListener::bind((at, 0)).expect("a listener");
    let port = listener.local_addr().expect("its address").port();
    let source = thread::spawn(move || {
        let mut stream = listener.accept().expect("a connection").0;
        let buffer = vec![0x5a; 1 << 20];
        for _ in 0..bytes >> 20 {
            stream.write_all(&buffer).expect("data goes out");
        }
    });
    let mut guest = connect(port);
    let (start, cpu) = (Instant::now(), thread_cpu());
    while !guest.ended {
        guest.turn();
    }
    assert_eq!(guest.received, bytes);
    report(name, "in", bytes, start.elapsed(), thread_cpu() - cpu);
    source.join().expect("the source ends");
}

/// What one run moves: much only when a bench was asked for, and not a look at whether it
/// can be built.
pub fn amount() -> u64 {
    if std::env::args().any(|argument| argument == "--bench") { 4 << 30 } else { 4 << 20 }
}
