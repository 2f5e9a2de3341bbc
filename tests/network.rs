//! Networks from inside Debian's guests on the software engine: one that asks its user
//! network for all that it offers, and several on a switch of the real binary.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::support::{Boot, PATIENCE, Running, alone, have, not_run};
use guise_testkit::assets::Kernel;
use guise_testkit::initramfs;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;

const KERNEL: Kernel = Kernel::Debian12Cloud;
const LEASE: &str = "ifconfig eth0 up; udhcpc -i eth0 -s /etc/udhcpc.sh -n -q";
const ROUTER4: &str = "10.0.2.2";
const ROUTER6: &str = "fd00:6775:6973:6500::2";

/// A guest with a shell.
fn guest(initrd: &Path, net: &str) -> Running {
    let mut guest = Boot::kernel(&have(KERNEL.image()))
        .initrd(initrd)
        .args(["--engine", "soft", "--net", net])
        .start()
        .with_patience(3 * PATIENCE);
    guest.wait_for("guest# ");
    guest
}

fn end(mut guest: Running) -> String {
    guest.type_line("poweroff -f");
    let ended = guest.finish();
    ended.expect_code(0).expect_clean_log();
    ended.output
}

/// The row of numbers of the guest's program `net`, and its hash.
struct Row {
    state: u64,
    hash: u64,
    rest: Vec<u8>,
}

impl Row {
    const PIECE: usize = 64 << 10;

    fn new() -> Row {
        Row { state: 88_172_645_463_325_252, hash: 0xcbf2_9ce4_8422_2325, rest: Vec::new() }
    }

    fn piece(&mut self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::PIECE);
        while bytes.len() < Self::PIECE {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            bytes.extend(self.state.to_le_bytes());
        }
        bytes
    }

    fn digest(&mut self, bytes: &[u8]) {
        self.rest.extend(bytes);
        let words = self.rest.chunks_exact(8);
        let left = words.remainder().to_vec();
        for word in words {
            let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
            self.hash = (self.hash ^ word).wrapping_mul(0x100_0000_01b3);
        }
        self.rest = left;
    }

    /// The hash of so many mebibytes of the row.
    fn hash_of(mebibytes: usize) -> u64 {
        let mut row = Row::new();
        for _ in 0..mebibytes * 16 {
            let piece = row.piece();
            row.digest(&piece);
        }
        row.hash
    }
}

/// `make soak` asks for more.
fn mebibytes() -> usize {
    let asked = std::env::var("GUISE_TRANSFER_MIB").ok().and_then(|text| text.parse().ok());
    asked.unwrap_or(16)
}

/// A server on the host for one connection, which says its port.
fn server<T: Send + 'static>(
    at: &str,
    serve: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (u16, JoinHandle<T>) {
    let listener = TcpListener::bind(at).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let thread = std::thread::spawn(move || serve(listener.accept().expect("a connection").0));
    (port, thread)
}

fn take_all(mut stream: TcpStream) -> (u64, u64) {
    let (mut row, mut total, mut bytes) = (Row::new(), 0, vec![0; 1 << 20]);
    loop {
        match stream.read(&mut bytes).expect("data") {
            0 => return (total, row.hash),
            size => {
                row.digest(&bytes[..size]);
                total += size as u64;
            }
        }
    }
}

fn give(mut stream: TcpStream, mebibytes: usize) {
    let mut row = Row::new();
    for _ in 0..mebibytes * 16 {
        stream.write_all(&row.piece()).expect("the guest reads");
    }
}

/// Data both ways, whole and in order.
fn transfers(guest: &mut Running, host: &str, at: &str, mebibytes: usize) {
    let hash = Row::hash_of(mebibytes);
    let (port, taken) = server(at, take_all);
    guest.says(&format!("net send {host} {port} {mebibytes}"), &format!("sent {hash:016x}"));
    assert_eq!(taken.join().expect("the server"), ((mebibytes as u64) << 20, hash));
    let (port, given) = server(at, move |stream| give(stream, mebibytes));
    let all = format!("took {} {hash:016x}", mebibytes << 20);
    guest.says(&format!("net take {host} {port}"), &all);
    given.join().expect("the server");
}

