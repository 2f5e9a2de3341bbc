//! A microVM from its making to its end.
//!
//! The kernel boots, its first process, the agent, calls the host through a virtual
//! socket, is told what the guest is to be ([`SetUp`]), and from then on starts what it
//! is asked to. Nothing of an instance is in the initial RAM disk or, but for the engine,
//! in the kernel's command line.
//!
//! One thread waits for the machine's end. When that comes, whatever waits for the agent
//! fails with the reason.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use guise_agent::client::{Agent, AgentError};
use guise_agent::protocol::{
    Clock, Interface, Mount, Root, SetUp, Statistics, VSOCK_PORT, Wiring, Writes,
};
use guise_disk::device::{BlockDevice, DeviceOptions};
use guise_disk::format::FormatKind;
use guise_engine::{CpuModel, Engine};
use guise_machine::{BoardKind, BootSource, Ending, Machine, MachineConfig, MachineError, Stopper};
use guise_net::frame::{Counters, Network};
use guise_net::switch::SwitchError;
use guise_net::switch::client::Welcome;
use guise_net::user::{Config as NetworkConfig, NetError};
use guise_virtio::block::Block;
use guise_virtio::vsock::{FIRST_CID, Host, HostError, Vsock};

use crate::devices::{self, Plug, SharedFolder, UserMode};
use crate::kernel::PreparedKernel;
use crate::standstill::{Standstill, Teller};

/// What the kernel is told. Each word saves time, or says where its output goes:
/// - nobody reads its messages unless it fails (`quiet`), and then it does not wait;
/// - self-tests of its cryptography are a fifth of its start;
/// - devices that are not there need not be looked for;
/// - grace periods end at once, so that the root file system is there at once;
/// - a seventh of the start is files of tracefs, one more self-test, certificates for
///   modules that the host has verified, and a clock that the host sets.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 cryptomgr.notests tsc=reliable \
    no_timer_check 8250.nr_uarts=1 rcupdate.rcu_expedited=1 random.trust_cpu=on \
    initcall_blacklist=trace_eval_init,tracer_init_tracefs,init_kprobe_trace,\
    init_trace_printk_function_export,crypto_kdf108_init,load_system_certificate_list,cmos_init";
/// What keeps user programs from what the kernel speculates on is for real processors: the
/// software engine runs both in one process of the host, and with the same code.
const SOFTWARE_ENGINE: &str = " mitigations=off";

/// Serial numbers by which the guest finds its disks.
const ROOT_DISK: &str = "root";
const WRITES_DISK: &str = "writes";

/// How long a guest may take to call. It takes a second; a host may be very busy.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How long it may take to answer what it does at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// How often it is looked whether the machine has ended while its guest is waited for.
const LOOK: Duration = Duration::from_millis(100);
/// Of the kernel's messages so much is kept for errors.
const KEPT_MESSAGES: usize = 4096;

/// What a microVM is made of.
#[derive(Clone, Debug)]
pub struct MicroVmConfig {
    pub kernel: PreparedKernel,
    /// The image, an EROFS file.
    pub root: PathBuf,
    pub writes: WritableLayer,
    pub read_only: bool,
    /// In bytes.
    pub memory: u64,
    pub vcpus: u32,
    pub model: CpuModel,
    pub host_name: String,
    /// How many processes there may be; none is no limit.
    pub processes: Option<u64>,
    /// None is a guest with nothing but a loopback.
    pub network: Option<UserMode>,
    /// A port of a switch besides, where others of this host are.
    pub plug: Option<Plug>,
    /// Folders of the host that [`Mount`]s can name.
    pub shares: Vec<SharedFolder>,
    pub mounts: Vec<Mount>,
    /// More lines for /etc/hosts.
    pub hosts: Vec<(IpAddr, String)>,
}

/// Where changes of the root file system go.
#[derive(Clone, Debug)]
pub enum WritableLayer {
    /// Into the guest's memory, up to so many bytes: gone at the end.
    Memory(u64),
    /// Into a file with an ext4 file system, which [`crate::ext4::create`] makes. One that is
    /// not kept need not survive the host.
    Disk { path: PathBuf, kept: bool },
}

