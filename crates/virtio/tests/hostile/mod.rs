//! A driver that means no good: a language of random bytes for what it can do to a
//! device, in which rings and requests that nearly make sense are short to say.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use guise_devices::pci::PciFunction;
use guise_disk::device::{BlockDevice, DeviceOptions};
use guise_disk::format::FormatKind;
use guise_engine::memory::vm_memory::{Bytes, GuestAddress};
use guise_engine::{GuestMemory, Msi};
use guise_net::user::{Config, UserNetwork};
use guise_virtio::balloon::Balloon;
use guise_virtio::block::{Block, BlockOptions};
use guise_virtio::console::{Console, Port};
use guise_virtio::fs::{Cache, Share, ShareOptions};
use guise_virtio::mem::{BLOCK, Mem};
use guise_virtio::net::{Net, NetOptions};
use guise_virtio::rate::Rate;
use guise_virtio::rng::Rng;
use guise_virtio::vsock::{self, Vsock};
use guise_virtio::{VirtioDevice, VirtioPci};

const MEMORY: usize = 1 << 20;
/// Rings of queue `n` begin at `n` times this.
const RINGS: u64 = 0x4000;
const DESCRIPTORS: u64 = 0x0000;
const DRIVER: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
/// Headers of requests and other data.
const DATA: u64 = 0x4_0000;
const SIZE: u16 = 16;
/// A bit of the device's status.
const NEEDS_RESET: u8 = 64;
/// How many devices there are to harass.
pub const DEVICES: u8 = 8;
/// Memory that can be added.
const ADDED: u64 = 1 << 30;
/// The kind of a console, its feature for ports, and the queue of messages about them.
const CONSOLE: u16 = 3;
const PORTS: u64 = 1 << 1;
const MESSAGES: u16 = 3;
/// The kind of a shared directory, and one of its requests.
const SHARE: u16 = 26;
const WAIT_FOR_LOCK: u8 = 33;
/// The guest's address among sockets.
const CID: u32 = 3;

const VERSION_1: u64 = 1 << 32;
const PACKED: u64 = 1 << 34;
const EVENT_INDEX: u64 = 1 << 29;

/// A device and the driver that harasses it.
pub struct Hostile {
    function: Arc<VirtioPci>,
    memory: GuestMemory,
    kind: u16,
    queues: u16,
    /// A queue that works without further features, and gives every chain back.
    plain: u16,
    pub messages: Arc<AtomicU64>,
    /// Somebody on the host whom the guest can connect to.
    _listener: Option<vsock::Listener>,
    /// A directory that goes away by itself.
    _shared: Option<tempfile::TempDir>,
}

