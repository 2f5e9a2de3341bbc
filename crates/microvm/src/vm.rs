//! A VM from its making to its end: a disk, or an image, that boots by itself.
//!
//! The kernel is the one on the disk or in the image, looked for again at every start, so that one
//! which the guest has installed is the next to boot. What the guest writes goes to an overlay over
//! the disk, or to a file system over the image. Its console is the serial port. One thread waits for the machine's end, and makes the
//! machine anew when the guest restarts. The agent comes along in the initial RAM disk, and calls
//! when the system has come up.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use guise_agent::client::Agent;
use guise_agent::protocol::{Mount, OwnRoot, Root, VSOCK_PORT, Writes};
use guise_devices::uart::Uart;
use guise_disk::device::{BlockDevice, DeviceOptions};
use guise_disk::format::{BackingReference, FormatKind};
use guise_disk::graph::{BackingPolicy, Image, Node, OpenOptions};
use guise_disk::ops::{CreateRequest, create};
use guise_engine::{CpuModel, Engine};
use guise_machine::{BoardKind, BootSource, Ending, Machine, MachineConfig, MachineError};
use guise_net::frame::{Counters, Network};
use guise_net::packet::Mac;
use guise_net::switch::SwitchError;
use guise_net::switch::client::SwitchPort;
use guise_virtio::vsock::{FIRST_CID, Host, Vsock};

use crate::bootable::{self, Bootable, BootableError};
use crate::devices::{self, Plug, SharedFolder, UserMode};
use crate::link::{Link, LinkError, Secret};
use crate::machine::{MicroVmError, now, wiring};
use crate::seed::Seed;
use crate::standstill::{Standstill, Teller};

const DISK: &str = "disk";
const IMAGE_DISK: &str = "root";
const WRITES_DISK: &str = "writes";
const SEED: &str = "seed";
/// How long what is typed waits for room at a time.
const ROOM: Duration = Duration::from_millis(200);
/// How long the agent may take to answer what it does at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What a VM is made of.
#[derive(Clone, Debug)]
pub struct VmConfig {
    pub system: System,
    /// What it is told, and the file with the disk on which it finds that.
    pub told: Seed,
    pub seed: PathBuf,
    /// Where the kernel that boots is kept.
    pub folder: PathBuf,
    /// In bytes.
    pub memory: u64,
    pub vcpus: u32,
    pub model: CpuModel,
    pub network: Option<UserMode>,
    pub plug: Option<Plug>,
    pub shares: Vec<SharedFolder>,
    /// What of them is mounted, where the guest has not done so when it is up.
    pub mounts: Vec<Mount>,
}

/// What boots.
#[derive(Clone, Debug)]
pub enum System {
    Disk(Overlay),
    Image(Layers),
}

/// An image's file system that is not written (EROFS), and the file with the one that takes what
/// its guest writes, which [`crate::ext4::create`] makes.
#[derive(Clone, Debug)]
pub struct Layers {
    pub image: PathBuf,
    pub writes: PathBuf,
    /// Nothing of it needs to survive a power failure.
    pub fleeting: bool,
}

/// A disk image that is not written, and the file that takes what its guest writes.
#[derive(Clone, Debug)]
pub struct Overlay {
    pub image: PathBuf,
    pub writes: PathBuf,
    /// Nothing of it needs to survive a power failure.
    pub fleeting: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error("{}: {source}", path.display())]
    NotBootable { path: PathBuf, source: BootableError },
    #[error("the image does not boot by itself: {0}")]
    NoSystem(BootableError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Disk(#[from] guise_disk::Error),
    #[error(transparent)]
    Switch(#[from] SwitchError),
    #[error(transparent)]
    Devices(#[from] MicroVmError),
    #[error("make a thread for the machine: {0}")]
    Thread(std::io::Error),
    #[error("write what the guest is told: {0}")]
    Told(std::io::Error),
    #[error(
        "a disk of {size} bytes cannot hold the image, which has {whole}: give --disk-size more, \
         or leave it away"
    )]
    TooSmall { size: u64, whole: u64 },
    #[error(
        "{} has a backing file ({backing}), which its worker does not see: make one image of both \
         (guise disk convert)", path.display()
    )]
    NotAlone { path: PathBuf, backing: String },
    #[error("the machine is off")]
    Off,
}

