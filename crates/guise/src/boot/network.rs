//! `--net user,…`, `--net switch=SOCKET,…`, `--net tap=NAME,…`: networks as text.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guise_net::capture::{Capture, Watched};
use guise_net::frame::Network;
use guise_net::ipam;
use guise_net::switch::client::SwitchPort;
use guise_net::switch::hello::Join;
use guise_net::tap::{self, Tap, TapOptions};
use guise_net::user::{Config, Forward, Transport, UserNetwork};
use guise_virtio::net::NetOptions;
use guise_virtio::rate::Rate;
use serde_json::{Value, json};

use super::descriptors;
use crate::Failure;

/// An interface and the network that it is plugged into.
pub struct Interface {
    network: Plug,
    pub options: NetOptions,
}

enum Plug {
    User(Arc<Mutex<Watched<UserNetwork>>>),
    Switch(Arc<Mutex<Watched<SwitchPort>>>),
    Tap(Arc<Mutex<Watched<Tap>>>),
}

/// A network and its options, parsed.
struct Parsed {
    kind: Kind,
    capture: Option<PathBuf>,
    pairs: u16,
    rate: Rate,
}

enum Kind {
    User { config: Box<Config>, forwards: Vec<Forward> },
    Switch { socket: PathBuf, join: Join },
    Tap { options: TapOptions, mac: Option<[u8; 6]> },
}

fn lock<T: ?Sized>(network: &Mutex<T>) -> MutexGuard<'_, T> {
    network.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Interface {
    /// The network that `--net` asks for; none with `none`.
    pub fn open(text: &str, vcpus: u32) -> Result<Option<Self>, Failure> {
        if text == "none" {
            return Ok(None);
        }
        let parsed = Parsed::from_text(text, vcpus)
            .map_err(|problem| Failure::usage(format!("--net {text}: {problem}")))?;
        let failed =
            |error: &dyn std::fmt::Display| Failure::failed(format!("--net {text}: {error}"));
        let Parsed { kind, capture, pairs, rate } = parsed;
        let capture = |name: &str| {
            let capture = capture.as_deref().map(|path| Capture::create(path, name)).transpose();
            capture.map_err(|error| failed(&error))
        };
        let (network, mac, mtu) = match kind {
            Kind::User { config, forwards } => {
                // Each connection of the guest is a socket here.
                descriptors::most();
                let (mac, mtu) = (config.guest_mac, config.mtu);
                let mut network = UserNetwork::new(*config).map_err(|error| failed(&error))?;
                for forward in forwards {
                    network.add_forward(forward).map_err(|error| failed(&error))?;
                }
                let watched = Watched::new(network, capture("user")?);
                (Plug::User(Arc::new(Mutex::new(watched))), mac, mtu)
            }
            Kind::Switch { socket, join } => {
                let name = join.name.clone();
                let port = SwitchPort::open(&socket, join).map_err(|error| failed(&error))?;
                let welcome = port.welcome();
                let watched = Watched::new(port, capture(&name)?);
                (Plug::Switch(Arc::new(Mutex::new(watched))), welcome.mac, welcome.mtu)
            }
            Kind::Tap { mut options, mac } => {
                options.queues = pairs;
                let tap = Tap::open(&options).map_err(|error| failed(&error))?;
                let mtu = tap.mtu();
                let mac =
                    mac.unwrap_or_else(|| ipam::seeded_mac(&tap::host_seed(), &options.name, 0));
                let watched = Watched::new(tap, capture(&options.name)?);
                (Plug::Tap(Arc::new(Mutex::new(watched))), mac, mtu)
            }
        };
        Ok(Some(Interface { network, options: NetOptions { mac, mtu, pairs, rate } }))
    }

    pub fn network(&self) -> Arc<Mutex<dyn Network>> {
        match &self.network {
            Plug::User(network) => network.clone(),
            Plug::Switch(network) => network.clone(),
            Plug::Tap(network) => network.clone(),
        }
    }

    /// Counters, drops by reason, and what the guest occupies with its limits.
    pub fn statistics(&self) -> Value {
        let network = self.network();
        let network = lock(&network);
        let counters = network.counters();
        let drops: serde_json::Map<String, Value> =
            counters.all_drops().map(|(name, count)| (name.to_owned(), json!(count))).collect();
        let occupied: serde_json::Map<String, Value> = network
            .occupied()
            .into_iter()
            .map(|entry| (entry.what.to_owned(), json!({ "now": entry.now, "most": entry.most })))
            .collect();
        json!({
            "sent": [counters.frames_in, counters.bytes_in],
            "received": [counters.frames_out, counters.bytes_out],
            "drops": drops,
            "occupied": occupied,
        })
    }

    fn user(&self) -> Result<&Mutex<Watched<UserNetwork>>, String> {
        match &self.network {
            Plug::User(network) => Ok(network),
            Plug::Switch(_) | Plug::Tap(_) => Err("only user networks forward ports".to_owned()),
        }
    }

    /// Forwards one more port of the host. Returns its address.
    pub fn add_forward(&self, text: &str) -> Result<SocketAddr, String> {
        let forward = parse_forward(text)?;
        lock(self.user()?).network().add_forward(forward).map_err(|error| error.to_string())
    }

    pub fn remove_forward(&self, text: &str) -> Result<(), String> {
        let wrong = || format!("'{text}' is not [tcp:|udp:][ADDRESS:]PORT");
        let (transport, host) = parse_transport(text);
        let at = parse_host(host).ok_or_else(wrong)?;
        lock(self.user()?)
            .network()
            .remove_forward(transport, at)
            .map_err(|error| error.to_string())
    }
}

