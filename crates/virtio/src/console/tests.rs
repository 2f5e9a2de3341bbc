use std::io::Read as _;
use std::os::unix::net::UnixStream;

use super::terminal::LARGEST_BACKLOG;
use super::*;
use crate::queue::driver::BUFFERS;
use crate::transport::guest::Guest;

#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn terminal(ports: Vec<Arc<Port>>) -> Arc<Console> {
    Console::new(Some(Box::new(Output::default())), ports)
}

#[test]
fn output_comes_out() {
    let output = Output::default();
    let mut guest = Guest::new(Console::new(Some(Box::new(output.clone())), Vec::new()));
    guest.start(SIZE, false, true);
    guest.queues[1].put(BUFFERS, b"hello console");
    guest.queues[1].add(&[(BUFFERS, 6, false), (BUFFERS + 6, 7, false)]);
    guest.notify(1);
    assert_eq!(guest.queues[1].wait_used().1, 0);
    assert_eq!(*output.0.lock().unwrap(), b"hello console");
}

#[test]
fn input_waits_for_buffers_and_buffers_for_input() {
    let console = terminal(Vec::new());
    let mut guest = Guest::new(console.clone());
    assert_eq!(console.input(b"early"), 5);
    guest.start(0, true, false);
    guest.queues[0].add(&[(BUFFERS, 3, true)]);
    guest.notify(0);
    assert_eq!(guest.queues[0].wait_used().1, 3);
    assert_eq!(&guest.queues[0].get::<3>(BUFFERS), b"ear");
    guest.queues[0].add(&[(BUFFERS, 100, true)]);
    guest.notify(0);
    assert_eq!(guest.queues[0].wait_used().1, 2);
    guest.queues[0].add(&[(BUFFERS, 100, true)]);
    guest.notify(0);
    console.input(b"late");
    assert_eq!(guest.queues[0].wait_used().1, 4);
    assert_eq!(&guest.queues[0].get::<4>(BUFFERS), b"late");
}

#[test]
fn input_is_bounded() {
    let console = terminal(Vec::new());
    let data = vec![b'x'; LARGEST_BACKLOG + 10];
    assert_eq!(console.input(&data), LARGEST_BACKLOG);
    assert_eq!(console.input(&data), 0);
    assert!(!console.wait_for_room(Duration::from_millis(1)));
    let mut guest = Guest::new(console.clone());
    guest.start(0, false, false);
    guest.queues[0].add(&[(BUFFERS, 10, true)]);
    guest.notify(0);
    assert!(console.wait_for_room(Duration::from_secs(60)));
}

#[test]
fn the_size_is_told() {
    let console = terminal(Vec::new());
    let mut guest = Guest::new(console.clone());
    console.set_size(80, 25);
    guest.start(SIZE, false, false);
    assert_eq!(guest.config::<4>(4), [1, 0, 0, 0]);
    guest.write(0x10, &0_u16.to_le_bytes());
    assert_eq!(guest.config::<4>(0), [80, 0, 25, 0]);
    console.set_size(300, 50);
    console.set_size(300, 50);
    assert_eq!(guest.config::<4>(0), [44, 1, 50, 0]);
    assert_eq!(*guest.messages.lock().unwrap(), [0x40]);
}

const FROM_DRIVER: usize = 3;
const TO_DRIVER: usize = 2;
/// The queues of the first port with a name.
const TO_GUEST: usize = 4;
const FROM_GUEST: usize = 5;
/// What the driver hears, and where data are.
const HEARD: u64 = BUFFERS + 0x1000;
const DATA: u64 = BUFFERS + 0x8000;

/// A console with one port, and where its socket is.
struct Rig {
    console: Arc<Console>,
    guest: Guest,
    socket: std::path::PathBuf,
    _scratch: tempfile::TempDir,
}

