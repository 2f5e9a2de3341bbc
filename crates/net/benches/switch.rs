//! The switch's throughput: a port that sends frames of 64 KiB, the switch, and a port
//! that takes them, each on a thread of its own as they are processes of their own in
//! use. Prints Gbit/s, and Gbit for each CPU second of the switch's thread.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use guise_net::frame::{Interface, Network, Offload, Receives};
use guise_net::ipam::Book;
use guise_net::switch::client::SwitchPort;
use guise_net::switch::hello::Join;
use guise_net::switch::{Switch, SwitchConfig};
use guise_net::user::Policy;

const FRAME: usize = 65_226;
/// Frames that are under way at most, as a TCP window would have it.
const WINDOW: u64 = 16;

struct Sink {
    room: Vec<u8>,
    frames: u64,
}

impl Interface for Sink {
    fn receives(&self) -> Receives {
        Receives { checksum: true, tcp4: true, tcp6: true }
    }

    fn room(&mut self, size: usize) -> Option<&mut [u8]> {
        self.room.resize(size.max(self.room.len()), 0);
        Some(&mut self.room)
    }

    fn filled(&self, size: usize) -> &[u8] {
        &self.room[..size]
    }

    fn deliver(&mut self, size: usize, _: Offload) {
        self.frames += u64::from(size == FRAME);
    }
}

fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn port(path: &Path, name: &str) -> SwitchPort {
    let join = Join { name: name.to_owned(), mac: None, vlan: 0, isolated: false };
    SwitchPort::open(path, join).expect("a port")
}

fn wait(port: &SwitchPort) {
    let fd = port.descriptor();
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
    let short = rustix::event::Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
    rustix::event::poll(&mut fds, Some(&short)).expect("waiting");
}

fn round(count: u64) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let book = Book::open(folder.path(), "bench", None).expect("a book");
    let config = SwitchConfig {
        mtu: 65_520,
        policy: Policy::default(),
        resolvers: Vec::new(),
        admitted: None,
    };
    let mut switch = Switch::open(&path, book, config).expect("a switch");
    let stopper = switch.stopper();
    let switch = thread::spawn(move || {
        switch.run().expect("it runs");
        thread_cpu()
    });
    let (mut from, mut to) = (port(&path, "from"), port(&path, "to"));
    let mut frame = vec![0x5a; FRAME];
    frame[..6].copy_from_slice(&to.welcome().mac);
    frame[6..12].copy_from_slice(&from.welcome().mac);
    frame[12..14].copy_from_slice(&0x88b5u16.to_be_bytes());
    let taken = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let seen = taken.clone();
    let start = Instant::now();
    let receiver = thread::spawn(move || {
        let mut sink = Sink { room: Vec::new(), frames: 0 };
        while sink.frames < count {
            to.poll(&mut sink);
            seen.store(sink.frames, std::sync::atomic::Ordering::Release);
            if to.timer().is_none() {
                wait(&to);
            }
        }
    });
    let mut nothing = Sink { room: Vec::new(), frames: 0 };
    for sent in 0..count {
        while sent - taken.load(std::sync::atomic::Ordering::Acquire) >= WINDOW {
            thread::yield_now();
        }
        from.input(&frame, Offload::default());
        from.poll(&mut nothing);
    }
    while !receiver.is_finished() {
        from.poll(&mut nothing);
        thread::yield_now();
    }
    receiver.join().expect("the receiver");
    let wall = start.elapsed().as_secs_f64();
    stopper.stop();
    let cpu = switch.join().expect("the switch").as_secs_f64();
    let gbit = (count * FRAME as u64) as f64 * 8.0 / 1e9;
    println!(
        "switch: {:6.1} Gbit/s, {:6.1} Gbit per CPU second of the switch",
        gbit / wall,
        gbit / cpu
    );
}

fn main() {
    // Under `cargo test` this file is only built to see that it runs at all.
    let bench = std::env::args().any(|argument| argument == "--bench");
    for _ in 0..if bench { 3 } else { 1 } {
        round(if bench { 50_000 } else { 100 });
    }
}
