//! Networks of containers.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::home::{BOX, Guise, Home, in_every_guise, not_run};

in_every_guise!(published_ports_lead_inside_and_connections_lead_out);

/// A port that nobody has.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn published_ports_lead_inside_and_connections_lead_out(guise: Guise) {
    let Some(home) = Home::new("ports", guise) else { return };
    if !std::path::Path::new("/dev/net/tun").exists() {
        not_run("published ports", "this host has no /dev/net/tun");
        return;
    }
    let (port, outside) = (free_port(), std::net::TcpListener::bind("0.0.0.0:0").unwrap());
    let publish = format!("127.0.0.1:{port}:80");
    let serve = "mkdir /www; echo hello from inside > /www/index.html; exec httpd -f -p 80 -h /www";
    home.good(&["run", "-d", "--name", "web", "-p", &publish, BOX, "sh", "-c", serve]);
    let mut answer = String::new();
    home.until("the page comes", || {
        answer.clear();
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
        let asked = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
        asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.contains("hello")
    });
    // The port is taken: said, and nothing is left behind.
    let taken = home.guise(&["run", "--rm", "-p", &publish, BOX, "true"]);
    assert!(taken.code == 125 && taken.err.contains(&port.to_string()), "{taken:?}");
    // Outwards: to an address of this host that is not its loopback.
    let Some(address) = own_address() else {
        not_run("connections outwards", "this host has no address but loopback");
        return;
    };
    let to = format!("echo out | nc -w 5 {address} {}", outside.local_addr().unwrap().port());
    let reader = std::thread::spawn(move || {
        let mut heard = String::new();
        outside.accept().unwrap().0.read_to_string(&mut heard).unwrap();
        heard
    });
    home.good(&["exec", "web", "sh", "-c", &to]);
    assert_eq!(reader.join().unwrap(), "out\n");
    home.good(&["rm", "-f", "web"]);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "the port is free again");
}

/// The address that this host would use towards others; nothing is sent.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}

#[test]
fn without_a_network_there_is_only_loopback() {
    let Some(home) = Home::new("alone", Guise::Container) else { return };
    let listing = "ip -o link | cut -d: -f2 | tr -d ' '";
    assert_eq!(home.good(&["run", "--rm", "--network", "none", BOX, "sh", "-c", listing]), "lo");
    let own = home.good(&[
        "run",
        "--rm",
        "--network",
        "host",
        BOX,
        "sh",
        "-c",
        "readlink /proc/self/ns/net",
    ]);
    let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(own, ours.to_string_lossy());
}
