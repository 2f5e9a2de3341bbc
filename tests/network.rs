//! Networks from inside Debian's guests: two on a switch of the real binary, and one that
//! asks its user network for all that it offers.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::{Boot, PATIENCE, alone, have};
use guise_testkit::assets::Kernel;
use guise_testkit::initramfs;
use serde_json::Value;

/// A guest on the software engine with all drivers that does one command.
fn guest(net: &str, command: &str) -> Boot {
    let kernel = Kernel::Debian12Cloud;
    let line = format!("console=ttyS0 -- \"{command}\"");
    Boot::kernel(&have(kernel.image()))
        .initrd(&have(initramfs::with_virtio(kernel)))
        .args(["--engine", "soft", "--append", &line, "--net", net])
}

const LEASE: &str = "ifconfig eth0 up; udhcpc -i eth0 -s /etc/udhcpc.sh -n -q";

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

    fn port(&self, options: &str) -> String {
        format!("switch={},{options}", self.socket().display())
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // One that has ended already is no trouble.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether the file is a capture with frames in it.
fn is_capture(path: &Path) -> bool {
    let bytes = std::fs::read(path).expect("a capture");
    bytes.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]) && bytes.len() > 1000
}

#[test]
fn two_guests_meet_on_a_switch() {
    let _turn = alone();
    let switch = Switch::start();
    let capture = switch.folder.path().join("web.pcapng");
    let serve =
        format!("{LEASE}; echo web is ready; nc -l -p 7 >/tmp/got; echo got $(md5sum </tmp/got)");
    let port = switch.port(&format!("name=web,capture={}", capture.display()));
    let mut web = guest(&port, &serve).start();
    web.wait_for("web is ready");
    let elsewhere = switch.port("name=far,vlan=9");
    let command = format!("{LEASE}; ping -c 1 -W 2 10.90.7.80 || echo far is alone");
    let far = guest(&elsewhere, &command).run();
    far.expect_code(0);
    assert!(far.output.contains("far is alone"), "{}", far.output);
    let command = format!(
        "{LEASE}; nslookup web; ping -c 2 web && echo pinged; \
         head -c 3000000 /dev/zero | tr '\\\\0' x >/tmp/sent; nc web 7 </tmp/sent; echo sent"
    );
    let client = guest(&switch.port("name=client"), &command).run();
    client.expect_code(0).expect_clean_log();
    assert!(client.output.contains("10.90.7.80"), "{}", client.output);
    assert!(client.output.contains("pinged"), "{}", client.output);
    let ports = switch.status();
    assert_eq!(ports[0]["name"], "web", "{ports}");
    let received = ports[0]["received"][1].as_u64().expect("bytes");
    assert!(received > 3_000_000, "{ports}");
    let web = web.finish();
    web.expect_code(0);
    assert!(web.output.contains("lease: 10.90.7.80 by 10.90.7.2"), "{}", web.output);
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().write_all(&vec![b'x'; 3_000_000]).expect("written");
    let sum = Command::new("md5sum").arg(file.path()).output().expect("md5sum").stdout;
    let sum = String::from_utf8_lossy(&sum);
    let sum = sum.split(' ').next().expect("a sum");
    assert!(web.output.contains(&format!("got {sum}")), "{}", web.output);
    assert!(is_capture(&capture));
}