impl Hostile {
    /// The disk, the terminal and a port, the interface, the balloon, the entropy source,
    /// the sockets, the shared directory, or the memory that can be added.
    pub fn new(which: u8) -> Self {
        let ranges = [(GuestAddress(0), MEMORY), (GuestAddress(ADDED), 4 * BLOCK as usize)];
        let memory = GuestMemory::from_ranges(&ranges).expect("memory");
        let mut listener = None;
        let mut shared = None;
        let device: Arc<dyn VirtioDevice> = match which % DEVICES {
            0 => {
                let file = tempfile::NamedTempFile::new().expect("a temporary file");
                file.as_file().set_len(64 << 10).expect("a size");
                let options = DeviceOptions::new(file.path(), FormatKind::Raw);
                let disk = BlockDevice::open(&options).expect("a disk");
                Block::new(disk, BlockOptions { queues: 2, ..Default::default() })
            }
            1 => {
                let directory = tempfile::tempdir().expect("a directory");
                let port = Port::at("a", &directory.path().join("port")).expect("a port");
                let console = Console::new(Some(Box::new(io::sink())), vec![port]);
                shared = Some(directory);
                console.input(b"something to read");
                console
            }
            2 => {
                let network = UserNetwork::new(Config::default()).expect("a network");
                let mac = Config::default().guest_mac;
                let options = NetOptions { mac, mtu: 1500, pairs: 2, rate: Rate::default() };
                Net::new(Arc::new(Mutex::new(network)), options)
            }
            3 => Balloon::new(),
            4 => Rng::new(),
            5 => {
                let host = vsock::Host::private().expect("a host");
                listener = Some(host.listen(1).expect("a port"));
                Vsock::new(CID, host)
            }
            7 => {
                // Small for what it stands for, and all of the driver's memory is outside.
                let mem = Mem::new(memory.clone(), ADDED..ADDED + 4 * BLOCK);
                mem.request(2 * BLOCK);
                mem
            }
            _ => {
                let directory = tempfile::tempdir().expect("a directory");
                std::fs::write(directory.path().join("a"), "text").expect("a file");
                let share = Share::new(
                    directory.path(),
                    &ShareOptions {
                        tag: "t".to_owned(),
                        read_only: false,
                        cache: Cache::Auto,
                        most_files: 16,
                        queues: 1,
                    },
                );
                shared = Some(directory);
                share.expect("a share")
            }
        };
        let (kind, queues) = (device.kind(), device.queue_sizes().len() as u16);
        // An interface's last queue is for commands, which have to be negotiated.
        // A driver gets back what it sends through its sockets, and not what it gives for
        // news.
        let plain = if matches!(kind, 1 | CONSOLE | 19) { 1 } else { queues - 1 };
        let messages: Arc<AtomicU64> = Arc::default();
        let counter = messages.clone();
        let sink = Arc::new(move |_: Msi| _ = counter.fetch_add(1, Ordering::Relaxed));
        let line = Arc::new(|_: bool| ());
        let function = VirtioPci::new(device, memory.clone(), sink, line).expect("a function");
        Self {
            function,
            memory,
            kind,
            queues,
            plain,
            messages,
            _listener: listener,
            _shared: shared,
        }
    }

    fn common(&self, offset: u64, data: &[u8]) {
        self.function.bar_write(0, offset, data);
    }

    fn put(&self, address: u64, data: &[u8]) {
        // What a guest writes outside of its memory goes nowhere.
        _ = self.memory.write_slice(data, GuestAddress(address));
    }

    /// Switches MSI-X on, with one message for everything.
    fn enable_messages(&self) {
        let byte = |at: u16| {
            let mut data = [0];
            self.function.config_read(at, &mut data);
            u16::from(data[0])
        };
        let mut at = byte(0x34);
        while byte(at) != 0x11 {
            at = byte(at + 1);
        }
        self.function.config_write(at + 2, &0x8000_u16.to_le_bytes());
        self.function.bar_write(0, 0x4000, &0xfee0_0000_u64.to_le_bytes());
        self.function.bar_write(0, 0x400c, &[0; 4]);
    }

    /// Brings the device up as a good driver would.
    fn start(&self, features: u64) {
        self.enable_messages();
        self.common(0x14, &[0]);
        self.put(0, &[0; DATA as usize]);
        self.common(0x14, &[3]);
        for half in 0..2_u32 {
            self.common(0x08, &half.to_le_bytes());
            self.common(0x0c, &((features >> (32 * half)) as u32).to_le_bytes());
        }
        self.common(0x14, &[11]);
        for queue in 0..self.queues {
            let base = u64::from(queue) * RINGS;
            self.common(0x16, &queue.to_le_bytes());
            self.common(0x18, &SIZE.to_le_bytes());
            self.common(0x1a, &0_u16.to_le_bytes());
            self.common(0x20, &(base + DESCRIPTORS).to_le_bytes());
            self.common(0x28, &(base + DRIVER).to_le_bytes());
            self.common(0x30, &(base + DEVICE).to_le_bytes());
            self.common(0x1c, &1_u16.to_le_bytes());
        }
        self.common(0x14, &[15]);
    }

