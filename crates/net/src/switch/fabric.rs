//! Who gets a frame.
//!
//! Each port has a MAC address of its own, which nobody else can take; further ones that
//! speak behind a port are learned, a few for each port, and forgotten when they are
//! silent. Frames for nobody known are dropped, not flooded: whoever is there has asked
//! for its neighbours by broadcast before. So no port sees frames for another.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::guard;
use crate::frame::Reason;
use crate::packet::{Ethernet, Mac};

/// MAC addresses that are learned behind one port.
pub const MOST_LEARNED: usize = 8;
/// How long a learned address is remembered when it is silent.
const AGE: Duration = Duration::from_secs(300);
/// Bridges talk to their neighbours only, by these.
const BRIDGES: [u8; 5] = [0x01, 0x80, 0xc2, 0, 0];

const LINK_LOCAL_PREFIX: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);

/// A port, as the switch sees it.
#[derive(Clone, Debug)]
pub struct Port {
    pub mac: Mac,
    pub vlan: u16,
    /// Reaches the gateway, and ports that are not isolated.
    pub isolated: bool,
    pub addresses: [IpAddr; 2],
    pub learned: usize,
}

impl Port {
    pub fn new(mac: Mac, vlan: u16, isolated: bool, addresses: [IpAddr; 2]) -> Port {
        Port { mac, vlan, isolated, addresses, learned: 0 }
    }
}

/// What belongs to the gateway.
pub struct Own {
    pub mac: Mac,
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    Nobody,
    One(usize),
    /// Everybody that [`Fabric::reaches`] names.
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub to: To,
    pub gateway: bool,
}

struct Learned {
    port: usize,
    seen: Instant,
}

pub struct Fabric {
    own: Own,
    ports: Vec<Option<Port>>,
    by_mac: HashMap<Mac, usize>,
    /// Behind ports, by VLAN. At most [`MOST_LEARNED`] of each port.
    learned: HashMap<(u16, Mac), Learned>,
    by_address: HashMap<IpAddr, usize>,
}

impl Fabric {
    pub fn new(own: Own) -> Fabric {
        Fabric {
            own,
            ports: Vec::new(),
            by_mac: HashMap::new(),
            learned: HashMap::new(),
            by_address: HashMap::new(),
        }
    }

    pub fn port(&self, number: usize) -> Option<&Port> {
        self.ports.get(number)?.as_ref()
    }

    /// Adds a port; false when its MAC or an address is another's.
    pub fn insert(&mut self, number: usize, port: Port) -> bool {
        let addresses = claimed(&port);
        if self.by_mac.contains_key(&port.mac)
            || port.mac == self.own.mac
            || port.mac[0] & 1 != 0
            || addresses.iter().any(|address| self.by_address.contains_key(address))
        {
            return false;
        }
        // Who was learned under this address has to leave it to its owner.
        let squatters: Vec<(u16, Mac)> =
            self.learned.keys().filter(|(_, mac)| *mac == port.mac).copied().collect();
        for key in squatters {
            self.forget(key);
        }
        self.by_mac.insert(port.mac, number);
        for address in addresses {
            self.by_address.insert(address, number);
        }
        if self.ports.len() <= number {
            self.ports.resize(number + 1, None);
        }
        self.ports[number] = Some(port);
        true
    }

    /// Says whether there was one.
    pub fn remove(&mut self, number: usize) -> bool {
        let Some(port) = self.ports.get_mut(number).and_then(Option::take) else { return false };
        self.by_mac.remove(&port.mac);
        for address in claimed(&port) {
            self.by_address.remove(&address);
        }
        self.learned.retain(|_, learned| learned.port != number);
        true
    }

    fn forget(&mut self, key: (u16, Mac)) {
        if let Some(learned) = self.learned.remove(&key)
            && let Some(Some(port)) = self.ports.get_mut(learned.port)
        {
            port.learned -= 1;
        }
    }

    /// Whether frames of one port may come to another.
    pub fn reaches(&self, from: usize, to: usize) -> bool {
        match (self.port(from), self.port(to)) {
            (Some(a), Some(b)) => from != to && a.vlan == b.vlan && !(a.isolated && b.isolated),
            _ => false,
        }
    }

    /// Says where a frame goes, or why nowhere.
    pub fn input(&mut self, from: usize, frame: &[u8], now: Instant) -> Result<Verdict, Reason> {
        let ethernet = Ethernet::parse(frame)?;
        let vlan = self.port(from).ok_or(Reason::Unreachable)?.vlan;
        self.check_mac(from, vlan, ethernet.source, now)?;
        for address in guard::claims(&ethernet)?.into_iter().flatten() {
            let others = self.by_address.get(&address).is_some_and(|owner| *owner != from);
            if others || self.own.addresses.contains(&address) {
                return Err(Reason::Spoofed);
            }
        }
        let to = ethernet.destination;
        if to[..5] == BRIDGES {
            return Err(Reason::Unsupported);
        }
        if to[0] & 1 != 0 {
            return Ok(Verdict { to: To::All, gateway: true });
        }
        if to == self.own.mac {
            return Ok(Verdict { to: To::Nobody, gateway: true });
        }
        let known = self.by_mac.get(&to).copied();
        let known = known.or_else(|| self.learned.get(&(vlan, to)).map(|learned| learned.port));
        let number = known.ok_or(Reason::Unreachable)?;
        if number == from {
            // Both are behind one port: that is theirs to carry.
            return Err(Reason::Unreachable);
        }
        if !self.reaches(from, number) {
            return Err(Reason::Policy);
        }
        Ok(Verdict { to: To::One(number), gateway: false })
    }

    /// Whether a port may send from this MAC; further ones are learned.
    fn check_mac(&mut self, from: usize, vlan: u16, mac: Mac, now: Instant) -> Result<(), Reason> {
        if mac[0] & 1 != 0 {
            return Err(Reason::Malformed);
        }
        match self.by_mac.get(&mac) {
            Some(owner) if *owner == from => return Ok(()),
            Some(_) => return Err(Reason::Spoofed),
            None if mac == self.own.mac => return Err(Reason::Spoofed),
            None => {}
        }
        if let Some(learned) = self.learned.get_mut(&(vlan, mac)) {
            if learned.port == from {
                learned.seen = now;
                return Ok(());
            }
            if now.duration_since(learned.seen) < AGE {
                return Err(Reason::Spoofed);
            }
            self.forget((vlan, mac));
        }
        if self.port(from).is_some_and(|port| port.learned >= MOST_LEARNED) {
            let old = self.learned.iter().find(|(_, learned)| {
                learned.port == from && now.duration_since(learned.seen) >= AGE
            });
            let old = old.map(|(key, _)| *key).ok_or(Reason::Limit)?;
            self.forget(old);
        }
        self.learned.insert((vlan, mac), Learned { port: from, seen: now });
        if let Some(Some(port)) = self.ports.get_mut(from) {
            port.learned += 1;
        }
        Ok(())
    }
}

/// The addresses that a port has for itself: its leases, and what it makes of its MAC.
fn claimed(port: &Port) -> Vec<IpAddr> {
    let mut all = port.addresses.to_vec();
    let own = guard::interface_identifier(port.mac);
    all.push(guard::with_identifier(LINK_LOCAL_PREFIX, own).into());
    if let IpAddr::V6(address) = port.addresses[1] {
        all.push(guard::with_identifier(address, own).into());
    }
    all
}
