//! Networks of containers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::home::{BOX, Guise, Home, in_every_guise, not_run};

in_every_guise!(
    published_ports_lead_inside_and_connections_lead_out,
    ports_and_names_are_free_when_an_instance_has_ended,
);

/// A port that nobody has, and that the kernel gives nobody who asks for any.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let given: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
    let (first, count) = (given / 2, given / 2 - 1);
    let start = (std::process::id() % u32::from(count)) as u16;
    let next = || first + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % count;
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(next).take(count.into()).find(free).expect("a free port")
}

fn published_ports_lead_inside_and_connections_lead_out(guise: Guise) {
    let Some(home) = Home::new("ports", guise) else { return };
    if !std::path::Path::new("/dev/net/tun").exists() {
        not_run("published ports", "this host has no /dev/net/tun");
        return;
    }
    let (port, outside) = (free_port(), TcpListener::bind("0.0.0.0:0").unwrap());
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
    let to = format!("echo out | nc -w 60 {address} {}", outside.local_addr().unwrap().port());
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

/// Also while somebody who does not read keeps its worker waiting.
fn ports_and_names_are_free_when_an_instance_has_ended(guise: Guise) {
    let Some(home) = Home::new("free", guise) else { return };
    if !std::path::Path::new("/dev/net/tun").exists() {
        not_run("published ports", "this host has no /dev/net/tun");
        return;
    }
    home.good(&["network", "create", "lab"]);
    let port = free_port();
    let publish = format!("127.0.0.1:{port}:80");
    let more_than_a_pipe_holds = "head -c 400000 /dev/zero | tr '\\0' x; exec sleep 1000";
    home.good(&[
        "run",
        "-d",
        "--name",
        "it",
        "--network",
        "lab",
        "-p",
        &publish,
        BOX,
        "sh",
        "-c",
        more_than_a_pipe_holds,
    ]);
    let attach = home.command(["attach", "it"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut attach = attach.unwrap();
    for life in 1..=3 {
        let restarted = home.guise(&["restart", "-t", "0", "it"]);
        assert_eq!(restarted.code, 0, "life {life}: {restarted:?}");
        home.until_phase("it", "running");
    }
    home.good(&["stop", "-t", "0", "it"]);
    drop(TcpListener::bind(("127.0.0.1", port)).expect("the port is free"));
    home.good(&["rm", "it"]);
    attach.kill().unwrap();
    attach.wait().unwrap();
    home.good(&["network", "rm", "lab"]);
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

#[test]
fn instances_of_a_network_find_each_other_by_name() {
    let Some(mut home) = Home::new("named", Guise::Container) else { return };
    if !std::path::Path::new("/dev/net/tun").exists() {
        not_run("named networks", "this host has no /dev/net/tun");
        return;
    }
    let missing = home.guise(&["run", "--rm", "--network", "lab", BOX, "true"]);
    assert!(missing.code == 125 && missing.err.contains("network create lab"), "{missing:?}");
    home.good(&["network", "create", "lab", "--subnet", "10.97.1.0/24"]);
    home.good(&["network", "create", "other"]);
    let overlapping = home.guise(&["network", "create", "third", "--subnet", "10.97.0.0/16"]);
    assert!(overlapping.code == 1 && overlapping.err.contains("overlaps"), "{overlapping:?}");
    let serve = "mkdir /www; echo served > /www/index.html; exec httpd -f -p 80 -h /www";
    home.good(&["run", "-d", "--name", "web", "--network", "lab", BOX, "sh", "-c", serve]);
    home.good(&["run", "-d", "--name", "Ask_er", "--network", "lab", BOX, "sleep", "1000"]);
    home.good(&["run", "-d", "--name", "far", "--network", "other", BOX, "sleep", "1000"]);
    // A static busybox resolves names in nslookup only.
    let script = "a=$(nslookup web | grep -A1 ^Name | grep -o '10[.]97[.]1[.][0-9]*') && \
                  printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 $a 80";
    let ask = |home: &Home, from: &str| home.guise(&["exec", from, "sh", "-c", script]);
    let served = |home: &Home| ask(home, "Ask_er").out.ends_with("served\n");
    home.until("one asks the other by its name", || served(&home));
    let refused = ask(&home, "far");
    assert!(refused.code != 0 && refused.out.is_empty(), "{refused:?}");
    let address = home.inspect("web")["status"]["addresses"][0].clone();
    assert!(address.as_str().unwrap().starts_with("10.97.1."), "{address}");
    // Names are those of hosts.
    let named = home.guise(&["exec", "web", "nslookup", "ask-er"]);
    assert!(named.out.contains("Address: 10.97.1."), "{named:?}");
    let used = home.guise(&["network", "rm", "lab"]);
    assert!(used.code == 1 && used.err.contains("is used by"), "{used:?}");
    // It goes on when the daemon is killed, and when its switch is.
    let switches = switches_of(&home);
    assert_eq!(switches.len(), 2, "{switches:?}");
    home.kill_daemon();
    home.start_daemon();
    home.until("one still asks the other", || served(&home));
    assert_eq!(switches_of(&home), switches);
    for switch in switches {
        let pid = rustix::process::Pid::from_raw(switch).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    home.until("one asks the other again", || served(&home));
    // Nothing runs for a network that nobody uses.
    home.good(&["rm", "-f", "web", "Ask_er", "far"]);
    home.until("the switches have ended", || switches_of(&home).is_empty());
    home.good(&["network", "rm", "lab", "other"]);
    assert_eq!(home.good(&["network", "ls", "-o", "json"]), "[]");
}

/// The processes that are switches of this home.
fn switches_of(home: &Home) -> Vec<i32> {
    let place = home.path("run/n").to_string_lossy().into_owned();
    let mut found: Vec<i32> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|process| {
            let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            command.contains("\0switch\0") && command.contains(&place)
        })
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect();
    found.sort_unstable();
    found
}