impl Parsed {
    fn from_text(text: &str, vcpus: u32) -> Result<Self, String> {
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let kind = match first.split_once('=') {
            None if first == "user" => Kind::User { config: Box::default(), forwards: Vec::new() },
            Some(("switch", socket)) if !socket.is_empty() => Kind::Switch {
                socket: socket.into(),
                join: Join { name: String::new(), mac: None, vlan: 0, isolated: false },
            },
            Some(("tap", name)) if !name.is_empty() => Kind::Tap {
                options: TapOptions { name: name.to_owned(), bridge: None, queues: 1, mtu: None },
                mac: None,
            },
            _ => {
                let all = "networks are 'none', 'user', 'switch=SOCKET' and 'tap=NAME'";
                return Err(all.to_owned());
            }
        };
        let pairs = vcpus.min(8) as u16;
        let mut parsed = Parsed { kind, capture: None, pairs, rate: Rate::default() };
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, "on"));
            parsed.set(key, value)?;
        }
        if let Kind::Switch { join, .. } = &parsed.kind
            && join.name.is_empty()
        {
            return Err("a port of a switch needs name=NAME, which others resolve".to_owned());
        }
        Ok(parsed)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "capture" => self.capture = Some(Path::new(value).to_owned()),
            "queues" => self.pairs = number(key, value)?.clamp(1, 16),
            "bps" => self.rate.bytes = Some(super::parse_bytes(value)?),
            "pps" => self.rate.operations = Some(u64::from(number(key, value)?)),
            _ => match &mut self.kind {
                Kind::User { config, forwards } => set_user(config, forwards, key, value)?,
                Kind::Switch { join, .. } => set_port(join, key, value)?,
                Kind::Tap { options, mac } => match key {
                    "bridge" => options.bridge = Some(value.to_owned()),
                    "mtu" => options.mtu = Some(number(key, value)?),
                    "mac" => *mac = Some(parse_mac(value)?),
                    _ => return Err(format!("a tap has no option '{key}'")),
                },
            },
        }
        Ok(())
    }
}

fn number(key: &str, value: &str) -> Result<u16, String> {
    value.parse().map_err(|_| format!("{key}={value} is not a number"))
}

fn switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{key} is on or off, not '{value}'")),
    }
}

fn set_user(
    config: &mut Config,
    forwards: &mut Vec<Forward>,
    key: &str,
    value: &str,
) -> Result<(), String> {
    match key {
        "forward" => forwards.push(parse_forward(value)?),
        "host" => config.policy.host = switch(key, value)?,
        "restrict" => config.policy.restrict = switch(key, value)?,
        "deny" => config.policy.deny.push(parse_prefix(value)?),
        "mac" => config.guest_mac = parse_mac(value)?,
        "mtu" => config.mtu = number(key, value)?,
        "hostname" => config.host_name = Some(value.to_owned()),
        "dns" => config.resolvers.push(parse_resolver(value)?),
        _ => return Err(format!("a user network has no option '{key}'")),
    }
    Ok(())
}

fn set_port(join: &mut Join, key: &str, value: &str) -> Result<(), String> {
    match key {
        "name" => {
            ipam::check_name(value).map_err(|error| error.to_string())?;
            join.name = value.to_owned();
        }
        "mac" => join.mac = Some(parse_mac(value)?),
        "vlan" => {
            join.vlan = number(key, value)
                .ok()
                .filter(|vlan| *vlan <= 4094)
                .ok_or_else(|| format!("vlan={value} is not a number from 0 to 4094"))?;
        }
        "isolated" => join.isolated = switch(key, value)?,
        _ => return Err(format!("a port of a switch has no option '{key}'")),
    }
    Ok(())
}

/// `[tcp:|udp:][ADDRESS:]PORT-PORT`: of the host, of the guest.
fn parse_forward(text: &str) -> Result<Forward, String> {
    let wrong = || format!("'{text}' is not [tcp:|udp:][ADDRESS:]PORT-GUESTPORT");
    let (transport, rest) = parse_transport(text);
    let (host, guest) = rest.rsplit_once('-').ok_or_else(wrong)?;
    let at = parse_host(host).ok_or_else(wrong)?;
    let guest_port = guest.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
    Ok(Forward { transport, at, guest_port })
}

fn parse_transport(text: &str) -> (Transport, &str) {
    match text.split_once(':') {
        Some(("tcp", rest)) => (Transport::Tcp, rest),
        Some(("udp", rest)) => (Transport::Udp, rest),
        _ => (Transport::Tcp, text),
    }
}

/// An address of the host. Other machines reach it only if an address says so.
fn parse_host(text: &str) -> Option<SocketAddr> {
    let loopback = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    text.parse().map(loopback).or_else(|_| text.parse()).ok()
}

pub fn parse_prefix(text: &str) -> Result<(IpAddr, u8), String> {
    let wrong = || format!("'{text}' is not ADDRESS/LENGTH");
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = length.parse().ok().filter(|length| *length <= most).ok_or_else(wrong)?;
    Ok((address, length))
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    ipam::parse_mac(text).ok_or_else(|| format!("'{text}' is not the MAC address of an interface"))
}

pub fn parse_resolver(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53));
    address.or_else(|_| text.parse()).map_err(|_| format!("'{text}' is not a resolver's address"))
}

#[cfg(test)]
mod tests;