    /// Does what eight bytes say.
    pub fn step(&self, operation: [u8; 8]) {
        let [what, place, a, b, value @ ..] = operation;
        let number = u32::from_le_bytes(value);
        let queue = u64::from(place) % u64::from(self.queues);
        let base = queue * RINGS;
        let notify = || self.function.bar_write(0, 0x3000 + 4 * queue, &[0, 0]);
        match what % 16 {
            0 => {
                let features = [0, PACKED, EVENT_INDEX, PACKED | EVENT_INDEX][usize::from(a & 3)];
                self.start(VERSION_1 | features | u64::from(b & 0xf) << 9 | u64::from(b >> 4 & 3));
            }
            // A descriptor: a sensible address and length, or not.
            1..5 => {
                let address = if a & 0x80 != 0 { u64::from(number) << (a & 31) } else { DATA };
                let at = base + DESCRIPTORS + 16 * u64::from(place >> 4);
                self.put(at, &(address + 64 * u64::from(a & 15)).to_le_bytes());
                self.put(at + 8, &(number & 0xfff | u32::from(b >> 7) << 31).to_le_bytes());
                self.put(at + 12, &u16::from(b & 15).to_le_bytes());
                self.put(at + 14, &(number as u16 >> 4).to_le_bytes());
            }
            // The available ring of the split format.
            5..7 => {
                self.put(
                    base + DRIVER + 4 + 2 * u64::from(a & 15),
                    &u16::from(b & 31).to_le_bytes(),
                );
                self.put(base + DRIVER + 2, &u16::from(place >> 3).to_le_bytes());
                notify();
            }
            // The header of a disk request.
            7 => {
                let header = DATA + 64 * u64::from(a & 15);
                self.put(header, &u32::from(b & 15).to_le_bytes());
                self.put(header + 8, &u64::from(number >> (place & 31)).to_le_bytes());
            }
            // The header of a packet from a socket: to the port that has a listener, or not.
            8 => {
                let packet = DATA + 64 * u64::from(a & 15);
                self.put(packet, &u64::from(CID).to_le_bytes());
                self.put(packet + 8, &2_u64.to_le_bytes());
                self.put(packet + 16, &u32::from(place & 3).to_le_bytes());
                self.put(packet + 20, &u32::from(place >> 6).to_le_bytes());
                self.put(packet + 24, &(number & 0x1f).to_le_bytes());
                self.put(packet + 28, &[1, 0, b & 7, 0, a >> 6, 0, 0, 0]);
                self.put(packet + 36, &number.to_le_bytes());
            }
            // A message about ports, or a request for memory.
            15 if b & 2 != 0 => {
                let message = DATA + 64 * u64::from(a & 15);
                self.put(message, &[place & 3, 0, 0, 0, b >> 4, 0, place >> 7, 0]);
                self.put(message + 8, &(ADDED + u64::from(place >> 4) * BLOCK).to_le_bytes());
                self.put(message + 16, &u16::from(a >> 4).to_le_bytes());
            }
            // A request to a shared directory: any kind, a file that is known or not, and a
            // name in the place where many have theirs.
            15 if b & 1 != 0 => {
                let request = DATA + 64 * u64::from(a & 15);
                self.put(request, &[0x80, 0, 0, 0, place & 63, 0, 0, 0]);
                self.put(request + 16, &u64::from(a >> 6).to_le_bytes());
                self.put(request + 40, &number.to_le_bytes());
                self.put(request + 48, &u64::from(b >> 5).to_le_bytes());
                self.put(request + 56, b"a\0../a\0");
            }
            9 => self.put(base + u64::from(number & 0x3fff), &[a, b]),
            10..12 => notify(),
            12 => self.common(u64::from(a & 0x3f), &value[..1 << (b & 1)]),
            13 => self.function.bar_read(0, u64::from(number & 0x7fff), &mut [0; 4]),
            14 if b & 7 == 0 => _ = self.function.state(),
            14 => self.function.config_write(u16::from(a), &value[..1 << (b & 1)]),
            _ => self.function.config_read(u16::from(a), &mut [0; 4]),
        }
    }

