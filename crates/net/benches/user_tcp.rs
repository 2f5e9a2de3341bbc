//! The user-mode network's TCP throughput, in process.

mod guest;

use std::net::{IpAddr, Ipv4Addr};

use guest::Guest;
use guise_net::packet::Headers;
use guise_net::user::{Config, Policy, UserNetwork};

fn connect(port: u16) -> Guest<UserNetwork> {
    let policy = Policy { host: true, ..Policy::default() };
    let config = Config { policy, mtu: 65_520, ..Config::default() };
    let headers = Headers {
        to_mac: config.router_mac,
        from_mac: config.guest_mac,
        source: config.guest4.into(),
        destination: IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2)),
    };
    Guest::connect(UserNetwork::new(config).expect("a network"), headers, port)
}

fn main() {
    for _ in 0..3 {
        let at = Ipv4Addr::LOCALHOST.into();
        guest::outward("user", at, &connect, guest::amount());
        guest::inward("user", at, &connect, guest::amount());
    }
}
