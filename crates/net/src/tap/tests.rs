//! Taps on the real kernel, in a network namespace of the test's own.

use std::process::Command;
use std::time::Instant;

use super::netlink::{
    IFLA_INFO_KIND, IFLA_LINK_INFO, IFLA_NAME, Message, NEW_LINK, attribute, parse_link,
};
use super::*;
use crate::frame::Receives;

const INSIDE: &str = "GUISE_TAP_TEST_INSIDE";
const CREATE: u16 = 0x400 | 4;

#[derive(Default)]
struct Driver {
    room: Vec<u8>,
    frames: Vec<Vec<u8>>,
}

impl Interface for Driver {
    fn receives(&self) -> Receives {
        Receives::default()
    }

    fn room(&mut self, size: usize) -> Option<&mut [u8]> {
        self.room.resize(size, 0);
        Some(&mut self.room)
    }

    fn filled(&self, size: usize) -> &[u8] {
        &self.room[..size]
    }

    fn deliver(&mut self, size: usize, _: Offload) {
        self.frames.push(self.room[..size].to_vec());
    }
}

/// Runs a test of this file again, in namespaces where it may do all.
fn in_a_namespace(test: &str, body: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    if !std::path::Path::new(DEVICE).exists() {
        println!("not run: this machine has no {DEVICE}");
        return;
    }
    let name = format!("tap::tests::{test}");
    let binary = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args(["-rn", "--"])
        .arg(binary)
        .args(["--exact", &name, "--nocapture"])
        .env(INSIDE, "1")
        .output();
    match output {
        Err(error) => println!("not run: unshare: {error}"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            if said.contains("unshare failed") {
                println!("not run: this machine gives no namespaces: {said}");
                return;
            }
            let out = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && out.contains("1 passed"), "{out}{said}");
        }
    }
}

fn options(name: &str, bridge: Option<&str>, queues: u16) -> TapOptions {
    let bridge = bridge.map(str::to_owned);
    TapOptions { name: name.to_owned(), bridge, queues, mtu: None }
}

fn make_bridge(name: &str) {
    let mut netlink = Netlink::open().unwrap();
    let info = attribute(IFLA_INFO_KIND, b"bridge");
    let request = Message::new(NEW_LINK, CREATE, 0, 1, 1)
        .attribute(IFLA_NAME, &[name.as_bytes(), &[0]].concat())
        .attribute(IFLA_LINK_INFO, &info);
    netlink.ask(request).unwrap();
}

#[test]
fn frames_cross_a_bridge_and_nothing_stays_behind() {
    in_a_namespace("frames_cross_a_bridge_and_nothing_stays_behind", || {
        make_bridge("lab0");
        let mut a = Tap::open(&options("a0", Some("lab0"), 2)).unwrap();
        let mut b = Tap::open(&options("b0", Some("lab0"), 1)).unwrap();
        assert_eq!((a.mtu(), b.mtu()), (1500, 1500));
        let mut netlink = Netlink::open().unwrap();
        let bridge = netlink.link("lab0").unwrap().unwrap();
        assert_eq!(netlink.link("a0").unwrap().unwrap().master, bridge.index);
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
        frame.resize(100, 0x5a);
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut driver = Driver::default();
        while !driver.frames.contains(&frame) {
            a.input(&frame, Offload::default());
            b.poll(&mut driver);
            a.poll(&mut Driver::default());
            assert!(Instant::now() < deadline, "the frame does not arrive");
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(a);
        assert_eq!(netlink.link("a0").unwrap(), None);
        assert!(netlink.link("b0").unwrap().is_some());
    });
}

#[test]
fn what_cannot_be_is_said_in_one_line() {
    in_a_namespace("what_cannot_be_is_said_in_one_line", || {
        let refused = |options: &TapOptions, text: &str| {
            let error = Tap::open(options).err().expect("an error").to_string();
            assert!(error.contains(text) && !error.contains('\n'), "{error}");
        };
        refused(&options("a0", Some("nowhere"), 1), "there is no bridge 'nowhere'");
        refused(&options("a0", Some("lo"), 1), "not a bridge");
        refused(&options("lo", None, 1), "lo");
        refused(&options("a/b", None, 1), "not an interface's name");
        refused(&options("much-too-long-name", None, 1), "not an interface's name");
        let _first = Tap::open(&options("a0", None, 1)).unwrap();
        refused(&options("a0", None, 1), "in use");
    });
}

#[test]
fn without_the_privilege_it_says_what_helps() {
    if rustix::process::geteuid().is_root() || !std::path::Path::new(DEVICE).exists() {
        println!("not run: this user may make taps, or there is no {DEVICE}");
        return;
    }
    let error = Tap::open(&options("guisetest0", None, 1)).err().expect("an error").to_string();
    assert!(error.contains("no permission for the tap guisetest0"), "{error}");
}

#[test]
fn no_message_is_too_strange() {
    let mut message = vec![0; 32];
    message.extend(attribute(4, &1500u32.to_ne_bytes()));
    message.extend(attribute(IFLA_LINK_INFO, &attribute(IFLA_INFO_KIND, b"bridge\0")));
    let link = parse_link(&message).unwrap();
    assert_eq!((link.mtu, link.kind.as_str()), (1500, "bridge"));
    for length in 0..message.len() {
        parse_link(&message[..length]);
        for value in [0, 1, 3, 255] {
            let mut changed = message.clone();
            changed[length] = value;
            parse_link(&changed);
        }
    }
}