/// Connections that end in other ways than both sides at once.
fn strange_ends(guest: &mut Running) {
    let (port, asked) = server("127.0.0.1:0", |mut stream| {
        let mut question = Vec::new();
        stream.read_to_end(&mut question).expect("a question");
        give(stream, 1);
        question
    });
    guest.says(&format!("net half {ROUTER4} {port}"), "took 1048576 ");
    assert_eq!(asked.join().expect("the server"), b"question");

    let (port, ended) = server("127.0.0.1:0", |mut stream| {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a byte");
        stream.read(&mut byte).map_err(|error| error.kind())
    });
    guest.says(&format!("net give-up {ROUTER4} {port}"), "gave up");
    let reset = ended.join().expect("the server");
    assert_eq!(reset, Err(std::io::ErrorKind::ConnectionReset));

    // What has been sent and not read makes of the host's close a reset.
    let (port, closed) = server("127.0.0.1:0", |mut stream| {
        stream.write_all(b"x").expect("the guest reads");
        let peeked = stream.peek(&mut [0]).expect("a byte");
        assert_eq!(peeked, 1);
    });
    guest
        .says(&format!("(echo y; sleep 1) | nc {ROUTER4} {port}; echo $((6 * 7)) over"), "42 over");
    closed.join().expect("the server");

    let (port, given) = server("127.0.0.1:0", |stream| give(stream, 2));
    let hash = Row::hash_of(2);
    guest.says(&format!("net slow {ROUTER4} {port}"), &format!("took 2097152 {hash:016x}"));
    given.join().expect("the server");

    let closed = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = closed.local_addr().expect("an address").port();
    drop(closed);
    guest.says(&format!("net take {ROUTER4} {port}"), "Connection refused");
}

/// A thousand connections at once.
fn crowd(guest: &mut Running) {
    const COUNT: usize = 1000;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("a limit");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let thread = std::thread::spawn(move || {
        let mut all: Vec<TcpStream> =
            (0..COUNT).map(|_| listener.accept().expect("a connection").0).collect();
        for stream in &mut all {
            let mut number = [0; 4];
            stream.read_exact(&mut number).expect("a number");
            stream.write_all(&number).expect("the guest reads");
        }
        // They go when the guest has ended them.
        all.iter_mut().for_each(|stream| assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0));
    });
    guest.says(&format!("net many {ROUTER4} {port} {COUNT}"), &format!("had {COUNT} at once"));
    thread.join().expect("the server");
}

/// Echoes datagrams until it is told to stop.
struct DatagramServer {
    port: u16,
    stopping: std::sync::Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DatagramServer {
    fn start(answer: fn(&[u8]) -> Vec<u8>) -> DatagramServer {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a limit");
        let port = socket.local_addr().expect("an address").port();
        let stopping = std::sync::Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let thread = std::thread::spawn(move || {
            let mut bytes = vec![0; 65_536];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((size, peer)) = socket.recv_from(&mut bytes) {
                    socket.send_to(&answer(&bytes[..size]), peer).expect("it goes back");
                }
            }
        });
        DatagramServer { port, stopping, thread: Some(thread) }
    }
}

impl Drop for DatagramServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.thread.take().into_iter().for_each(|thread| thread.join().expect("it ends"));
    }
}

/// A resolver for which every name has the address 192.0.2.77.
fn resolve(question: &[u8]) -> Vec<u8> {
    let mut answer = question.to_vec();
    let asks_for_address = question.ends_with(&[0, 1, 0, 1]);
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    if asks_for_address {
        answer[7] = 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77]);
    }
    answer
}

/// A port of the host that nobody uses now.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// Whether the file is a capture with frames in it.
fn capture(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).expect("a capture");
    assert!(bytes.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]) && bytes.len() > 1000);
    bytes
}