#[test]
fn a_guest_is_served_by_its_user_network() {
    let _turn = alone();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let tcp = listener.local_addr().expect("an address").port();
    // Half-closed: the guest ends its side, and then takes what it asked for.
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the guest connects");
        let mut question = [0; 6];
        stream.read_exact(&mut question).expect("a question");
        stream.write_all(b"an answer of the host\n").expect("the guest reads");
        question
    });
    let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a port");
    datagrams.set_read_timeout(Some(PATIENCE)).expect("a limit");
    let udp = datagrams.local_addr().expect("an address").port();
    let echo = std::thread::spawn(move || {
        let mut bytes = [0; 100];
        let (size, peer) = datagrams.recv_from(&mut bytes).expect("a datagram");
        let back = [b"echo ".as_slice(), &bytes[..size]].concat();
        datagrams.send_to(&back, peer).expect("it goes back");
    });
    let folder = tempfile::tempdir().expect("a folder");
    let (capture, stats) = (folder.path().join("net.pcapng"), folder.path().join("stats"));
    let net = format!("user,host,capture={}", capture.display());
    let command = format!(
        "{LEASE}; ping -c 1 10.0.2.2 && echo four; sleep 3; \
         ping6 -c 1 fd00:6775:6973:6500::2 && echo six; \
         (echo hello; sleep 2) | nc 10.0.2.2 {tcp}; \
         (echo datagram; sleep 2) | nc -u -w 3 10.0.2.2 {udp}; echo all done"
    );
    let stats_path = stats.display().to_string();
    let ended = guest(&net, &command).args(["--stats", &stats_path]).run();
    ended.expect_code(0).expect_clean_log();
    for text in ["lease: 10.0.2.15 by 10.0.2.2", "four", "six", "an answer of the host"] {
        assert!(ended.output.contains(text), "no {text:?} in:\n{}", ended.output);
    }
    assert_eq!(&server.join().expect("the server"), b"hello\n");
    if ended.output.contains("nc: invalid option") {
        crate::support::not_run("datagrams from inside the guest", "its nc has none");
    } else {
        echo.join().expect("the echo");
        assert!(ended.output.contains("echo datagram"), "{}", ended.output);
    }
    assert!(is_capture(&capture));
    let stats: Value =
        serde_json::from_slice(&std::fs::read(&stats).expect("statistics")).expect("JSON");
    let net = stats["devices"]
        .as_array()
        .and_then(|devices| devices.iter().find(|device| device["kind"] == "net"));
    let net = net.expect("an interface");
    assert!(net["sent"][0].as_u64().is_some_and(|frames| frames > 5), "{net}");
    assert_eq!(net["drops"]["malformed"], 0, "{net}");
    assert!(net["occupied"]["tcp-flows"]["most"].is_u64(), "{net}");
}

#[test]
fn networks_that_cannot_be_are_told_in_one_line() {
    let refused = |arguments: &[&str], text: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_guise")).args(arguments).output();
        let output = output.expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(text), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    };
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().display().to_string();
    let first = Command::new(env!("CARGO_BIN_EXE_guise"))
        .args(["switch", &format!("{state}/a.sock"), "--state", &state])
        .args(["--subnet", "10.91.0.0/20"])
        .stdout(Stdio::piped())
        .spawn();
    let mut first = first.expect("it starts");
    let mut line = String::new();
    let stdout = first.stdout.take().expect("it is piped");
    BufReader::new(stdout).read_line(&mut line).expect("it listens");
    let second = format!("{state}/b.sock");
    refused(&["switch", &second, "--state", &state, "--subnet", "10.91.3.0/24"], "overlaps");
    refused(&["switch", &second, "--state", &state, "--subnet", "10.91.3.1/24"], "not a subnet");
    refused(&["switch", "--status", &second], "no switch answers");
    first.kill().expect("it runs");
    first.wait().expect("it ends");
    // What it left behind is no hindrance.
    let again = Command::new(env!("CARGO_BIN_EXE_guise"))
        .args(["switch", &format!("{state}/a.sock"), "--state", &state])
        .stdout(Stdio::piped())
        .spawn();
    let mut again = again.expect("it starts");
    let stdout = again.stdout.take().expect("it is piped");
    line.clear();
    BufReader::new(stdout).read_line(&mut line).expect("it listens");
    again.kill().expect("it runs");
    again.wait().expect("it ends");
    assert!(line.starts_with("a: 10.91.0.0/20 at "), "{line}");
}
