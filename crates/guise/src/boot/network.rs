//! `--net user,…`: the user-mode network as text.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use guise_net::frame::Counters;
use guise_net::user::{Config, Forward, Transport, UserNetwork};
use guise_virtio::net::NetOptions;
use guise_virtio::rate::Rate;

use crate::Failure;

/// An interface and the network that it is plugged into.
pub struct Interface {
    pub network: Arc<Mutex<UserNetwork>>,
    pub options: NetOptions,
}

/// `user` and its options, parsed.
struct Parsed {
    config: Config,
    forwards: Vec<Forward>,
    pairs: u16,
    rate: Rate,
}

impl Interface {
    /// The network that `--net` asks for; none with `none`.
    pub fn open(text: &str, vcpus: u32) -> Result<Option<Self>, Failure> {
        if text == "none" {
            return Ok(None);
        }
        let parsed = Parsed::from_text(text, vcpus)
            .map_err(|problem| Failure::usage(format!("--net {text}: {problem}")))?;
        let Parsed { config, forwards, pairs, rate } = parsed;
        let options = NetOptions { mac: config.guest_mac, mtu: config.mtu, pairs, rate };
        let failed = |error| Failure::failed(format!("--net {text}: {error}"));
        let mut network = UserNetwork::new(config).map_err(failed)?;
        for forward in forwards {
            network.add_forward(forward).map_err(failed)?;
        }
        Ok(Some(Interface { network: Arc::new(Mutex::new(network)), options }))
    }

    pub fn counters(&self) -> Counters {
        self.network.lock().unwrap_or_else(PoisonError::into_inner).counters()
    }
}

impl Parsed {
    fn from_text(text: &str, vcpus: u32) -> Result<Self, String> {
        let mut parts = text.split(',');
        if parts.next() != Some("user") {
            return Err("networks are 'none' and 'user'".to_owned());
        }
        let mut parsed = Parsed {
            config: Config::default(),
            forwards: Vec::new(),
            pairs: vcpus.min(8) as u16,
            rate: Rate::default(),
        };
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, "on"));
            parsed.set(key, value)?;
        }
        Ok(parsed)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let number = || value.parse::<u16>().map_err(|_| format!("{key}={value} is not a number"));
        let switch = || match value {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(format!("{key} is on or off, not '{value}'")),
        };
        let config = &mut self.config;
        match key {
            "forward" => self.forwards.push(parse_forward(value)?),
            "host" => config.policy.host = switch()?,
            "restrict" => config.policy.restrict = switch()?,
            "deny" => config.policy.deny.push(parse_prefix(value)?),
            "mac" => config.guest_mac = parse_mac(value)?,
            "mtu" => config.mtu = number()?,
            "hostname" => config.host_name = Some(value.to_owned()),
            "dns" => config.resolvers.push(parse_resolver(value)?),
            "queues" => self.pairs = number()?.clamp(1, 16),
            "bps" => self.rate.bytes = Some(super::parse_bytes(value)?),
            "pps" => self.rate.operations = Some(u64::from(number()?)),
            _ => return Err(format!("there is no option '{key}'")),
        }
        Ok(())
    }
}

/// `[tcp:|udp:][ADDRESS:]PORT-PORT`: of the host, of the guest.
fn parse_forward(text: &str) -> Result<Forward, String> {
    let wrong = || format!("'{text}' is not [tcp:|udp:][ADDRESS:]PORT-GUESTPORT");
    let (transport, rest) = match text.split_once(':') {
        Some(("tcp", rest)) => (Transport::Tcp, rest),
        Some(("udp", rest)) => (Transport::Udp, rest),
        _ => (Transport::Tcp, text),
    };
    let (host, guest) = rest.rsplit_once('-').ok_or_else(wrong)?;
    let at = match host.parse::<u16>() {
        // Other machines reach it only if an address says so.
        Ok(port) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
        Err(_) => host.parse().map_err(|_| wrong())?,
    };
    let guest_port = guest.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
    Ok(Forward { transport, at, guest_port })
}

fn parse_prefix(text: &str) -> Result<(IpAddr, u8), String> {
    let wrong = || format!("'{text}' is not ADDRESS/LENGTH");
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = length.parse().ok().filter(|length| *length <= most).ok_or_else(wrong)?;
    Ok((address, length))
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    let mac: Option<[u8; 6]> = bytes.and_then(|bytes| bytes.try_into().ok());
    mac.filter(|mac| mac[0] & 1 == 0)
        .ok_or_else(|| format!("'{text}' is not the MAC address of an interface"))
}

fn parse_resolver(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53));
    address.or_else(|_| text.parse()).map_err(|_| format!("'{text}' is not a resolver's address"))
}

#[cfg(test)]
mod tests;
