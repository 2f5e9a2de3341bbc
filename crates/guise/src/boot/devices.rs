//! What `--disk`, `--share`, `--net`, `--vsock`, `--rng`, `--balloon`, `--console` and
//! `--port` put on the machine. Backends are opened once; every machine of a run, when the
//! guest resets, gets devices over the same ones.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use clap::{Args, ValueEnum};
use guise_disk::device::{BlockDevice, DeviceOptions};
use guise_disk::format::Preallocation;
use guise_machine::console::Input;
use guise_machine::{Machine, MachineError};
use guise_virtio::VirtioDevice;
use guise_virtio::balloon::Balloon;
use guise_virtio::block::{Block, BlockOptions, Shortage, WhenFull};
use guise_virtio::console::{Console, Port};
use guise_virtio::fs::Share;
use guise_virtio::net::Net;
use guise_virtio::rate::Rate;
use guise_virtio::rng::Rng;
use guise_virtio::vsock::{Host, Vsock};
use serde_json::{Value, json};

use super::network::Interface;
use super::ports::NamedPort;
use super::share::Shared;
use super::sockets::Sockets;
use crate::Failure;

/// How long a guest may take to let go of a device.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Args)]
pub struct DeviceArguments {
    /// A disk: FILE[,format=F][,readonly][,snapshot][,cache=none|unsafe][,serial=S]
    /// [,queues=N][,iops=N][,bps=SIZE][,burst=SECONDS][,full=report|pause]; may be repeated
    #[arg(long, value_name = "FILE,…")]
    disk: Vec<String>,
    /// A directory of the host, which the guest mounts with `mount -t virtiofs TAG DIR`:
    /// DIR,tag=TAG[,readonly][,cache=auto|always|never]; may be repeated
    #[arg(long, value_name = "DIR,tag=TAG")]
    share: Vec<Shared>,
    /// A network: none, or user[,forward=[tcp:|udp:][ADDRESS:]PORT-GUESTPORT][,host][,restrict]
    /// [,deny=NET/LEN][,mac=MAC][,mtu=N][,hostname=S][,dns=ADDRESS], or switch=SOCKET,name=NAME
    /// [,vlan=N][,isolated][,mac=MAC], or tap=NAME[,bridge=BRIDGE][,mtu=N][,mac=MAC]; all: [,capture=FILE][,queues=N][,bps=SIZE][,pps=N]; may be
    /// repeated
    #[arg(long, value_name = "NETWORK", default_value = "none")]
    net: Vec<String>,
    /// Sockets between guest and host: connect to SOCKET and write CONNECT PORT to reach the
    /// guest; what it connects to at port N of the host (CID 2) is SOCKET_N
    #[arg(long, value_name = "SOCKET[,cid=N]")]
    vsock: Option<Sockets>,
    /// Give the guest random numbers of the host
    #[arg(long)]
    rng: bool,
    /// Let the guest give memory back that it does not use
    #[arg(long)]
    balloon: bool,
    /// What this terminal is connected to: the serial port (ttyS0) or a virtio console (hvc0)
    #[arg(long, value_enum, default_value_t = ConsoleKind::Serial)]
    console: ConsoleKind,
    /// A port of a virtio console that programs of the guest find by its name, and processes
    /// of the host at a socket; may be repeated
    #[arg(long, value_name = "SOCKET,name=NAME")]
    port: Vec<NamedPort>,
}