impl Overlay {
    /// Makes the file that is written, unless it is there; a disk of more than the image's size
    /// is asked for with `size`. Formats are found out here, once, while nobody has written.
    pub fn make(&self, size: Option<u64>) -> Result<(), VmError> {
        if self.writes.is_file() {
            return Ok(());
        }
        let alone = OpenOptions { backing: BackingPolicy::Ignore, ..OpenOptions::read(None) };
        let image = Image::open(&self.image, &alone)?;
        if let Some(backing) = image.format().backing() {
            return Err(VmError::NotAlone { path: self.image.clone(), backing: backing.name });
        }
        let (kind, whole) = (image.kind(), image.size());
        if let Some(size) = size.filter(|size| *size < whole) {
            return Err(VmError::TooSmall { size, whole });
        }
        drop(image);
        // Under its name it is whole.
        let partial = self.writes.with_extension("partial");
        let _ = std::fs::remove_file(&partial);
        let backing = BackingReference {
            name: self.image.to_string_lossy().into_owned(),
            format: Some(kind.name().to_owned()),
        };
        let open = OpenOptions { backing: self.policy(), ..OpenOptions::read(Some(kind)) };
        let request = CreateRequest {
            backing: Some(backing),
            open,
            ..CreateRequest::new(&partial, FormatKind::Qcow2, size)
        };
        create(&request)?;
        std::fs::rename(&partial, &self.writes).map_err(|error| {
            VmError::Machine(MachineError::Host { doing: "keep the disk", source: error })
        })
    }

    fn policy(&self) -> BackingPolicy {
        BackingPolicy::Within(self.image.parent().map(Path::to_owned).into_iter().collect())
    }

    fn open(&self) -> Result<BlockDevice, VmError> {
        let options = DeviceOptions {
            backing: self.policy(),
            unsafe_cache: self.fleeting,
            ..DeviceOptions::new(&self.writes, FormatKind::Qcow2)
        };
        Ok(BlockDevice::open(&options)?)
    }
}

impl Layers {
    fn open(&self) -> Result<(BlockDevice, BlockDevice), VmError> {
        let image =
            DeviceOptions { readonly: true, ..DeviceOptions::new(&self.image, FormatKind::Raw) };
        let writes = DeviceOptions {
            unsafe_cache: self.fleeting,
            ..DeviceOptions::new(&self.writes, FormatKind::Raw)
        };
        Ok((BlockDevice::open(&image)?, BlockDevice::open(&writes)?))
    }
}

/// A system's disks.
enum Disks {
    Whole(BlockDevice),
    Layered { image: BlockDevice, writes: BlockDevice },
}

impl Disks {
    fn open(system: &System) -> Result<Disks, VmError> {
        Ok(match system {
            System::Disk(overlay) => Disks::Whole(overlay.open()?),
            System::Image(layers) => {
                let (image, writes) = layers.open()?;
                Disks::Layered { image, writes }
            }
        })
    }

    /// In the order in which the guest gets them, with what it finds them by.
    fn all(&self) -> Vec<(&BlockDevice, &'static str)> {
        match self {
            Disks::Whole(disk) => vec![(disk, DISK)],
            Disks::Layered { image, writes } => vec![(image, IMAGE_DISK), (writes, WRITES_DISK)],
        }
    }

