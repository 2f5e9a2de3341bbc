//! `guise switch`: a network of one user's instances, in a process without privileges.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use guise_net::ipam::{Book, Subnet};
use guise_net::switch::{Switch, SwitchConfig, client, mac_text};
use guise_net::user::Policy;
use serde_json::{Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::Failure;
use crate::boot::descriptors;
use crate::boot::network::{parse_prefix, parse_resolver};

/// A switch for instances without root: `guise boot --net switch=SOCKET,name=NAME` plugs
/// a machine in. Runs until it is told to stop by a signal.
#[derive(Args)]
pub struct Arguments {
    /// Where it listens; the network has this file's name, without what follows a dot
    socket: PathBuf,
    /// Say which ports there are, and end
    #[arg(long, conflicts_with_all = ["subnet", "lease", "state", "mtu", "host", "restrict", "deny", "dns"])]
    status: bool,
    /// Addresses: 10.90.1.0/24, for instance; without it one is chosen that is free
    #[arg(long, value_name = "NETWORK/LENGTH")]
    subnet: Option<Subnet>,
    /// Give an instance an address for good; may be repeated
    #[arg(long, value_name = "NAME=ADDRESS", value_parser = parse_static)]
    lease: Vec<(String, Ipv4Addr)>,
    /// Where leases are kept
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = clap::value_parser!(u16).range(576..=65520))]
    mtu: u16,
    /// The router's address leads to the host's loopback
    #[arg(long)]
    host: bool,
    /// Instances reach each other, and nothing else
    #[arg(long)]
    restrict: bool,
    /// Networks that instances do not reach; may be repeated
    #[arg(long, value_name = "NETWORK/LENGTH", value_parser = parse_prefix)]
    deny: Vec<(IpAddr, u8)>,
    /// Resolvers, in place of the host's; may be repeated
    #[arg(long, value_name = "ADDRESS", value_parser = parse_resolver)]
    dns: Vec<SocketAddr>,
    /// Users that may join besides its own, by their numbers: those of workers in jails
    #[arg(long, value_name = "FIRST-LAST", value_parser = parse_users, hide = true)]
    admit: Option<RangeInclusive<u32>>,
}

fn parse_users(text: &str) -> Result<RangeInclusive<u32>, String> {
    let wrong = || format!("'{text}' is not FIRST-LAST");
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    Ok(first.parse().map_err(|_| wrong())?..=last.parse().map_err(|_| wrong())?)
}

fn parse_static(text: &str) -> Result<(String, Ipv4Addr), String> {
    let wrong = || format!("'{text}' is not NAME=ADDRESS");
    let (name, address) = text.split_once('=').ok_or_else(wrong)?;
    Ok((name.to_owned(), address.parse().map_err(|_| wrong())?))
}

/// Where programs keep what they would not like to lose.
fn state_folder() -> Result<PathBuf, Failure> {
    let from =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = from("XDG_STATE_HOME").or_else(|| Some(from("HOME")?.join(".local/state")));
    let folder = folder.ok_or_else(|| {
        Failure::usage("there is no home folder to keep leases in; give one with --state")
    })?;
    Ok(folder.join("guise/networks"))
}

/// What the network is called.
fn network_name(socket: &Path) -> Result<&str, Failure> {
    let name = socket.file_name().and_then(|name| name.to_str());
    let name = name.and_then(|name| name.split('.').next()).filter(|name| !name.is_empty());
    name.ok_or_else(|| Failure::usage(format!("'{}' has no name", socket.display())))
}

pub fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    if arguments.status {
        return status(&arguments.socket);
    }
    let folder = arguments.state.clone().map_or_else(state_folder, Ok)?;
    let name = network_name(&arguments.socket)?;
    let mut book = Book::open(&folder, name, arguments.subnet).map_err(Failure::failed)?;
    for (name, address) in &arguments.lease {
        book.fix(name, *address).map_err(Failure::failed)?;
    }
    let config = SwitchConfig {
        mtu: arguments.mtu,
        policy: Policy {
            restrict: arguments.restrict,
            host: arguments.host,
            deny: arguments.deny.clone(),
        },
        resolvers: arguments.dns.clone(),
        admitted: arguments.admit.clone(),
    };
    let subnet = book.subnet();
    // Each connection outward is a socket here.
    descriptors::most();
    let mut switch = Switch::open(&arguments.socket, book, config).map_err(Failure::failed)?;
    let stopper = switch.stopper();
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(|error| Failure::failed(format!("signals cannot be watched: {error}")))?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if signals.forever().next().is_some() {
                stopper.stop();
            }
        })
        .map_err(|error| Failure::failed(format!("a thread cannot be started: {error}")))?;
    println!("{name}: {subnet} at {}", arguments.socket.display());
    switch.run().map_err(Failure::failed)?;
    Ok(ExitCode::SUCCESS)
}

fn status(socket: &Path) -> Result<ExitCode, Failure> {
    let ports = client::status(socket).map_err(Failure::failed)?;
    let ports: Vec<Value> = ports
        .into_iter()
        .map(|port| {
            let drops: serde_json::Map<String, Value> =
                port.drops.into_iter().map(|(name, count)| (name, json!(count))).collect();
            let occupied: serde_json::Map<String, Value> = port
                .occupied
                .into_iter()
                .map(|(what, now, most)| (what, json!({ "now": now, "most": most })))
                .collect();
            json!({
                "name": port.name,
                "mac": mac_text(port.mac),
                "addresses": port.addresses,
                "vlan": port.vlan,
                "isolated": port.isolated,
                "learned": port.learned,
                "sent": port.sent,
                "received": port.received,
                "drops": drops,
                "occupied": occupied,
            })
        })
        .collect();
    let text = serde_json::to_string_pretty(&ports).map_err(Failure::failed)?;
    println!("{text}");
    Ok(ExitCode::SUCCESS)
}
