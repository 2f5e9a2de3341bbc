//! What `--disk`, `--net`, `--rng` and `--console` put on the machine. Backends are opened once;
//! every machine of a run, when the guest resets, gets devices over the same ones.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use guise_disk::device::{BlockDevice, DeviceOptions};
use guise_machine::console::Input;
use guise_machine::{Machine, MachineError};
use guise_virtio::block::{Block, BlockOptions};
use guise_virtio::console::Console;
use guise_virtio::net::Net;
use guise_virtio::rate::Rate;
use guise_virtio::rng::Rng;

use super::network::Interface;
use crate::Failure;

#[derive(Args)]
pub struct DeviceArguments {
    /// A disk: FILE[,format=F][,readonly][,snapshot][,cache=none|unsafe][,serial=S]
    /// [,queues=N][,iops=N][,bps=SIZE][,burst=SECONDS]; may be repeated
    #[arg(long, value_name = "FILE,…")]
    disk: Vec<String>,
    /// A network: none, or user[,forward=[tcp:|udp:][ADDRESS:]PORT-GUESTPORT][,host][,restrict]
    /// [,deny=NET/LEN][,mac=MAC][,mtu=N][,hostname=S][,dns=ADDRESS][,queues=N][,bps=SIZE][,pps=N];
    /// may be repeated
    #[arg(long, value_name = "NETWORK", default_value = "none")]
    net: Vec<String>,
    /// Give the guest random numbers of the host
    #[arg(long)]
    rng: bool,
    /// What this terminal is connected to: the serial port (ttyS0) or a virtio console (hvc0)
    #[arg(long, value_enum, default_value_t = ConsoleKind::Serial)]
    console: ConsoleKind,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ConsoleKind {
    Serial,
    Virtio,
}

/// Everything that is open for the machine's devices.
pub struct Backends {
    disks: Vec<Disk>,
    interfaces: Vec<Interface>,
    rng: bool,
    console: ConsoleKind,
}

struct Disk {
    name: String,
    device: BlockDevice,
    options: BlockOptions,
}

impl Backends {
    /// Opens all that the command line names, for a machine of so many vCPUs.
    pub fn open(arguments: &DeviceArguments, vcpus: u32) -> Result<Self, Failure> {
        let mut interfaces = Vec::new();
        for text in &arguments.net {
            interfaces.extend(Interface::open(text, vcpus)?);
        }
        let disks = arguments.disk.iter().map(|text| Disk::open(text, vcpus));
        Ok(Backends {
            disks: disks.collect::<Result<_, _>>()?,
            interfaces,
            rng: arguments.rng,
            console: arguments.console,
        })
    }

    /// Puts devices on a machine. Returns where the terminal's input goes.
    pub fn attach(&self, machine: &Machine) -> Result<Arc<dyn Input>, MachineError> {
        for disk in &self.disks {
            machine.add_device(Block::new(disk.device.clone(), disk.options.clone()))?;
        }
        for interface in &self.interfaces {
            machine.add_device(Net::new(interface.network.clone(), interface.options.clone()))?;
        }
        if self.rng {
            machine.add_device(Rng::new())?;
        }
        Ok(match self.console {
            ConsoleKind::Serial => machine.serial(),
            ConsoleKind::Virtio => {
                let console = Console::new(Box::new(std::io::stdout()));
                if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdout()) {
                    console.set_size(size.ws_col, size.ws_row);
                }
                machine.add_device(console.clone())?;
                console
            }
        })
    }

    /// Brings images to a state in which another program can open them.
    pub fn close(&self) -> Result<(), Failure> {
        for disk in &self.disks {
            disk.device
                .close()
                .map_err(|error| Failure::failed(format!("--disk {}: {error}", disk.name)))?;
        }
        Ok(())
    }
}

impl Disk {
    fn open(text: &str, vcpus: u32) -> Result<Self, Failure> {
        let usage = |problem: String| Failure::usage(format!("--disk {text}: {problem}"));
        let queues = vcpus.min(u32::from(u16::MAX)) as u16;
        let mut options = BlockOptions { queues, ..BlockOptions::default() };
        let rest = take_options(text, &mut options).map_err(usage)?;
        let image = DeviceOptions::parse(&rest).map_err(|error| usage(error.to_string()))?;
        let device = BlockDevice::open(&image)
            .map_err(|error| Failure::failed(format!("--disk {text}: {error}")))?;
        options.block_size = device.block_size();
        options.physical_block_size = options.physical_block_size.max(options.block_size);
        Ok(Disk { name: text.to_owned(), device, options })
    }
}

/// Takes the options that are the device's, and leaves those of the image.
fn take_options(text: &str, options: &mut BlockOptions) -> Result<String, String> {
    // A comma in a file's name is written twice.
    let marked = text.replace(",,", "\0");
    let mut rest: Vec<&str> = Vec::new();
    for part in marked.split(',') {
        let Some((key, value)) = part.split_once('=') else {
            rest.push(part);
            continue;
        };
        let number = || -> Result<u64, String> {
            let number = value.parse().ok().filter(|number| *number > 0);
            number.ok_or_else(|| format!("{key}={value} is not a number above zero"))
        };
        match key {
            "serial" if value.len() <= 20 => options.serial = value.replace('\0', ","),
            "serial" => return Err("a serial has at most 20 bytes".to_owned()),
            "queues" => options.queues = number()?.min(64) as u16,
            "iops" => options.rate.operations = Some(number()?),
            "bps" => options.rate.bytes = Some(super::parse_bytes(value)?),
            "burst" => options.rate.burst = Duration::from_secs(number()?),
            _ => rest.push(part),
        }
    }
    let limited = Rate { burst: Duration::ZERO, ..options.rate } != Rate::default();
    if options.rate.burst > Duration::ZERO && !limited {
        return Err("burst= needs iops= or bps=".to_owned());
    }
    Ok(rest.join(",").replace('\0', ",,"))
}

#[cfg(test)]
mod tests;