    fn bootable(&self, config: &VmConfig, secret: &Secret) -> Result<Bootable, VmError> {
        let folder = &config.folder;
        match self {
            Disks::Whole(disk) => {
                let disk: Arc<dyn Node> = disk.node();
                bootable::extract(&disk, folder, secret.bytes()).map_err(|source| {
                    let path = match &config.system {
                        System::Disk(overlay) => overlay.image.clone(),
                        System::Image(layers) => layers.image.clone(),
                    };
                    VmError::NotBootable { path, source }
                })
            }
            Disks::Layered { image, writes } => {
                let (image, writes): (Arc<dyn Node>, Arc<dyn Node>) = (image.node(), writes.node());
                let root = Root {
                    image: IMAGE_DISK.to_owned(),
                    writes: Writes::Disk(WRITES_DISK.to_owned()),
                    read_only: false,
                };
                let own = OwnRoot { root, host_name: config.told.host_name.clone() };
                bootable::image::extract(&image, &writes, &own, folder, secret.bytes())
                    .map_err(VmError::NoSystem)
            }
        }
    }
}

/// What outlives the machine when its guest restarts.
struct Parts {
    engine: Box<dyn Engine>,
    config: VmConfig,
    console: Mutex<Box<dyn Write + Send>>,
    disks: Disks,
    seed: BlockDevice,
    port: Option<Arc<Mutex<SwitchPort>>>,
    sockets: Arc<Host>,
    link: Arc<Link>,
    standstill: Arc<Standstill>,
}

/// A running VM. Dropping it switches it off, hard.
pub struct Vm {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    parts: Arc<Parts>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    machine: Option<Arc<Machine>>,
    /// It is not to start again.
    leaving: bool,
    end: Option<Result<(), String>>,
}

impl Vm {
    /// Boots. `console` gets what the guest writes to its serial port.
    pub fn start(
        engine: Box<dyn Engine>,
        config: VmConfig,
        console: Box<dyn Write + Send>,
    ) -> Result<Vm, VmError> {
        let disks = Disks::open(&config.system)?;
        let port = config.plug.as_ref().map(Plug::join).transpose()?;
        let welcome = port.as_ref().map(|port: &Arc<Mutex<SwitchPort>>| {
            port.lock().unwrap_or_else(PoisonError::into_inner).welcome()
        });
        let wiring = wiring(config.network.as_ref(), config.plug.as_ref().zip(welcome));
        let interfaces: Vec<Mac> = wiring.interfaces.iter().map(|it| it.mac).collect();
        config.told.write(&config.seed, &interfaces).map_err(VmError::Told)?;
        let seed =
            DeviceOptions { readonly: true, ..DeviceOptions::new(&config.seed, FormatKind::Raw) };
        let seed = BlockDevice::open(&seed)?;
        let console = Mutex::new(console);
        let sockets = Host::private().map_err(MicroVmError::from)?;
        let listener = sockets.listen(VSOCK_PORT).map_err(MicroVmError::from)?;
        // A disk's system has been told how, or has been set up.
        let wiring = matches!(config.system, System::Image(_)).then_some(wiring);
        let link = Arc::new(Link::new(listener, config.mounts.clone(), wiring));
        let standstill = Arc::new(Standstill::default());
        let late = Arc::downgrade(&link);
        standstill.on_waking(Arc::new(move || {
            if let Some(link) = late.upgrade() {
                tell_the_time(&link);
            }
        }));
        let parts = Parts { engine, config, console, disks, seed, port, sockets, link, standstill };
        let parts = Arc::new(parts);
        let machine = parts.machine()?;
        parts.standstill.start();
        let state = State { machine: Some(machine.clone()), ..State::default() };
        let shared = Arc::new(Shared { parts, state: Mutex::new(state), changed: Condvar::new() });
        let inside = shared.clone();
        let thread = std::thread::Builder::new()
            .name("machine".to_owned())
            .spawn(move || inside.live(machine))
            .map_err(VmError::Thread)?;
        Ok(Vm { shared, thread: Some(thread) })
    }

    /// Somebody who types at the console.
    pub fn keyboard(&self) -> Keyboard {
        Keyboard(self.shared.clone())
    }

    pub fn pause(&self) -> Result<(), VmError> {
        let state = self.shared.lock();
        state.machine.as_ref().ok_or(VmError::Off)?;
        Ok(self.shared.parts.standstill.pause()?)
    }

