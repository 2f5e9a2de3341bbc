//! What a machine of an instance is given: disks, interfaces, folders of the host.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use guise_disk::device::BlockDevice;
use guise_machine::{Machine, MachineError};
use guise_net::frame::Network;
use guise_net::packet::Mac;
use guise_net::switch::SwitchError;
use guise_net::switch::client::SwitchPort;
use guise_net::switch::hello::Join;
use guise_net::user::{Config, Forward, NetError, UserNetwork};
use guise_virtio::block::{Block, BlockOptions, WhenFull};
use guise_virtio::fs::{Cache, Share, ShareOptions};
use guise_virtio::net::{Net, NetOptions};
use guise_virtio::rate::Rate;

use crate::MicroVmError;

/// Descriptors that one share may keep open for files which its guest knows.
const MOST_FILES: usize = 4096;

/// A folder of the host that the guest can mount.
#[derive(Clone, Debug)]
pub struct SharedFolder {
    pub path: PathBuf,
    /// What the guest mounts it by.
    pub tag: String,
    pub read_only: bool,
}

/// The user-mode network, whose published ports are open already.
#[derive(Clone)]
pub struct UserMode {
    pub config: Config,
    pub network: Arc<Mutex<UserNetwork>>,
}

impl UserMode {
    pub fn open(
        config: Config,
        forwards: impl IntoIterator<Item = Forward>,
    ) -> Result<Self, NetError> {
        let mut network = UserNetwork::new(config.clone())?;
        for forward in forwards {
            network.add_forward(forward)?;
        }
        Ok(UserMode { config, network: Arc::new(Mutex::new(network)) })
    }

    pub fn add_to(&self, machine: &Machine) -> Result<Arc<Mutex<dyn Network>>, MachineError> {
        add_interface(machine, self.network.clone(), self.config.guest_mac, self.config.mtu)?;
        Ok(self.network.clone())
    }
}

impl fmt::Debug for UserMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserMode").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A port of a switch.
#[derive(Clone, Debug)]
pub struct Plug {
    /// The switch's socket.
    pub socket: PathBuf,
    /// What the others call this guest.
    pub name: String,
    /// The length of the subnet's prefix.
    pub prefix: u8,
    /// Who knows the others by their names.
    pub resolver: IpAddr,
}

impl Plug {
    pub fn join(&self) -> Result<Arc<Mutex<SwitchPort>>, SwitchError> {
        let who = Join { name: self.name.clone(), mac: None, vlan: 0, isolated: false };
        Ok(Arc::new(Mutex::new(SwitchPort::open(&self.socket, who)?)))
    }
}

/// Adds an interface that is plugged into a network.
pub fn add_interface(
    machine: &Machine,
    network: Arc<Mutex<dyn Network>>,
    mac: Mac,
    mtu: u16,
) -> Result<(), MachineError> {
    let pairs = machine.config().vcpus.min(8) as u16;
    let options = NetOptions { mac, mtu, pairs, rate: Rate::default() };
    machine.add_device(Net::new(network, options)).map(drop)
}

/// Adds a disk that the guest finds by its serial number. Where the host has no space for it, it
/// waits.
pub fn add_disk(
    machine: &Machine,
    disk: &BlockDevice,
    serial: &str,
) -> Result<Arc<Block>, MachineError> {
    let block_size = disk.block_size();
    let options = BlockOptions {
        queues: machine.config().vcpus.min(64) as u16,
        serial: serial.to_owned(),
        block_size,
        physical_block_size: block_size.max(4096),
        when_full: WhenFull::Wait,
        ..BlockOptions::default()
    };
    let block = Block::new(disk.clone(), options);
    machine.add_device(block.clone())?;
    Ok(block)
}

pub fn add_shares(machine: &Machine, folders: &[SharedFolder]) -> Result<(), MicroVmError> {
    for folder in folders {
        let options = ShareOptions {
            tag: folder.tag.clone(),
            read_only: folder.read_only,
            // Others of this host, and other guests, may change what is in it.
            cache: Cache::Auto,
            most_files: MOST_FILES,
            queues: 1,
        };
        let refused = |source| MicroVmError::Share { path: folder.path.clone(), source };
        machine.add_device(Share::new(&folder.path, &options).map_err(refused)?)?;
    }
    Ok(())
}