#[derive(Debug, thiserror::Error)]
pub enum MicroVmError {
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Disk(#[from] guise_disk::Error),
    #[error(transparent)]
    Network(#[from] NetError),
    #[error(transparent)]
    Switch(#[from] SwitchError),
    #[error(transparent)]
    Sockets(#[from] HostError),
    #[error("{}: cannot be shared with a guest: {source}", path.display())]
    Share { path: PathBuf, source: std::io::Error },
    #[error("the agent's connection: {0}")]
    Connection(std::io::Error),
    #[error("the guest did not come up within {limit:?}; its kernel's last words: {messages}")]
    NotUp { limit: Duration, messages: String },
    #[error("the machine ended while it started: {reason}; its kernel's last words: {messages}")]
    Died { reason: String, messages: String },
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// A running guest, ready for sessions. Dropping it switches the machine off, hard.
pub struct MicroVm {
    agent: Agent,
    stopper: Stopper,
    end: Arc<End>,
    watcher: Option<JoinHandle<()>>,
    /// What its interfaces are plugged into, in their order.
    networks: Vec<Arc<Mutex<dyn Network>>>,
    disks: Vec<BlockDevice>,
    standstill: Arc<Standstill>,
}

/// How the machine ended, for everybody who waits for it.
#[derive(Default)]
struct End {
    state: Mutex<EndState>,
    changed: Condvar,
}

#[derive(Default)]
struct EndState {
    reason: Option<String>,
    /// Whoever waits for it is told.
    agent: Option<Agent>,
}

impl End {
    fn lock(&self) -> MutexGuard<'_, EndState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, reason: String) {
        let mut state = self.lock();
        if let Some(agent) = state.agent.take() {
            agent.disconnect(&reason);
        }
        state.reason = Some(reason);
        drop(state);
        self.changed.notify_all();
    }

    fn set_agent(&self, agent: &Agent) {
        let mut state = self.lock();
        match &state.reason {
            Some(reason) => agent.disconnect(reason),
            None => state.agent = Some(agent.clone()),
        }
    }
}

impl MicroVm {
    /// Boots, and returns when sessions can be opened. `console` gets what the kernel says.
    pub fn start(
        engine: &dyn Engine,
        config: &MicroVmConfig,
        console: Box<dyn Write + Send>,
    ) -> Result<Self, MicroVmError> {
        let messages = Arc::new(Mutex::new(Vec::new()));
        let output = Box::new(Kept { kept: messages.clone(), passed_on: console });
        let board = BoardKind::Microvm;
        let (memory, vcpus, model) = (config.memory, config.vcpus, config.model);
        let machine = MachineConfig {
            memory,
            addable_memory: 0,
            vcpus,
            board,
            model,
            iommu: false,
            test_devices: false,
        };
        let machine = Arc::new(Machine::new(engine, &machine, output)?);

        let (disks, blocks): (Vec<_>, Vec<_>) = add_disks(&machine, config)?.into_iter().unzip();
        let mut networks = Vec::new();
        if let Some(network) = &config.network {
            networks.push(network.add_to(&machine)?);
        }
        let mut plugged = None;
        if let Some(plug) = &config.plug {
            let port = plug.join()?;
            let welcome = port.lock().unwrap_or_else(PoisonError::into_inner).welcome();
            devices::add_interface(&machine, port.clone(), welcome.mac, welcome.mtu)?;
            networks.push(port);
            plugged = Some(welcome);
        }
        devices::add_shares(&machine, &config.shares)?;
        let sockets = Host::private()?;
        let listener = sockets.listen(VSOCK_PORT)?;
        machine.add_device(Vsock::new(FIRST_CID, sockets))?;

        machine.boot(&boot_source(engine, &config.kernel))?;
        let started = Instant::now();
        let standstill = Arc::new(Standstill::default());
        standstill.attend(&machine, &blocks);
        standstill.start();
        let end = Arc::new(End::default());
        let mut booting = Booting { stopper: machine.stopper(), watcher: None };
        booting.watcher = Some(watch(&machine, &standstill, &end)?);
        let said = || {
            let kept = messages.lock().unwrap_or_else(PoisonError::into_inner);
            String::from_utf8_lossy(&kept).trim().to_owned()
        };
        let stream = loop {
            if let Some(stream) = listener.accept(LOOK) {
                break stream;
            }
            if let Some(reason) = end.lock().reason.clone() {
                return Err(MicroVmError::Died { reason, messages: said() });
            }
            if started.elapsed() > BOOT_LIMIT {
                return Err(MicroVmError::NotUp { limit: BOOT_LIMIT, messages: said() });
            }
        };
        let reader = stream.try_clone().map_err(MicroVmError::Connection)?;
        let agent =
            Agent::new(Box::new(reader), Box::new(stream)).map_err(MicroVmError::Connection)?;
        end.set_agent(&agent);
        let hello = agent.hello(ANSWER_LIMIT)?;
        tracing::debug!(kernel = hello.kernel, uptime = hello.uptime_ms, "the guest is up");
        agent.set_up(set_up(config, plugged), ANSWER_LIMIT)?;
        let watcher = booting.watcher.take();
        let late = agent.clone();
        standstill.on_waking(Arc::new(move || {
            if let Err(error) = late.set_clock(now(), ANSWER_LIMIT) {
                tracing::warn!(%error, "a guest that goes on does not know how late it is");
            }
        }));
        let stopper = machine.stopper();
        Ok(MicroVm { agent, stopper, end, watcher, networks, disks, standstill })
    }

    /// For sessions.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Stops the guest where it is.
    pub fn pause(&self) -> Result<(), MicroVmError> {
        Ok(self.standstill.pause()?)
    }

    /// Lets it go on, and tells it how late it is.
    pub fn resume(&self) -> Result<(), MicroVmError> {
        if self.standstill.resume() {
            self.agent.set_clock(now(), ANSWER_LIMIT)?;
        }
        Ok(())
    }

    /// Whether it stands still because the host has no space for what it writes.
    pub fn is_without_space(&self) -> bool {
        self.standstill.is_without_space()
    }

    /// Who is told when that begins, and when it is over.
    pub fn tell_of_space(&self, teller: Teller) {
        self.standstill.tell(teller);
    }

    /// What the guest says of itself.
    pub fn statistics(&self) -> Result<Statistics, MicroVmError> {
        Ok(self.agent.statistics(ANSWER_LIMIT)?)
    }

    /// What went through its first interface, where it has one.
    pub fn traffic(&self) -> Option<Counters> {
        let network = self.networks.first()?;
        Some(network.lock().unwrap_or_else(PoisonError::into_inner).counters())
    }

    /// Ends every process, brings the disks to rest, and switches the machine off.
    pub fn shut_down(&self, limit: Duration) -> Result<(), MicroVmError> {
        let result = self.agent.shut_down(limit);
        self.stopper.leave();
        self.wait(ANSWER_LIMIT);
        for disk in &self.disks {
            disk.close()?;
        }
        Ok(result?)
    }

    /// Switches the machine off, if it is on, and lets go of what others of this host could
    /// want now: ports, names.
    pub fn switch_off(&self) {
        self.stopper.leave();
        self.wait(ANSWER_LIMIT);
        for network in &self.networks {
            network.lock().unwrap_or_else(PoisonError::into_inner).close();
        }
    }

    /// Waits for the machine's end, and says why it came; nothing when it has not within
    /// the limit.
    pub fn wait(&self, limit: Duration) -> Option<String> {
        let running = |state: &mut EndState| state.reason.is_none();
        let (state, _) = self
            .end
            .changed
            .wait_timeout_while(self.end.lock(), limit, running)
            .unwrap_or_else(PoisonError::into_inner);
        state.reason.clone()
    }
}

impl Drop for MicroVm {
    fn drop(&mut self) {
        self.stopper.leave();
        if let Some(watcher) = self.watcher.take()
            && watcher.join().is_err()
        {
            tracing::error!("the thread that watched a machine has panicked");
        }
    }
}

/// Switches off what does not come up.
struct Booting {
    stopper: Stopper,
    watcher: Option<JoinHandle<()>>,
}

impl Drop for Booting {
    fn drop(&mut self) {
        if let Some(watcher) = self.watcher.take() {
            self.stopper.leave();
            if watcher.join().is_err() {
                tracing::error!("the thread that watched a machine has panicked");
            }
        }
    }
}

/// A thread that waits for the machine's end and tells it.
fn watch(
    machine: &Arc<Machine>,
    standstill: &Arc<Standstill>,
    end: &Arc<End>,
) -> Result<JoinHandle<()>, MicroVmError> {
    let (machine, standstill, end) = (machine.clone(), standstill.clone(), end.clone());
    std::thread::Builder::new()
        .name("machine".to_owned())
        .spawn(move || {
            let reason = match machine.wait(None) {
                Some(Ending::PowerOff) => "the guest switched itself off".to_owned(),
                Some(Ending::Reset) => "the guest's kernel restarted".to_owned(),
                Some(Ending::Panicked) => "the guest's kernel panicked".to_owned(),
                Some(Ending::TripleFault { .. }) => "the guest's kernel crashed".to_owned(),
                Some(Ending::Engine(error)) => error.to_string(),
                _ => "the machine was switched off".to_owned(),
            };
            standstill.leave();
            if let Err(error) = machine.pause() {
                tracing::error!(%error, "a machine that has ended cannot be stopped");
            }
            end.set(reason);
        })
        .map_err(MicroVmError::Connection)
}

type Disk = (BlockDevice, Arc<Block>);

fn add_disks(machine: &Machine, config: &MicroVmConfig) -> Result<Vec<Disk>, MicroVmError> {
    let mut disks = Vec::new();
    let mut add = |path: &Path, serial: &str, options: DeviceOptions| {
        let options =
            DeviceOptions { path: path.to_owned(), format: Some(FormatKind::Raw), ..options };
        let disk = BlockDevice::open(&options)?;
        let block = devices::add_disk(machine, &disk, serial)?;
        disks.push((disk, block));
        Ok::<_, MicroVmError>(())
    };
    add(&config.root, ROOT_DISK, DeviceOptions { readonly: true, ..DeviceOptions::default() })?;
    if let WritableLayer::Disk { path, kept } = &config.writes {
        // Nobody reads what is thrown away, so nobody waits until it is on the host's disk.
        add(path, WRITES_DISK, DeviceOptions { unsafe_cache: !kept, ..DeviceOptions::default() })?;
    }
    Ok(disks)
}

/// What a guest is to make of its networks.
pub(crate) fn wiring(user: Option<&UserMode>, plugged: Option<(&Plug, Welcome)>) -> Wiring {
    let user = user.map(|user| &user.config);
    let interface = |user: &NetworkConfig| Interface {
        mac: user.guest_mac,
        mtu: user.mtu.into(),
        addresses: vec![(user.guest4.into(), user.prefix4), (user.guest6.into(), user.prefix6)],
        gateways: vec![user.router4.into(), user.router6.into()],
    };
    // A switch's knows the others, and asks the host's resolvers for everybody else.
    let resolver = plugged.as_ref().map(|(plug, _)| plug.resolver);
    let resolver = resolver.or_else(|| user.map(|user| user.dns4.into()));
    let plugged = plugged.map(|(plug, welcome)| at_switch(plug, &welcome));
    Wiring {
        interfaces: user.map(interface).into_iter().chain(plugged).collect(),
        resolvers: resolver.into_iter().collect(),
    }
}

/// What it is to make of an interface at a switch.
fn at_switch(plug: &Plug, welcome: &Welcome) -> Interface {
    Interface {
        mac: welcome.mac,
        mtu: welcome.mtu.into(),
        addresses: vec![(welcome.address4.into(), plug.prefix)],
        // Outwards leads the other network.
        gateways: Vec::new(),
    }
}

fn boot_source(engine: &dyn Engine, kernel: &PreparedKernel) -> BootSource {
    let more = if engine.name() == "kvm" { "" } else { SOFTWARE_ENGINE };
    BootSource {
        kernel: kernel.kernel.clone(),
        initrd: Some(kernel.initrd.clone()),
        command_line: format!("{COMMAND_LINE}{more}"),
    }
}

/// What the agent is to make of the guest.
fn set_up(config: &MicroVmConfig, plugged: Option<Welcome>) -> SetUp {
    let mut entropy = vec![0; 64];
    // Without it the guest has what its processor gives.
    let got = rustix::rand::getrandom(&mut entropy[..], rustix::rand::GetRandomFlags::empty());
    entropy.truncate(got.unwrap_or(0));
    let Wiring { interfaces, resolvers } =
        wiring(config.network.as_ref(), config.plug.as_ref().zip(plugged));
    SetUp {
        host_name: config.host_name.clone(),
        root: Root {
            image: ROOT_DISK.to_owned(),
            writes: match &config.writes {
                WritableLayer::Memory(bytes) => Writes::Memory { bytes: *bytes },
                WritableLayer::Disk { .. } => Writes::Disk(WRITES_DISK.to_owned()),
            },
            read_only: config.read_only,
        },
        mounts: config.mounts.clone(),
        interfaces,
        resolvers,
        search: Vec::new(),
        hosts: config.hosts.clone(),
        processes: config.processes,
        clock: now(),
        entropy,
    }
}

pub(crate) fn now() -> Clock {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    Clock { seconds: now.tv_sec, nanoseconds: now.tv_nsec as u32 }
}

/// Passes the kernel's messages on and keeps the last of them.
struct Kept {
    kept: Arc<Mutex<Vec<u8>>>,
    passed_on: Box<dyn Write + Send>,
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        let more = kept.len().saturating_sub(KEPT_MESSAGES);
        kept.drain(..more);
        drop(kept);
        self.passed_on.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.passed_on.flush()
    }
}
