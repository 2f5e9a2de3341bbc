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
use guise_virtio::console::Console;
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
/// The guest's address among sockets.
const CID: u32 = 3;

const VERSION_1: u64 = 1 << 32;
const PACKED: u64 = 1 << 34;
const EVENT_INDEX: u64 = 1 << 29;

/// A device and the driver that harasses it.
pub struct Hostile {
    function: Arc<VirtioPci>,
    memory: GuestMemory,
    queues: u16,
    /// A queue that works without further features, and gives every chain back.
    plain: u16,
    pub messages: Arc<AtomicU64>,
    /// Somebody on the host whom the guest can connect to.
    _listener: Option<vsock::Listener>,
}

impl Hostile {
    /// The disk, the terminal, the interface, the balloon, the entropy source, or the
    /// sockets.
    pub fn new(which: u8) -> Self {
        let mut listener = None;
        let device: Arc<dyn VirtioDevice> = match which % 6 {
            0 => {
                let file = tempfile::NamedTempFile::new().expect("a temporary file");
                file.as_file().set_len(64 << 10).expect("a size");
                let options = DeviceOptions::new(file.path(), FormatKind::Raw);
                let disk = BlockDevice::open(&options).expect("a disk");
                Block::new(disk, BlockOptions { queues: 2, ..Default::default() })
            }
            1 => {
                let console = Console::new(Box::new(io::sink()));
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
            _ => {
                let host = vsock::Host::private().expect("a host");
                listener = Some(host.listen(1).expect("a port"));
                Vsock::new(CID, host)
            }
        };
        let queues = device.queue_sizes().len() as u16;
        // An interface's last queue is for commands, which have to be negotiated.
        // A driver gets back what it sends through its sockets, and not what it gives for
        // news.
        let plain = if matches!(device.kind(), 1 | 19) { 1 } else { queues - 1 };
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
        let messages: Arc<AtomicU64> = Arc::default();
        let counter = messages.clone();
        let sink = Arc::new(move |_: Msi| _ = counter.fetch_add(1, Ordering::Relaxed));
        let line = Arc::new(|_: bool| ());
        let function = VirtioPci::new(device, memory.clone(), sink, line).expect("a function");
        Self { function, memory, queues, plain, messages, _listener: listener }
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
                self.start(VERSION_1 | features | u64::from(b & 0xf) << 9);
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
        let base = u64::from(self.plain) * RINGS;
        let descriptors = [(DATA, 44_u32, 1_u16, 1_u16), (DATA + 64, 1, 2, 0)];
        self.put(DATA, &[0; 64]);
        for (at, (address, length, flags, next)) in (0..).zip(descriptors) {
            let at = base + DESCRIPTORS + 16 * at;
            self.put(at, &address.to_le_bytes());
            self.put(at + 8, &length.to_le_bytes());
            self.put(at + 12, &flags.to_le_bytes());
            self.put(at + 14, &next.to_le_bytes());
        }
        self.put(base + DRIVER + 2, &[1, 0]);
        self.function.bar_write(0, 0x3000 + 4 * u64::from(self.plain), &[0, 0]);
        let deadline = Instant::now() + Duration::from_secs(60);
        let used = || self.memory.read_obj::<u16>(GuestAddress(base + DEVICE + 2)).expect("inside");
        while used() != 1 {
            assert!(Instant::now() < deadline, "the device does not work any more");
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}
