//! Taps on the real kernel, in a network namespace of the test's own.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::netlink::{
    IFLA_INFO_KIND, IFLA_LINK_INFO, IFLA_NAME, Message, NEW_LINK, attribute, parse_link,
};
use super::*;
use crate::driver::Driver;
use crate::namespace::{as_somebody_else, in_a_namespace, is_somebody_else};

const HOLD: &str = "GUISE_TAP_TEST_HOLD";
const CREATE: u16 = 0x400 | 4;

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
    in_a_namespace("tap::tests::frames_cross_a_bridge_and_nothing_stays_behind", || {
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
        while !driver.frames.iter().any(|(have, _)| *have == frame) {
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
    in_a_namespace("tap::tests::what_cannot_be_is_said_in_one_line", || {
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
fn a_killed_process_leaves_no_tap() {
    const NAME: &str = "tap::tests::a_killed_process_leaves_no_tap";
    in_a_namespace(NAME, || {
        if std::env::var_os(HOLD).is_some() {
            let _tap = Tap::open(&options("a0", Some("lab0"), 2)).unwrap();
            println!("it is there");
            loop {
                std::thread::park();
            }
        }
        make_bridge("lab0");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(HOLD, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains("it is there")));
        let mut netlink = Netlink::open().unwrap();
        assert!(netlink.link("a0").unwrap().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while netlink.link("a0").unwrap().is_some() {
            assert!(Instant::now() < deadline, "the tap stays");
            std::thread::sleep(Duration::from_millis(20));
        }
        Tap::open(&options("a0", Some("lab0"), 1)).unwrap();
    });
}

#[test]
fn without_the_privilege_it_says_what_helps() {
    if !std::path::Path::new(DEVICE).exists() {
        println!("not run: this machine has no {DEVICE}");
        return;
    }
    if !is_somebody_else() {
        let name = "tap::tests::without_the_privilege_it_says_what_helps";
        return as_somebody_else(name, ("GUISE_TAP_TEST", "".as_ref()));
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