impl Rig {
    fn new(with_terminal: bool) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let socket = scratch.path().join("agent");
        let port = Port::at("org.example.agent", &socket).unwrap();
        let output = with_terminal.then(|| Box::new(Output::default()) as Box<dyn Write + Send>);
        let console = Console::new(output, vec![port]);
        let guest = Guest::new(console.clone());
        Self { console, guest, socket, _scratch: scratch }
    }

    fn say(&mut self, port: u32, event: u16, value: u16) {
        let message = [&port.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()];
        self.guest.queues[FROM_DRIVER].put(BUFFERS, &message.concat());
        self.guest.queues[FROM_DRIVER].add(&[(BUFFERS, 8, false)]);
        self.guest.notify(FROM_DRIVER as u16);
        self.guest.queues[FROM_DRIVER].wait_used();
    }

    /// The next message: port, event, value, and what follows.
    fn hear(&mut self) -> (u32, u16, u16, Vec<u8>) {
        self.guest.queues[TO_DRIVER].add(&[(HEARD, 64, true)]);
        self.guest.notify(TO_DRIVER as u16);
        let length = self.guest.queues[TO_DRIVER].wait_used().1 as usize;
        let bytes = self.guest.queues[TO_DRIVER].get::<64>(HEARD);
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (u32::from(half(0)), half(4), half(6), bytes[8..length].to_vec())
    }

    /// A driver as it comes up.
    fn up(&mut self, packed: bool) {
        self.guest.start(SIZE | PORTS, packed, packed);
        self.say(0, 0, 1);
        self.say(1, 3, 1);
    }

    fn send(&mut self, data: &[u8]) {
        self.guest.queues[FROM_GUEST].put(DATA, data);
        self.guest.queues[FROM_GUEST].add(&[(DATA, data.len() as u32, false)]);
        self.guest.notify(FROM_GUEST as u16);
    }

    fn room(&mut self, length: u32) {
        self.guest.queues[TO_GUEST].add(&[(DATA + 0x1_0000, length, true)]);
        self.guest.notify(TO_GUEST as u16);
    }

    fn arrived(&mut self) -> Vec<u8> {
        let length = self.guest.queues[TO_GUEST].wait_used().1 as usize;
        self.guest.queues[TO_GUEST].get::<64>(DATA + 0x1_0000)[..length].to_vec()
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }
}

#[test]
fn ports_are_told_and_named() {
    let mut rig = Rig::new(true);
    rig.console.set_size(80, 25);
    assert_eq!(rig.console.queue_sizes().len(), 6);
    rig.guest.start(SIZE | PORTS, false, false);
    rig.say(0, 0, 1);
    assert_eq!(rig.hear(), (0, 1, 1, vec![]));
    assert_eq!(rig.hear(), (1, 1, 1, vec![]));
    rig.say(0, 3, 1);
    assert_eq!(rig.hear(), (0, 4, 1, vec![]));
    // Columns come first.
    assert_eq!(rig.hear(), (0, 5, 0, vec![80, 0, 25, 0]));
    assert_eq!(rig.hear(), (0, 6, 1, vec![]));
    rig.say(1, 3, 1);
    assert_eq!(rig.hear(), (1, 7, 1, b"org.example.agent".to_vec()));
    assert_eq!(rig.hear(), (1, 6, 0, vec![]));
    rig.console.set_size(100, 300);
    assert_eq!(rig.hear(), (0, 5, 0, vec![100, 0, 44, 1]));
    // What is not there, or makes no sense, is not answered.
    for (port, event, value) in [(2, 3, 1), (77, 6, 1), (0, 99, 1), (u32::MAX, 3, 1), (1, 3, 0)] {
        rig.say(port, event, value);
    }
    rig.say(1, 3, 1);
    assert_eq!(rig.hear(), (1, 7, 1, b"org.example.agent".to_vec()));
}

#[test]
fn without_a_terminal_there_are_only_ports() {
    let mut rig = Rig::new(false);
    assert_eq!((rig.console.input(b"x"), rig.console.wait_for_room(Duration::ZERO)), (0, false));
    rig.guest.start(PORTS, true, true);
    rig.say(0, 0, 1);
    rig.say(0, 3, 1);
    assert_eq!(rig.hear(), (1, 1, 1, vec![]));
}