/// What the guest takes and gives back on a forwarded port.
fn forwards(guest: &mut Running, tcp: u16, udp: u16) {
    guest.says("net serve 7", "serving");
    let mut stream = TcpStream::connect(("127.0.0.1", tcp)).expect("the forward listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    let sent = Row::new().piece();
    stream.write_all(&sent).expect("the guest reads");
    stream.shutdown(Shutdown::Write).expect("it is open");
    let mut back = Vec::new();
    stream.read_to_end(&mut back).expect("the guest writes");
    assert!(back == sent, "what came back is not what was sent");
    guest.wait_for("gave back 65536");

    guest.says("net mirror 8", "serving");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a limit");
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = [0; 100];
    loop {
        socket.send_to(b"datagram", ("127.0.0.1", udp)).expect("it goes out");
        match socket.recv(&mut bytes) {
            Ok(size) => break assert_eq!(&bytes[..size], b"datagram"),
            Err(_) => assert!(Instant::now() < deadline, "no datagram comes back"),
        }
    }
    guest.wait_for("mirrored 8");
}

#[test]
fn a_guest_is_served_by_its_user_network() {
    let _turn = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("net.pcapng");
    let (resolver, echo) = (DatagramServer::start(resolve), DatagramServer::start(<[u8]>::to_vec));
    let (tcp, udp) = (free_port(), free_port());
    let net = format!(
        "user,host,capture={},dns=127.0.0.1:{},forward={tcp}-7,forward=udp:{udp}-8",
        file.display(),
        resolver.port
    );
    let mut guest = guest(&have(initramfs::with_virtio(KERNEL)), &net);
    guest.says(LEASE, "lease: 10.0.2.15 by 10.0.2.2");
    guest.says("nslookup far.example", "192.0.2.77");
    guest.says(&format!("ping -c 2 {ROUTER4}"), "2 packets received");
    guest.says(
        "until ip addr show dev eth0 | grep 'global' | grep -v tentative | grep -q fd00; \
         do sleep 1; done; echo $((60 + 6)) has it",
        "66 has it",
    );
    guest.says(&format!("ping6 -c 2 {ROUTER6}"), "2 packets received");
    transfers(&mut guest, ROUTER4, "127.0.0.1:0", mebibytes());
    match TcpListener::bind("[::1]:0") {
        Ok(_) => transfers(&mut guest, ROUTER6, "[::1]:0", 1),
        Err(error) => not_run("TCP over IPv6 from a guest", error),
    }
    strange_ends(&mut guest);
    crowd(&mut guest);
    // Whole, and in fragments both ways.
    for size in [1000, 9000, 60_000] {
        let command = format!("net datagram {ROUTER4} {} {size}", echo.port);
        guest.says(&command, &format!("got {size} back"));
    }
    forwards(&mut guest, tcp, udp);
    end(guest);
    capture(&file);
}

#[test]
fn frames_of_64_kib_are_passed_whole() {
    let _turn = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let (file, stats) = (folder.path().join("net.pcapng"), folder.path().join("stats"));
    let echo = DatagramServer::start(<[u8]>::to_vec);
    let net = format!("user,host,mtu=65520,capture={}", file.display());
    let mut guest = Boot::kernel(&have(KERNEL.image()))
        .initrd(&have(initramfs::with_virtio(KERNEL)))
        .args(["--engine", "soft", "--cpus", "2", "--net", &net, "--stats"])
        .args([&stats])
        .start();
    guest.wait_for("guest# ");
    guest.says(LEASE, "lease: 10.0.2.15 by 10.0.2.2");
    guest.says("cat /sys/class/net/eth0/mtu", "65520");
    guest.says(&format!("net datagram {ROUTER4} {} 60000", echo.port), "got 60000 back");
    transfers(&mut guest, ROUTER4, "127.0.0.1:0", 4);
    end(guest);
    let stats: Value =
        serde_json::from_slice(&std::fs::read(&stats).expect("statistics")).expect("JSON");
    let net = stats["devices"]
        .as_array()
        .and_then(|devices| devices.iter().find(|device| device["kind"] == "net"));
    let net = net.expect("an interface");
    let [frames, bytes] =
        ["sent", "received"].map(|way| (net[way][0].as_u64(), net[way][1].as_u64())).map(|pair| {
            let (frames, bytes) = (pair.0.expect("frames"), pair.1.expect("bytes"));
            bytes / frames.max(1)
        });
    assert!(frames > 3000 || bytes > 3000, "frames are small: {net}");
    assert_eq!(net["drops"]["malformed"], 0, "{net}");
    assert!(net["occupied"]["tcp-flows"]["most"].is_u64(), "{net}");
    // Blocks of a capture say how long they are.
    let whole = capture(&file);
    let length = |at: usize| u32::from_le_bytes(whole[at..at + 4].try_into().expect("four bytes"));
    let mut at = 0;
    let mut largest = 0;
    while at + 12 <= whole.len() {
        largest = largest.max(length(at + 4));
        at += length(at + 4).max(12) as usize;
    }
    assert!(largest > 60_000, "the largest block has {largest} bytes");
}

/// The real binary as a switch.
struct Switch {
    child: Child,
    folder: tempfile::TempDir,
}

impl Switch {
    fn start() -> Switch {
        let folder = tempfile::tempdir().expect("a folder");
        let mut child = Command::new(env!("CARGO_BIN_EXE_guise"))
            .arg("switch")
            .arg(folder.path().join("lab.sock"))
            .arg("--state")
            .arg(folder.path())
            .args(["--subnet", "10.90.7.0/24", "--lease", "web=10.90.7.80"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("it says where it listens");
        assert!(line.starts_with("lab: 10.90.7.0/24 at "), "{line}");
        Switch { child, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("lab.sock")
    }

    fn status(&self) -> Value {
        let binary = env!("CARGO_BIN_EXE_guise");
        let output = Command::new(binary).arg("switch").arg("--status").arg(self.socket()).output();
        serde_json::from_slice(&output.expect("it runs").stdout).expect("JSON")
    }

    /// What plugs a guest in, with a capture.
    fn port(&self, name: &str, options: &str) -> String {
        let capture = self.capture(name);
        format!(
            "switch={},name={name},capture={}{options}",
            self.socket().display(),
            capture.display()
        )
    }

    fn capture(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.pcapng"))
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // One that has ended already is no trouble.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn guests_meet_on_a_switch() {
    let _turn = alone();
    let switch = Switch::start();
    let initrd = have(initramfs::with_iperf3(KERNEL));
    let mut web = guest(&initrd, &switch.port("web", ""));
    web.says(LEASE, "lease: 10.90.7.80 by 10.90.7.2");
    // One that only listens, and one that is elsewhere.
    let mut other = guest(&initrd, &switch.port("other", ""));
    other.says(LEASE, "lease: 10.90.7.");
    let mut far = guest(&initrd, &switch.port("far", ",vlan=9"));
    far.says(LEASE, "lease: 10.90.7.");
    far.says("ping -c 2 -W 2 10.90.7.80", "0 packets received");
    far.says("nslookup web", "can't find web: NXDOMAIN");
    end(far);

    let mut client = guest(&initrd, &switch.port("client", ""));
    client.says(LEASE, "lease: 10.90.7.");
    client.says("nslookup web", "10.90.7.80");
    client.says("ping -c 2 web", "2 packets received");
    let mebibytes = mebibytes();
    web.says("net sink 7", "serving");
    let hash = Row::hash_of(mebibytes);
    let command = format!("net send 10.90.7.80 7 {mebibytes}");
    client.says(&command, &format!("sent {hash:016x}"));
    web.wait_for(&format!("took {} {hash:016x}", mebibytes << 20));
    for way in ["", "-R"] {
        web.says("/usr/bin/iperf3 -s -1", "Server listening");
        client
            .says(&format!("/usr/bin/iperf3 -c web -t 2 {way}; echo $((8 * 8)) is $?"), "64 is 0");
        web.wait_for("guest# ");
    }
    let ports = switch.status();
    let named = |name: &str| {
        let ports = ports.as_array().expect("ports");
        ports
            .iter()
            .find(|port| port["name"] == name)
            .unwrap_or_else(|| panic!("no {name}"))
            .clone()
    };
    let received = named("web")["received"][1].as_u64().expect("bytes");
    assert!(received > (mebibytes as u64) << 20, "{ports}");
    let apart = named("other")["received"][1].as_u64().expect("bytes");
    assert!(apart < 100_000, "{ports}");
    end(client);
    end(other);
    end(web);
    // Numbers of the row stand in the captures of the two only.
    let row = Row::new().piece();
    for (name, sees) in [("web", true), ("client", true), ("other", false)] {
        let bytes = std::fs::read(switch.capture(name)).expect("a capture");
        assert_eq!(contains(&bytes, &row[..64]), sees, "the row in the capture of {name}");
    }
}

/// What a command that cannot be done says.
#[track_caller]
fn refused(arguments: &[&str], text: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_guise")).args(arguments).output();
    let output = output.expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(text), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn networks_that_cannot_be_are_told_in_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().display().to_string();
    let start = |arguments: &[&str]| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_guise"))
            .args(["switch", &format!("{state}/a.sock"), "--state", &state])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("it listens");
        (child, line)
    };
    let (mut first, _) = start(&["--subnet", "10.91.0.0/20"]);
    let second = format!("{state}/b.sock");
    refused(&["switch", &second, "--state", &state, "--subnet", "10.91.3.0/24"], "overlaps");
    refused(&["switch", &second, "--state", &state, "--subnet", "10.91.3.1/24"], "not a subnet");
    refused(&["switch", "--status", &second], "no switch answers");
    first.kill().expect("it runs");
    first.wait().expect("it ends");
    // What it left behind is no hindrance.
    let (mut again, line) = start(&[]);
    again.kill().expect("it runs");
    again.wait().expect("it ends");
    assert!(line.starts_with("a: 10.91.0.0/20 at "), "{line}");

    let kernel = have(KERNEL.image()).display().to_string();
    let boot = |net: &str, text: &str| {
        refused(&["boot", "--engine", "soft", "--kernel", &kernel, "--net", net], text);
    };
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at: SocketAddr = taken.local_addr().expect("an address");
    boot(&format!("user,forward={}-22", at.port()), &at.to_string());
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let at = taken.local_addr().expect("an address");
    boot(&format!("user,forward=udp:{}-53", at.port()), &at.to_string());
    boot("tap=t0,bridge=nowhere0", "there is no bridge 'nowhere0'");
    boot(&format!("switch={second},name=web"), "no switch answers");
}
