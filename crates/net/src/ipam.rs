//! Who has which address: subnets of networks, and the leases in them.
//!
//! Every network is a file in a folder of its user's: its subnet, and a lease for each
//! instance by name. A name keeps its address and MAC for good; only when a subnet is
//! full does the lease that was used longest ago, of an instance that is not there,
//! go to another. Files are replaced by rename, under the folder's lock, so a process
//! that is killed leaves the old book or the new one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::packet::Mac;

/// Networks without a subnet of their own choice get one of this size, in here.
const POOL: Subnet = Subnet { base: Ipv4Addr::new(10, 90, 0, 0), prefix: 16 };
const DEFAULT_PREFIX: u8 = 24;
/// The network itself, the router and the resolver have the first addresses.
const FIRST_HOST: u32 = 4;

#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    #[error("'{0}' is not a subnet like 10.90.1.0/24, with a prefix of 16 to 29")]
    NotASubnet(String),
    #[error("'{0}' is not a name: letters, digits and '-', at most 63")]
    NotAName(String),
    #[error("{subnet} overlaps {other} of the network '{name}'; choose another subnet")]
    Overlap { subnet: Subnet, other: Subnet, name: String },
    #[error("the network '{name}' has {subnet}, not {wanted}; remove {path} to change that")]
    OtherSubnet { name: String, subnet: Subnet, wanted: Subnet, path: PathBuf },
    #[error("all subnets in {POOL} are taken; choose one elsewhere")]
    NoSubnet,
    #[error("the network '{0}' is in use by another process")]
    InUse(String),
    #[error("all addresses in {0} are in use")]
    Full(Subnet),
    #[error("{0} is no address for an instance in {1}")]
    Outside(Ipv4Addr, Subnet),
    #[error("{address} belongs to '{name}'")]
    Taken { address: Ipv4Addr, name: String },
    #[error("the MAC address {mac} belongs to '{name}'")]
    MacTaken { mac: String, name: String },
    #[error("{path}: {source}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// An IPv4 network, and the IPv6 network that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    base: Ipv4Addr,
    prefix: u8,
}

impl FromStr for Subnet {
    type Err = IpamError;

    fn from_str(text: &str) -> Result<Subnet, IpamError> {
        let wrong = || IpamError::NotASubnet(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let prefix = prefix.parse().ok().filter(|prefix| (16..=29).contains(prefix));
        let subnet = Subnet { base: address, prefix: prefix.ok_or_else(wrong)? };
        // The address of a host in it would be a misunderstanding.
        if u32::from(address) & (subnet.size() - 1) != 0 || address.octets()[0] == 0 {
            return Err(wrong());
        }
        Ok(subnet)
    }
}

impl TryFrom<String> for Subnet {
    type Error = IpamError;

    fn try_from(text: String) -> Result<Subnet, IpamError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.base, self.prefix)
    }
}

impl Subnet {
    fn size(&self) -> u32 {
        1 << (32 - u32::from(self.prefix))
    }

    fn host(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base) + number)
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    pub fn router(&self) -> Ipv4Addr {
        self.host(2)
    }

    pub fn resolver(&self) -> Ipv4Addr {
        self.host(3)
    }

    /// The IPv6 address that goes with an IPv4 one, in a /64 of the subnet's own.
    pub fn six(&self, address: Ipv4Addr) -> Ipv6Addr {
        let [a, b, c, d] = self.base.octets();
        let pair = |high, low| u16::from_be_bytes([high, low]);
        let host = u32::from(address) - u32::from(self.base);
        Ipv6Addr::new(0xfd00, 0x6775, pair(a, b), pair(c, d), 0, 0, 0, host as u16)
    }

    pub fn overlaps(&self, other: &Subnet) -> bool {
        let size = self.size().max(other.size());
        u32::from(self.base) / size == u32::from(other.base) / size
    }

    fn may_be_leased(&self, address: Ipv4Addr) -> bool {
        let host = u32::from(address).wrapping_sub(u32::from(self.base));
        (FIRST_HOST..self.size() - 1).contains(&host)
    }
}

/// What an instance has for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub address: Ipv4Addr,
    #[serde(with = "mac_text")]
    pub mac: Mac,
    /// Given by hand: never reused.
    #[serde(default)]
    pub fixed: bool,
    /// When it was asked for last, in seconds since 1970.
    #[serde(default)]
    used: u64,
}

#[derive(Serialize, Deserialize)]
struct Contents {
    subnet: Subnet,
    leases: BTreeMap<String, Lease>,
}

/// The book of one network, which nobody else writes as long as this lives.
pub struct Book {
    name: String,
    path: PathBuf,
    contents: Contents,
    _lock: File,
}