#[test]
fn data_go_both_ways_until_one_side_closes() {
    for packed in [false, true] {
        let mut rig = Rig::new(true);
        let mut early = rig.connect();
        early.write_all(b"early").unwrap();
        rig.up(packed);
        for _ in 0..3 {
            rig.hear();
        }
        assert_eq!(rig.hear(), (1, 6, 1, vec![]));
        // What was sent before anybody in the guest reads waits.
        rig.room(3);
        rig.say(1, 6, 1);
        assert_eq!(rig.arrived(), b"ear");
        rig.room(64);
        assert_eq!(rig.arrived(), b"ly");
        rig.send(b"back");
        rig.guest.queues[FROM_GUEST].wait_used();
        let mut back = [0; 4];
        early.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"back");
        // The next one waits until this one goes, which the guest hears of.
        let mut second = rig.connect();
        second.write_all(b"second").unwrap();
        drop(early);
        rig.room(64);
        assert_eq!(rig.hear(), (1, 6, 0, vec![]));
        assert_eq!(rig.hear(), (1, 6, 1, vec![]));
        assert_eq!(rig.arrived(), b"second");
        // The guest closes, and what it wrote before arrives.
        rig.send(b"last words");
        rig.guest.queues[FROM_GUEST].wait_used();
        rig.say(1, 6, 0);
        let mut rest = String::new();
        second.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "last words");
        assert_eq!(rig.hear(), (1, 6, 0, vec![]));
    }
}

#[test]
fn a_slow_reader_holds_the_guest_up_and_loses_nothing() {
    const PIECES: usize = 40;
    let mut rig = Rig::new(true);
    let mut client = rig.connect();
    rig.up(false);
    rig.say(1, 6, 1);
    // More than a socket holds, in chains of half a megabyte.
    let content: Vec<u8> = (0..0x8_0000_u32).map(|n| (n >> 3) as u8 ^ n as u8).collect();
    rig.guest.queues[FROM_GUEST].put(DATA, &content);
    let length = content.len() as u32;
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; PIECES * 0x8_0000];
        let mut done = 0;
        while done < all.len() {
            done += client.read(&mut all[done..]).unwrap();
        }
        all
    });
    for piece in 0..PIECES {
        rig.guest.queues[FROM_GUEST]
            .add(&[(DATA, length / 2, false), (DATA + 0x4_0000, length / 2, false)]);
        rig.guest.notify(FROM_GUEST as u16);
        if piece % 4 == 0 {
            // The device is stopped and goes on, perhaps in the middle of a chain.
            rig.guest.function.state();
        }
        rig.guest.queues[FROM_GUEST].wait_used();
    }
    let all = reader.join().unwrap();
    assert!(all.chunks(content.len()).all(|chunk| chunk == content));
}

#[test]
fn a_saved_console_knows_its_ports_and_that_nobody_is_connected() {
    let mut rig = Rig::new(true);
    let client = rig.connect();
    rig.up(false);
    rig.say(1, 6, 1);
    for _ in 0..4 {
        rig.hear();
    }
    rig.room(8);
    let state = rig.guest.function.state();
    drop(client);
    let json = serde_json::to_string(&state).unwrap();
    rig.guest.function.set_state(&serde_json::from_str(&json).unwrap()).unwrap();
    assert_eq!(rig.hear(), (1, 6, 0, vec![]));
    let other = Guest::new(terminal(Vec::new()));
    assert!(other.function.set_state(&state).is_err(), "it has another number of ports");
}

#[test]
fn a_reset_ends_the_connections_that_programs_had() {
    let mut rig = Rig::new(true);
    let mut client = rig.connect();
    rig.up(false);
    rig.say(1, 6, 1);
    rig.room(8);
    client.write_all(b"hi").unwrap();
    assert_eq!(rig.arrived(), b"hi");
    rig.up(true);
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn names_are_names_of_files() {
    assert!(Port::can_be_named("org.qemu.guest_agent.0"));
    for wrong in ["", "a/b", "a b", "a\nb", &"x".repeat(LONGEST_NAME + 1)] {
        assert!(!Port::can_be_named(wrong), "{wrong:?}");
    }
}