    /// Does what a string of bytes says. The first byte chooses the device.
    pub fn run(program: &[u8]) {
        let Some((which, operations)) = program.split_first() else { return };
        let hostile = Self::new(*which);
        for operation in operations.chunks_exact(8) {
            hostile.step(operation.try_into().expect("eight bytes"));
        }
        hostile.finish();
        // A step makes no more chains available than a queue holds.
        let most = 2 * u64::from(SIZE) * (operations.len() as u64 / 8 + 2);
        assert!(hostile.messages.load(Ordering::Relaxed) <= most);
    }

    /// Whatever was done to it, a device can be reset and works again.
    pub fn finish(&self) {
        self.start(VERSION_1);
        let mut status = [0];
        self.function.bar_read(0, 0x14, &mut status);
        assert_eq!(status, [15], "the device does not come up any more");
        self.put(DATA, &[0; 64]);
        assert!(self.exchange(self.plain, 1, 44, 1), "the device breaks over nothing");
    }

    /// Hands a request to the device, which lies in the data, and waits for it. It is
    /// request number `count` since the start. Says whether it came back; a device that
    /// needs a reset gives nothing back.
    fn exchange(&self, queue: u16, count: u16, length: u32, room: u32) -> bool {
        let base = u64::from(queue) * RINGS;
        let descriptors = [(DATA, length, 1_u16, 1_u16), (DATA + 0x8000, room, 2, 0)];
        for (at, (address, length, flags, next)) in (0..).zip(descriptors) {
            let at = base + DESCRIPTORS + 16 * at;
            self.put(at, &address.to_le_bytes());
            self.put(at + 8, &length.to_le_bytes());
            self.put(at + 12, &flags.to_le_bytes());
            self.put(at + 14, &next.to_le_bytes());
        }
        self.put(base + DRIVER + 2, &count.to_le_bytes());
        self.function.bar_write(0, 0x3000 + 4 * u64::from(queue), &[0, 0]);
        let deadline = Instant::now() + Duration::from_secs(60);
        let used = || self.memory.read_obj::<u16>(GuestAddress(base + DEVICE + 2)).expect("inside");
        while used() != count {
            let mut status = [0];
            self.function.bar_read(0, 0x14, &mut status);
            if status[0] & NEEDS_RESET != 0 {
                return false;
            }
            assert!(Instant::now() < deadline, "the device does not work any more");
            std::thread::sleep(Duration::from_micros(50));
        }
        true
    }

    /// Hands bytes to a device as requests, one after the other. The first byte chooses
    /// the device. Each request begins with its length and with how much room there is for
    /// an answer, in units of 64 bytes.
    pub fn requests(program: &[u8]) {
        let Some((which, mut rest)) = program.split_first() else { return };
        let hostile = Self::new(*which);
        // Messages about ports are more than a terminal's bytes.
        let console = hostile.kind == CONSOLE;
        let (features, queue) = if console { (PORTS, MESSAGES) } else { (0, hostile.plain) };
        hostile.start(VERSION_1 | features);
        let mut count = 0;
        while let Some(([length, room], more)) = rest.split_first_chunk() {
            let (request, more) = more.split_at(more.len().min(usize::from(*length)));
            rest = more;
            // Nobody would ever give up the lock that this waits for.
            if hostile.kind == SHARE && request.get(4) == Some(&WAIT_FOR_LOCK) {
                continue;
            }
            hostile.put(DATA, request);
            count += 1;
            if !hostile.exchange(queue, count, request.len() as u32, 64 * u32::from(*room) + 1) {
                break;
            }
        }
        hostile.finish();
    }
}