impl DeviceArguments {
    /// Whether there are devices that write the guest's memory by themselves.
    pub fn write_memory(&self) -> bool {
        !self.disk.is_empty()
            || !self.share.is_empty()
            || self.net.iter().any(|network| network != "none")
            || self.rng
            || self.balloon
            || self.console == ConsoleKind::Virtio
            || !self.port.is_empty()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ConsoleKind {
    Serial,
    Virtio,
}

/// Everything that is open for the machine's devices, with the devices over it on the
/// machine that runs now.
pub struct Backends {
    entries: Mutex<Vec<Entry>>,
    terminal: ConsoleKind,
    ports: Vec<Arc<Port>>,
    /// The console of the machine that runs now.
    console: Mutex<Weak<Console>>,
    vcpus: u32,
    /// Told the name of a disk for which the host has no space.
    alarm: OnceLock<Alarm>,
}

type Alarm = Arc<dyn Fn(&str, Shortage) + Send + Sync>;

struct Entry {
    name: String,
    backend: Backend,
    /// On the machine that runs now.
    plugged: Option<(u8, Device)>,
}

enum Backend {
    Disk(Disk),
    Share(Arc<Share>),
    Interface(Interface),
    Vsock(u32, Arc<Host>),
    Rng,
    Balloon,
}

struct Disk {
    text: String,
    device: BlockDevice,
    options: BlockOptions,
}

#[derive(Clone)]
enum Device {
    Block(Arc<Block>),
    Share(Arc<Share>),
    Net(Arc<Net>),
    Vsock(Arc<Vsock>),
    Rng(Arc<Rng>),
    Balloon(Arc<Balloon>),
}

impl Device {
    fn virtio(&self) -> Arc<dyn VirtioDevice> {
        match self {
            Device::Block(device) => device.clone(),
            Device::Share(device) => device.clone(),
            Device::Net(device) => device.clone(),
            Device::Vsock(device) => device.clone(),
            Device::Rng(device) => device.clone(),
            Device::Balloon(device) => device.clone(),
        }
    }
}

impl Backend {
    fn kind(&self) -> &'static str {
        match self {
            Backend::Disk(_) => "disk",
            Backend::Share(_) => "share",
            Backend::Interface(_) => "net",
            Backend::Vsock(..) => "vsock",
            Backend::Rng => "rng",
            Backend::Balloon => "balloon",
        }
    }

    fn make(&self) -> Device {
        match self {
            Backend::Disk(disk) => {
                Device::Block(Block::new(disk.device.clone(), disk.options.clone()))
            }
            Backend::Share(share) => Device::Share(share.clone()),
            Backend::Interface(interface) => {
                Device::Net(Net::new(interface.network(), interface.options.clone()))
            }
            Backend::Vsock(cid, host) => Device::Vsock(Vsock::new(*cid, host.clone())),
            Backend::Rng => Device::Rng(Rng::new()),
            Backend::Balloon => Device::Balloon(Balloon::new()),
        }
    }

    /// Brings an image to a state in which another program can open it.
    fn close(&self) -> Result<(), Failure> {
        let Backend::Disk(disk) = self else { return Ok(()) };
        let failed = |error| Failure::failed(format!("--disk {}: {error}", disk.text));
        disk.device.close().map_err(failed)
    }
}

impl Backends {
    /// Opens all that the command line names, for a machine of so many vCPUs.
    pub fn open(arguments: &DeviceArguments, vcpus: u32) -> Result<Self, Failure> {
        let mut backends = Vec::new();
        for text in &arguments.disk {
            backends.push(Backend::Disk(Disk::open(text, vcpus)?));
        }
        for shared in &arguments.share {
            backends.push(Backend::Share(shared.open(vcpus)?));
        }
        for text in &arguments.net {
            backends.extend(Interface::open(text, vcpus)?.map(Backend::Interface));
        }
        if let Some(sockets) = &arguments.vsock {
            backends.push(Backend::Vsock(sockets.cid, sockets.open()?));
        }
        if arguments.rng {
            backends.push(Backend::Rng);
        }
        if arguments.balloon {
            backends.push(Backend::Balloon);
        }
        let mut entries = Vec::new();
        for backend in backends {
            let name = free_name(&entries, backend.kind());
            entries.push(Entry { name, backend, plugged: None });
        }
        Ok(Backends {
            entries: Mutex::new(entries),
            terminal: arguments.console,
            ports: super::ports::open(&arguments.port)?,
            console: Mutex::default(),
            vcpus,
            alarm: OnceLock::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts devices on a new machine. Returns where the terminal's input goes.
    pub fn attach(&self, machine: &Machine) -> Result<Arc<dyn Input>, MachineError> {
        for entry in self.lock().iter_mut() {
            let device = entry.backend.make();
            self.watch_space(&entry.name, &device);
            let slot = machine.add_device(device.virtio())?;
            entry.plugged = Some((slot, device));
        }
        let on_virtio = self.terminal == ConsoleKind::Virtio;
        if !on_virtio && self.ports.is_empty() {
            return Ok(machine.serial());
        }
        let output = on_virtio.then(|| Box::new(std::io::stdout()) as Box<dyn Write + Send>);
        let console = Console::new(output, self.ports.clone());
        *self.console.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&console);
        self.tell_window_size();
        machine.add_device(console.clone())?;
        Ok(if on_virtio { console } else { machine.serial() })
    }

    /// The terminal's window may have another size.
    pub fn tell_window_size(&self) {
        let console = self.console.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        if let Some(console) = console
            && let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdout())
        {
            console.set_size(size.ws_col, size.ws_row);
        }
    }

    /// Says who is told when a disk waits for space on the host.
    pub fn set_alarm(&self, alarm: impl Fn(&str, Shortage) + Send + Sync + 'static) {
        // There is one control socket, and it does this once.
        let _ = self.alarm.set(Arc::new(alarm));
    }

    fn watch_space(&self, name: &str, device: &Device) {
        if let (Device::Block(block), Some(alarm)) = (device, self.alarm.get()) {
            let (alarm, name) = (alarm.clone(), name.to_owned());
            block.on_full(move |shortage| alarm(&name, shortage));
        }
    }

    /// Whether a disk may wait for space.
    pub fn may_wait_for_space(&self) -> bool {
        let waits = |entry: &Entry| matches!(&entry.backend, Backend::Disk(disk) if disk.options.when_full == WhenFull::Wait);
        self.lock().iter().any(waits)
    }

    /// There may be space again.
    pub fn retry(&self) {
        for entry in self.lock().iter() {
            if let Some((_, Device::Block(block))) = &entry.plugged {
                block.retry();
            }
        }
    }

    /// Closes all images.
    pub fn close(&self) -> Result<(), Failure> {
        self.lock().iter().try_for_each(|entry| entry.backend.close())
    }

    /// Name, kind and slot of each device, and what there is to tell of its kind.
    pub fn list(&self) -> Value {
        let describe = |entry: &Entry| {
            let slot = entry.plugged.as_ref().map(|(slot, _)| slot);
            let mut value =
                json!({ "name": entry.name, "kind": entry.backend.kind(), "slot": slot });
            match &entry.backend {
                Backend::Disk(disk) => {
                    value["size"] = json!(disk.device.size());
                    value["snapshots"] = json!(disk.device.snapshots());
                }
                Backend::Interface(interface) => {
                    if let (Value::Object(to), Value::Object(from)) =
                        (&mut value, interface.statistics())
                    {
                        to.extend(from);
                    }
                }
                Backend::Vsock(cid, _) => value["cid"] = json!(cid),
                Backend::Share(_) | Backend::Rng | Backend::Balloon => {}
            }
            value
        };
        self.lock().iter().map(describe).collect()
    }

    /// Opens a disk and plugs it into a running machine. Returns its name.
    pub fn add_disk(&self, text: &str, machine: &Machine) -> Result<String, String> {
        let disk = Disk::open(text, self.vcpus).map_err(|failure| failure.message)?;
        self.plug(Backend::Disk(disk), machine)
    }

    /// The same for a network.
    pub fn add_interface(&self, text: &str, machine: &Machine) -> Result<String, String> {
        let interface = Interface::open(text, self.vcpus).map_err(|failure| failure.message)?;
        let interface = interface.ok_or("that is no network")?;
        self.plug(Backend::Interface(interface), machine)
    }

    fn plug(&self, backend: Backend, machine: &Machine) -> Result<String, String> {
        let mut entries = self.lock();
        let name = free_name(&entries, backend.kind());
        let device = backend.make();
        self.watch_space(&name, &device);
        let slot = machine.plug_device(device.virtio()).map_err(|error| error.to_string())?;
        entries.push(Entry { name: name.clone(), backend, plugged: Some((slot, device)) });
        Ok(name)
    }

    /// Asks the guest to let go of a device, waits until it has, and closes it.
    pub fn remove(&self, name: &str, machine: &Machine) -> Result<(), String> {
        let mut entries = self.lock();
        let index = entries.iter().position(|entry| entry.name == name);
        let index = index.ok_or_else(|| format!("there is no device '{name}'"))?;
        if let Some((slot, _)) = entries[index].plugged
            && !machine.unplug_device(slot, PATIENCE)
        {
            return Err(format!("the guest does not let go of '{name}'; it may do so later"));
        }
        let entry = entries.remove(index);
        entry.backend.close().map_err(|failure| failure.message)
    }

    /// Changes the size of a disk that the guest uses.
    pub fn resize(&self, name: &str, size: u64) -> Result<(), String> {
        let entries = self.lock();
        let entry = find(&entries, name)?;
        let Backend::Disk(disk) = &entry.backend else {
            return Err(format!("'{name}' is not a disk"));
        };
        let size = size.next_multiple_of(u64::from(disk.device.block_size()));
        let image = disk.device.image();
        image.resize(size, Preallocation::default()).map_err(|error| error.to_string())?;
        if let Some((_, Device::Block(block))) = &entry.plugged {
            block.size_changed();
        }
        Ok(())
    }

    /// Plugs an interface's cable in or pulls it.
    pub fn set_link(&self, name: &str, up: bool) -> Result<(), String> {
        match &find(&self.lock(), name)?.plugged {
            Some((_, Device::Net(net))) => net.set_link(up),
            _ => return Err(format!("'{name}' is not an interface")),
        }
        Ok(())
    }

    /// Forwards one more port of the host to the guest. Returns its address.
    pub fn add_forward(&self, name: &str, forward: &str) -> Result<SocketAddr, String> {
        interface(&self.lock(), name)?.add_forward(forward)
    }

    pub fn remove_forward(&self, name: &str, forward: &str) -> Result<(), String> {
        interface(&self.lock(), name)?.remove_forward(forward)
    }

    fn balloon(&self) -> Option<Arc<Balloon>> {
        self.lock().iter().find_map(|entry| match &entry.plugged {
            Some((_, Device::Balloon(balloon))) => Some(balloon.clone()),
            _ => None,
        })
    }

    /// Asks the guest to give up so much memory in all.
    pub fn set_balloon(&self, bytes: u64) -> Result<(), String> {
        let balloon = self.balloon().ok_or("the machine has no balloon; give it --balloon")?;
        balloon.set_target(bytes);
        Ok(())
    }

    /// The balloon's size, and what the guest says of its memory; null without a balloon.
    pub fn balloon_statistics(&self) -> Value {
        let Some(balloon) = self.balloon() else { return Value::Null };
        let (target, actual) = balloon.size();
        json!({ "target": target, "actual": actual, "guest": balloon.statistics() })
    }
}

fn find<'a>(entries: &'a [Entry], name: &str) -> Result<&'a Entry, String> {
    let found = entries.iter().find(|entry| entry.name == name);
    found.ok_or_else(|| format!("there is no device '{name}'"))
}

fn interface<'a>(entries: &'a [Entry], name: &str) -> Result<&'a Interface, String> {
    match &find(entries, name)?.backend {
        Backend::Interface(interface) => Ok(interface),
        _ => Err(format!("'{name}' is not an interface")),
    }
}

/// `disk0`, `disk1`: the first that is not taken.
fn free_name(entries: &[Entry], kind: &str) -> String {
    let names = (0..).map(|number| format!("{kind}{number}"));
    let mut free = names.filter(|name| entries.iter().all(|entry| entry.name != *name));
    free.next().unwrap_or_default()
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
        Ok(Disk { text: text.to_owned(), device, options })
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
            "full" => {
                options.when_full = match value {
                    "report" => WhenFull::Report,
                    "pause" => WhenFull::Wait,
                    _ => return Err("full= is report or pause".to_owned()),
                };
            }
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