/// Takes a lock that ends with the file.
fn locked(path: &Path, operation: FlockOperation) -> io::Result<File> {
    let file = File::create(path)?;
    rustix::fs::flock(&file, operation)?;
    Ok(file)
}

pub fn check_name(name: &str) -> Result<(), IpamError> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let fits = (1..=63).contains(&name.len()) && name.bytes().all(good);
    if fits && !name.starts_with('-') && !name.ends_with('-') {
        Ok(())
    } else {
        Err(IpamError::NotAName(name.to_owned()))
    }
}

fn read(path: &Path) -> Result<Option<Contents>, IpamError> {
    let failed = |source| IpamError::File { path: path.to_owned(), source };
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// The other networks in a folder.
fn others(folder: &Path, own: &str) -> Result<Vec<(String, Subnet)>, IpamError> {
    let failed = |source| IpamError::File { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { continue };
        let is_book = path.extension().is_some_and(|extension| extension == "json");
        if is_book
            && name != own
            && let Some(contents) = read(&path)?
        {
            found.push((name.to_owned(), contents.subnet));
        }
    }
    Ok(found)
}

impl Book {
    /// Opens the book of a network in a folder, or begins it, with the subnet that is
    /// wanted or with a free one.
    pub fn open(folder: &Path, name: &str, wanted: Option<Subnet>) -> Result<Book, IpamError> {
        check_name(name)?;
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| IpamError::File { path, source }
        };
        fs::create_dir_all(folder).map_err(failed(folder))?;
        let lock_path = folder.join(format!("{name}.lock"));
        let lock = locked(&lock_path, FlockOperation::NonBlockingLockExclusive);
        let lock = lock.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => IpamError::InUse(name.to_owned()),
            _ => failed(&lock_path)(error),
        })?;
        let all_path = folder.join(".lock");
        let _all = locked(&all_path, FlockOperation::LockExclusive).map_err(failed(&all_path))?;
        let path = folder.join(format!("{name}.json"));
        let others = others(folder, name)?;
        let free = |subnet: &Subnet| others.iter().all(|(_, other)| !subnet.overlaps(other));
        let contents = match (read(&path)?, wanted) {
            (Some(contents), Some(wanted)) if contents.subnet != wanted => {
                let (name, subnet) = (name.to_owned(), contents.subnet);
                return Err(IpamError::OtherSubnet { name, subnet, wanted, path });
            }
            (Some(contents), _) => contents,
            (None, Some(subnet)) => Contents { subnet, leases: BTreeMap::new() },
            (None, None) => {
                let size = 1 << (32 - u32::from(DEFAULT_PREFIX));
                let subnet = (0..POOL.size() / size)
                    .map(|n| Subnet { base: POOL.host(n * size), prefix: DEFAULT_PREFIX })
                    .find(free)
                    .ok_or(IpamError::NoSubnet)?;
                Contents { subnet, leases: BTreeMap::new() }
            }
        };
        if let Some((name, other)) =
            others.iter().find(|(_, other)| contents.subnet.overlaps(other))
        {
            let (subnet, other, name) = (contents.subnet, *other, name.clone());
            return Err(IpamError::Overlap { subnet, other, name });
        }
        let book = Book { name: name.to_owned(), path, contents, _lock: lock };
        book.save()?;
        Ok(book)
    }

    pub fn subnet(&self) -> Subnet {
        self.contents.subnet
    }

    /// A stable MAC for what has no name of an instance: the network's router.
    pub fn router_mac(&self) -> Mac {
        seeded_mac(&self.name, "", 0)
    }

    fn save(&self) -> Result<(), IpamError> {
        let write = || {
            let next = self.path.with_extension("next");
            let mut file = File::create(&next)?;
            serde_json::to_writer_pretty(&mut file, &self.contents)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&next, &self.path)
        };
        write().map_err(|source| IpamError::File { path: self.path.clone(), source })
    }

    fn owner(&self, address: Ipv4Addr) -> Option<&str> {
        let found = self.contents.leases.iter().find(|(_, lease)| lease.address == address);
        found.map(|(name, _)| name.as_str())
    }

    fn mac_owner(&self, mac: Mac) -> Option<&str> {
        let found = self.contents.leases.iter().find(|(_, lease)| lease.mac == mac);
        found.map(|(name, _)| name.as_str())
    }

    fn free_mac(&self, name: &str) -> Mac {
        let mut candidates = (0..).map(|attempt| seeded_mac(&self.name, name, attempt));
        let free = |mac: &Mac| {
            *mac != self.router_mac() && self.mac_owner(*mac).is_none_or(|owner| owner == name)
        };
        candidates.find(free).unwrap_or_default()
    }

    /// Gives an instance an address of choice, for good.
    pub fn fix(&mut self, name: &str, address: Ipv4Addr) -> Result<(), IpamError> {
        check_name(name)?;
        if !self.subnet().may_be_leased(address) {
            return Err(IpamError::Outside(address, self.subnet()));
        }
        if let Some(owner) = self.owner(address).filter(|owner| *owner != name) {
            return Err(IpamError::Taken { address, name: owner.to_owned() });
        }
        let known = self.contents.leases.get(name);
        let (mac, used) = known.map_or((self.free_mac(name), 0), |lease| (lease.mac, lease.used));
        let lease = Lease { address, mac, fixed: true, used };
        self.contents.leases.insert(name.to_owned(), lease);
        self.save()
    }

    /// The lease of an instance, made if there is none. `present` says which instances
    /// use theirs now.
    pub fn lease(
        &mut self,
        name: &str,
        mac: Option<Mac>,
        present: impl Fn(&str) -> bool,
    ) -> Result<Lease, IpamError> {
        check_name(name)?;
        if let Some(mac) = mac
            && let Some(owner) = self.mac_owner(mac).filter(|owner| *owner != name)
        {
            // Of an instance that has gone, the MAC may be had.
            if present(owner) || self.contents.leases[owner].fixed {
                let (mac, name) = (mac_text::text(mac), owner.to_owned());
                return Err(IpamError::MacTaken { mac, name });
            }
            let owner = owner.to_owned();
            self.contents.leases.remove(&owner);
        }
        let known = self.contents.leases.get(name).cloned();
        let (address, fixed) = match &known {
            Some(lease) => (lease.address, lease.fixed),
            None => (self.free_address(name, present)?, false),
        };
        let mac = mac.or(known.map(|lease| lease.mac)).unwrap_or_else(|| self.free_mac(name));
        let used = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let lease = Lease { address, mac, fixed, used };
        self.contents.leases.insert(name.to_owned(), lease.clone());
        self.save()?;
        Ok(lease)
    }

    fn free_address(
        &mut self,
        name: &str,
        present: impl Fn(&str) -> bool,
    ) -> Result<Ipv4Addr, IpamError> {
        let subnet = self.subnet();
        let hosts = subnet.size() - 1 - FIRST_HOST;
        // A name begins to look at a place of its own, so that leases that were lost
        // are likely to come out the same.
        let start = (hash(&[self.name.as_bytes(), name.as_bytes()]) % u64::from(hosts)) as u32;
        let taken: std::collections::BTreeSet<Ipv4Addr> =
            self.contents.leases.values().map(|lease| lease.address).collect();
        let all = (0..hosts).map(|n| subnet.host(FIRST_HOST + (start + n) % hosts));
        if let Some(free) = all.into_iter().find(|address| !taken.contains(address)) {
            return Ok(free);
        }
        let idle = self.contents.leases.iter();
        let idle = idle.filter(|(name, lease)| !lease.fixed && !present(name));
        let oldest = idle.min_by_key(|(_, lease)| lease.used).map(|(name, _)| name.clone());
        let gone = oldest.and_then(|name| self.contents.leases.remove(&name));
        gone.map(|lease| lease.address).ok_or(IpamError::Full(subnet))
    }
}