    /// Lets it go on, and tells it how late it is.
    pub fn resume(&self) {
        let parts = &self.shared.parts;
        if parts.standstill.resume() {
            tell_the_time(&parts.link);
        }
    }

    /// Whether it stands still because the host has no space for what it writes.
    pub fn is_without_space(&self) -> bool {
        self.shared.parts.standstill.is_without_space()
    }

    /// Who is told when that begins, and when it is over.
    pub fn tell_of_space(&self, teller: Teller) {
        self.shared.parts.standstill.tell(teller);
    }

    /// The agent, for programs beside the system's own: it is waited for while the guest boots.
    pub fn agent(&self) -> Result<Agent, LinkError> {
        self.shared.parts.link.agent()
    }

    /// The agent, when the system is up.
    pub fn up(&self) -> Result<Agent, LinkError> {
        self.shared.parts.link.up()
    }

    /// The agent, if it is there, and the guest does not stand still.
    pub fn present(&self) -> Option<Agent> {
        let parts = &self.shared.parts;
        if parts.standstill.is_still() { None } else { parts.link.present() }
    }

    /// Asks the guest to switch itself off, in all ways there are.
    pub fn ask_to_end(&self) {
        self.press_power_button();
        if let Some(agent) = self.present()
            && let Err(error) = agent.shut_down(ANSWER_LIMIT)
        {
            tracing::debug!(%error, "the guest has only its power button");
        }
    }

    /// Presses the power button; whether the guest heeds it is its own affair.
    pub fn press_power_button(&self) {
        let state = self.shared.lock();
        if let Some(machine) = &state.machine {
            machine.press_power_button();
        }
    }

    /// Switches the machine off, if it is on, and lets go of what others of this host could
    /// want now: ports, names.
    pub fn switch_off(&self) -> Result<(), VmError> {
        let mut state = self.shared.lock();
        state.leaving = true;
        if let Some(machine) = &state.machine {
            machine.stopper().leave();
        }
        drop(state);
        // The thread has heard it.
        let _ = self.wait(None);
        for network in self.shared.parts.networks() {
            network.lock().unwrap_or_else(PoisonError::into_inner).close();
        }
        for (disk, _) in self.shared.parts.disks.all() {
            disk.close()?;
        }
        Ok(())
    }

    /// Waits for its end, and says what was wrong with that; nothing when it has not come
    /// within the limit.
    pub fn wait(&self, limit: Option<Duration>) -> Option<Result<(), String>> {
        let running = |state: &mut State| state.end.is_none();
        let (state, changed) = (self.shared.lock(), &self.shared.changed);
        match limit {
            Some(limit) => {
                let waited = changed.wait_timeout_while(state, limit, running);
                waited.unwrap_or_else(PoisonError::into_inner).0.end.clone()
            }
            None => {
                let waited = changed.wait_while(state, running);
                waited.unwrap_or_else(PoisonError::into_inner).end.clone()
            }
        }
    }

    /// What went through its first interface, where it has one.
    pub fn traffic(&self) -> Option<Counters> {
        let network = self.shared.parts.networks().into_iter().next()?;
        Some(network.lock().unwrap_or_else(PoisonError::into_inner).counters())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // What could not be closed in good order is told by who asked for it.
        let _ = self.switch_off();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of a machine has panicked");
        }
    }
}

fn tell_the_time(link: &Link) {
    if let Some(agent) = link.present()
        && let Err(error) = agent.set_clock(now(), ANSWER_LIMIT)
    {
        tracing::warn!(%error, "a guest that goes on does not know how late it is");
    }
}

impl Parts {
    fn networks(&self) -> Vec<Arc<Mutex<dyn Network>>> {
        let mut networks: Vec<Arc<Mutex<dyn Network>>> = Vec::new();
        if let Some(user) = &self.config.network {
            networks.push(user.network.clone());
        }
        if let Some(port) = &self.port {
            networks.push(port.clone());
        }
        networks
    }

