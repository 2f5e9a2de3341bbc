//! What a guest's `/etc` says of its name and of the network.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::IpAddr;

use guise_agent::protocol::SetUp;

const HOSTS: &str = "/etc/hosts";
const RESOLVERS: &str = "/etc/resolv.conf";
const LOCAL: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";

/// The kernel's name for the machine, and three files. The root has been entered.
pub fn write(set_up: &SetUp) -> io::Result<()> {
    if !set_up.host_name.is_empty() {
        rustix::system::sethostname(set_up.host_name.as_bytes())
            .map_err(|error| io::Error::other(format!("setting the host name: {error}")))?;
        replace("/etc/hostname", &format!("{}\n", set_up.host_name))?;
    }
    replace(HOSTS, &hosts(set_up))?;
    if !set_up.resolvers.is_empty() {
        replace(RESOLVERS, &resolvers(&set_up.search, &set_up.resolvers))?;
    }
    Ok(())
}

/// The kernel's name for the machine, and what a system without any names knows of itself.
pub fn introduce(host_name: &str) -> io::Result<()> {
    rustix::system::sethostname(host_name.as_bytes())
        .map_err(|error| io::Error::other(format!("setting the host name: {error}")))?;
    match fs::symlink_metadata(HOSTS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            replace(HOSTS, &format!("{LOCAL}127.0.1.1 {host_name}\n"))
        }
        _ => Ok(()),
    }
}

/// Says who knows names, where nobody else has said that.
pub fn name_resolvers(known: &[IpAddr]) -> io::Result<()> {
    let said = fs::read_to_string(RESOLVERS).is_ok_and(|text| !text.trim().is_empty());
    if said || known.is_empty() { Ok(()) } else { replace(RESOLVERS, &resolvers(&[], known)) }
}

fn hosts(set_up: &SetUp) -> String {
    let mut text = LOCAL.to_owned();
    // Each name stands for its first address.
    let address = set_up.interfaces.iter().flat_map(|interface| &interface.addresses).next();
    if let (Some((address, _)), false) = (address, set_up.host_name.is_empty()) {
        let _ = writeln!(text, "{address} {}", set_up.host_name);
    }
    for (address, names) in &set_up.hosts {
        let _ = writeln!(text, "{address} {names}");
    }
    text
}

fn resolvers(search: &[String], known: &[IpAddr]) -> String {
    let mut text = String::new();
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    for address in known {
        let _ = writeln!(text, "nameserver {address}");
    }
    text
}

/// Writes a file where there may be a link to somewhere that does not exist yet.
fn replace(path: &str, text: &str) -> io::Result<()> {
    let explain = |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
    fs::create_dir_all("/etc").map_err(explain)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(explain(error)),
        _ => {}
    }
    fs::write(path, text).map_err(explain)
}

#[cfg(test)]
mod tests {
    use guise_agent::protocol::Interface;

    use super::*;

    #[test]
    fn names_stand_in_hosts() {
        let address: IpAddr = "10.0.2.15".parse().unwrap();
        let interface = Interface { addresses: vec![(address, 24)], ..Interface::default() };
        let set_up = SetUp {
            host_name: "box".to_owned(),
            interfaces: vec![interface],
            hosts: vec![("10.0.2.16".parse().unwrap(), "db db.local".to_owned())],
            resolvers: vec!["10.0.2.3".parse().unwrap()],
            search: vec!["a.test".to_owned(), "b.test".to_owned()],
            ..SetUp::default()
        };
        let text = hosts(&set_up);
        assert!(text.contains("\n10.0.2.15 box\n10.0.2.16 db db.local\n"), "{text}");
        assert_eq!(
            resolvers(&set_up.search, &set_up.resolvers),
            "search a.test b.test\nnameserver 10.0.2.3\n"
        );
    }
}
