//! TCP over a plain tap of the host's kernel, to have beside the user-mode network: the same
//! guest, with the tap in its place, in a network namespace of its own.

mod guest;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use guest::Guest;
use guise_net::packet::Headers;
use guise_net::tap::{Tap, TapOptions};

const INSIDE: &str = "GUISE_NET_BENCH_INSIDE";
const NAME: &str = "bench0";
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// One command of iproute2 in the namespace.
fn ip(line: &str) {
    let done = Command::new("ip").args(line.split_whitespace()).status().expect("iproute2");
    assert!(done.success(), "ip {line}");
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn connect(port: u16) -> Guest<Tap> {
    let options = TapOptions { name: NAME.to_owned(), bridge: None, queues: 1, mtu: Some(65_520) };
    let tap = Tap::open(&options).expect("a tap");
    ip(&format!("link set {NAME} address {}", text(HOST_MAC)));
    ip(&format!("address add {HOST}/24 dev {NAME}"));
    ip(&format!("neighbour add {GUEST} lladdr {} dev {NAME}", text(GUEST_MAC)));
    let headers = Headers {
        to_mac: HOST_MAC,
        from_mac: GUEST_MAC,
        source: GUEST.into(),
        destination: HOST.into(),
    };
    Guest::connect(tap, headers, port)
}

fn main() {
    if std::env::var_os(INSIDE).is_none() {
        let may = Command::new("unshare").args(["-rn", "true"]).status();
        if !may.is_ok_and(|status| status.success()) || !Path::new("/dev/net/tun").exists() {
            println!("plain tap: not measured: no namespaces or no /dev/net/tun here");
            return;
        }
        let this = std::env::current_exe().expect("this program");
        let mut again = Command::new("unshare");
        again.args(["-rn", "--"]).arg(this).args(std::env::args_os().skip(1));
        let status = again.env(INSIDE, "1").status().expect("unshare");
        assert!(status.success(), "the bench in its namespace ends with {status}");
        return;
    }
    for _ in 0..3 {
        // The listener is there before the tap, on all of the host's addresses.
        let at = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        guest::outward("plain tap", at, &connect, guest::amount());
        guest::inward("plain tap", at, &connect, guest::amount());
    }
}