/// FNV-1a: the same on every machine and in every version.
fn hash(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.iter().copied().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A locally administered address that follows from names.
pub fn seeded_mac(network: &str, name: &str, attempt: u8) -> Mac {
    let seed = hash(&[network.as_bytes(), name.as_bytes(), &[attempt]]);
    let [_, _, _, a, b, c, d, e] = (seed ^ seed >> 32).to_be_bytes();
    [0x02, a, b, c, d, e]
}

mod mac_text {
    use super::Mac;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn text(mac: Mac) -> String {
        mac.map(|byte| format!("{byte:02x}")).join(":")
    }

    pub fn parse(text: &str) -> Option<Mac> {
        let bytes: Option<Vec<u8>> =
            text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        bytes.and_then(|bytes| bytes.try_into().ok()).filter(|mac: &Mac| mac[0] & 1 == 0)
    }

    pub fn serialize<S: Serializer>(mac: &Mac, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&text(*mac))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Mac, D::Error> {
        let text = String::deserialize(from)?;
        parse(&text).ok_or_else(|| D::Error::custom("not the MAC address of an interface"))
    }
}

/// `52:54:00:12:34:56`, if it is an interface's.
pub fn parse_mac(text: &str) -> Option<Mac> {
    mac_text::parse(text)
}

#[cfg(test)]
mod tests;