    /// A machine that has its kernel loaded.
    fn machine(self: &Arc<Self>) -> Result<Arc<Machine>, VmError> {
        let config = &self.config;
        let secret = Secret::new();
        let bootable = self.disks.bootable(config, &secret)?;
        let options = MachineConfig {
            memory: config.memory,
            addable_memory: 0,
            vcpus: config.vcpus,
            board: BoardKind::Pc,
            model: config.model,
            iommu: false,
            test_devices: false,
        };
        let machine = Machine::new(&*self.engine, &options, Box::new(Console(self.clone())))?;
        let mut blocks = Vec::new();
        for (disk, serial) in self.disks.all() {
            blocks.push(devices::add_disk(&machine, disk, serial)?);
        }
        devices::add_disk(&machine, &self.seed, SEED)?;
        if let Some(user) = &config.network {
            user.add_to(&machine)?;
        }
        if let Some(port) = &self.port {
            let welcome = port.lock().unwrap_or_else(PoisonError::into_inner).welcome();
            devices::add_interface(&machine, port.clone(), welcome.mac, welcome.mtu)?;
        }
        devices::add_shares(&machine, &config.shares)?;
        machine.add_device(Vsock::new(FIRST_CID, self.sockets.clone()))?;
        machine.boot(&BootSource {
            kernel: bootable.kernel,
            initrd: bootable.initrd,
            command_line: bootable.command_line,
        })?;
        self.link.begin(secret, bootable.no_agent).map_err(VmError::Thread)?;
        let machine = Arc::new(machine);
        self.standstill.attend(&machine, &blocks);
        Ok(machine)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One machine after the other, until one does not restart.
    fn live(&self, mut machine: Arc<Machine>) {
        let end = loop {
            let ending = machine.wait(None);
            self.parts.standstill.leave();
            if let Err(error) = machine.pause() {
                tracing::error!(%error, "a machine that has ended cannot be stopped");
            }
            self.lock().machine = None;
            drop(machine);
            let restarts = matches!(ending, Some(Ending::Reset));
            let what = if restarts { "the guest has restarted" } else { "the guest has ended" };
            self.parts.link.end(what);
            match ending {
                Some(Ending::PowerOff | Ending::Left) | None => break Ok(()),
                Some(Ending::Reset) => {}
                Some(Ending::Panicked) => break Err("the guest's kernel panicked".to_owned()),
                Some(Ending::TripleFault { .. }) => {
                    break Err("the guest's kernel crashed".to_owned());
                }
                Some(Ending::Engine(error)) => break Err(error.to_string()),
                Some(_) => break Err("the machine was stopped".to_owned()),
            }
            if self.lock().leaving {
                break Ok(());
            }
            machine = match self.parts.machine() {
                Ok(machine) => machine,
                Err(error) => break Err(error.to_string()),
            };
            let mut state = self.lock();
            if state.leaving {
                break Ok(());
            }
            self.parts.standstill.start();
            state.machine = Some(machine.clone());
        };
        // Who reads it hears that nothing more will come.
        *self.parts.console.lock().unwrap_or_else(PoisonError::into_inner) =
            Box::new(std::io::sink());
        self.lock().end = Some(end);
        self.changed.notify_all();
    }
}

/// The serial port's output, which is the same for each machine.
struct Console(Arc<Parts>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.console.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.console.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}

/// Types at the serial port of whichever machine there is.
pub struct Keyboard(Arc<Shared>);

impl Keyboard {
    fn port(&self) -> std::io::Result<Option<Arc<Uart>>> {
        let state = self.0.lock();
        if state.end.is_some() {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        Ok(state.machine.as_ref().map(|machine| machine.serial()))
    }
}

impl Write for Keyboard {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        loop {
            match self.port()? {
                Some(port) => {
                    let taken = port.input(bytes);
                    if taken > 0 || bytes.is_empty() {
                        return Ok(taken);
                    }
                    port.wait_for_room(ROOM);
                }
                // It starts again at the moment.
                None => std::thread::sleep(ROOM),
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
