//! Where a guest's packets may go, and what stands there on the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Config;
use crate::frame::Reason;

/// What a guest may reach. The default is everything outward, but not the host's own
/// loopback.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Nothing outward at all; forwards and the network's own services remain.
    pub restrict: bool,
    /// The router's address leads to the host's loopback.
    pub host: bool,
    /// Networks that are out of reach, as address and prefix length.
    pub deny: Vec<(IpAddr, u8)>,
}

/// The host's side of an address that a guest sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A socket is to be connected to this.
    Host(SocketAddr),
    /// The network's own resolver.
    Resolver,
}

pub fn same_prefix(a: Ipv6Addr, b: Ipv6Addr, prefix: u8) -> bool {
    let shift = 128 - u32::from(prefix.min(128));
    (u128::from(a) ^ u128::from(b)).checked_shr(shift).unwrap_or(0) == 0
}

fn contains(network: IpAddr, prefix: u8, address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let shift = 32 - u32::from(prefix.min(32));
            (u32::from(network) ^ u32::from(address)).checked_shr(shift).unwrap_or(0) == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => same_prefix(address, network, prefix),
        _ => false,
    }
}

impl Config {
    /// Where a connection of the guest to `address` goes.
    pub(super) fn destination(&self, address: SocketAddr) -> Result<Destination, Reason> {
        let (ip, port) = (address.ip(), address.port());
        if port == 53 && (ip == self.dns4 || ip == self.dns6) {
            return Ok(Destination::Resolver);
        }
        if ip == self.router4 || ip == self.router6 {
            if !self.policy.host {
                return Err(Reason::Policy);
            }
            let loopback = match ip {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            };
            return Ok(Destination::Host(SocketAddr::new(loopback, port)));
        }
        if self.policy.restrict || self.is_local(ip) || !is_outward(ip) {
            return Err(Reason::Policy);
        }
        if self.policy.deny.iter().any(|&(network, prefix)| contains(network, prefix, ip)) {
            return Err(Reason::Policy);
        }
        Ok(Destination::Host(address))
    }

    /// Whether an address is on the guest's own link.
    fn is_local(&self, address: IpAddr) -> bool {
        contains(self.guest4.into(), self.prefix4, address)
            || contains(self.guest6.into(), self.prefix6, address)
    }
}

/// Addresses that mean a machine elsewhere, in every way of writing them.
fn is_outward(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            !(address.is_loopback()
                || address.is_unspecified()
                || address.octets()[0] == 0
                || address.is_multicast()
                || address.is_broadcast())
        }
        IpAddr::V6(address) => {
            // ::/96 holds IPv4 addresses in their oldest disguise.
            let in_disguise = address.octets()[..12] == [0; 12];
            !(in_disguise || address.is_multicast() || address.is_unicast_link_local())
        }
    }
}
