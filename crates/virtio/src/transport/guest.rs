//! A guest's driver, for tests: finds the structures of a virtio function, negotiates,
//! and sets up queues.

use std::sync::{Arc, Mutex};

use guise_devices::irq::IrqLine;
use guise_devices::pci::PciFunction;
use guise_engine::memory::vm_memory::GuestAddress;
use guise_engine::{GuestMemory, Msi};

use super::VirtioPci;
use crate::device::{EVENT_INDEX, PACKED_RING, VERSION_1, VirtioDevice};
use crate::queue::driver::Driver;

const COMMON: u64 = 0;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;

pub struct Guest {
    pub function: Arc<VirtioPci>,
    pub memory: GuestMemory,
    pub queues: Vec<Driver>,
    pub messages: Arc<Mutex<Vec<u32>>>,
    pub line: Arc<Mutex<bool>>,
}

impl Guest {
    pub fn new(device: Arc<dyn VirtioDevice>) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 4 << 20)]).expect("memory");
        Self::in_memory(device, memory)
    }

    pub fn in_memory(device: Arc<dyn VirtioDevice>, memory: GuestMemory) -> Self {
        let messages: Arc<Mutex<Vec<u32>>> = Arc::default();
        let sink = messages.clone();
        let line: Arc<Mutex<bool>> = Arc::default();
        let wire = line.clone();
        let line_end: Arc<dyn IrqLine> =
            Arc::new(move |level: bool| *wire.lock().expect("line") = level);
        let function = VirtioPci::new(
            device,
            memory.clone(),
            Arc::new(move |msi: Msi| sink.lock().expect("messages").push(msi.data)),
            line_end,
        )
        .expect("function");
        Self { function, memory, queues: Vec::new(), messages, line }
    }

    pub fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.function.bar_read(0, offset, &mut bytes);
        bytes
    }

    pub fn write(&self, offset: u64, data: &[u8]) {
        self.function.bar_write(0, offset, data);
    }

    pub fn status(&self) -> u8 {
        self.read::<1>(COMMON + 0x14)[0]
    }

    pub fn set_status(&self, status: u8) {
        self.write(COMMON + 0x14, &[status]);
    }

    pub fn offered(&self) -> u64 {
        let mut features = 0;
        for half in 0..2_u32 {
            self.write(COMMON, &half.to_le_bytes());
            features |= u64::from(u32::from_le_bytes(self.read(COMMON + 4))) << (32 * half);
        }
        features
    }

    pub fn accept(&self, features: u64) {
        for half in 0..2_u32 {
            self.write(COMMON + 8, &half.to_le_bytes());
            self.write(COMMON + 12, &((features >> (32 * half)) as u32).to_le_bytes());
        }
    }

    pub fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        self.read(DEVICE + offset)
    }

    /// Sets up all queues, with 8 entries each, and gives message `n + 1` to queue `n`.
    pub fn set_up_queues(&mut self, packed: bool, event_index: bool) {
        let [low, high] = self.read::<2>(COMMON + 0x12);
        let count = u16::from_le_bytes([low, high]);
        self.queues.clear();
        for index in 0..count {
            let driver = Driver::at(self.memory.clone(), u64::from(index), 8, packed, event_index);
            self.write(COMMON + 0x16, &index.to_le_bytes());
            self.write(COMMON + 0x18, &8_u16.to_le_bytes());
            self.write(COMMON + 0x1a, &(index + 1).to_le_bytes());
            let config = driver.config;
            // Whole addresses and halves are both allowed.
            self.write(COMMON + 0x20, &config.descriptors.to_le_bytes());
            self.write(COMMON + 0x28, &(config.driver as u32).to_le_bytes());
            self.write(COMMON + 0x2c, &((config.driver >> 32) as u32).to_le_bytes());
            self.write(COMMON + 0x30, &config.device.to_le_bytes());
            self.write(COMMON + 0x1c, &1_u16.to_le_bytes());
            self.queues.push(driver);
        }
    }

    /// Switches MSI-X on, with data `0x40 + n` for message `n`.
    pub fn enable_messages(&self, count: u32) {
        for vector in 0..count {
            let entry = TABLE + 16 * u64::from(vector);
            self.write(entry, &0xfee0_0000_u64.to_le_bytes());
            self.write(entry + 8, &(0x40 + vector).to_le_bytes());
            self.write(entry + 12, &0_u32.to_le_bytes());
        }
        let control = self.capability(0x11, None) + 2;
        self.function.config_write(control, &0x8000_u16.to_le_bytes());
    }

    /// Where a capability is: by id, and by kind for vendor ones.
    pub fn capability(&self, id: u8, kind: Option<u8>) -> u16 {
        let byte = |at: u16| {
            let mut data = [0];
            self.function.config_read(at, &mut data);
            data[0]
        };
        let mut at = u16::from(byte(0x34));
        while at != 0 {
            if byte(at) == id && kind.is_none_or(|kind| byte(at + 3) == kind) {
                return at;
            }
            at = u16::from(byte(at + 1));
        }
        panic!("capability {id:#x} is missing");
    }

    /// All of it: negotiation of these and generic features, queues, messages, start.
    pub fn start(&mut self, features: u64, packed: bool, event_index: bool) {
        self.set_status(0);
        self.set_status(3);
        let mut wanted = features | VERSION_1;
        wanted |= if packed { PACKED_RING } else { 0 };
        wanted |= if event_index { EVENT_INDEX } else { 0 };
        assert_eq!(self.offered() & wanted, wanted, "not all is offered");
        self.accept(wanted);
        self.set_status(11);
        assert_eq!(self.status(), 11);
        self.set_up_queues(packed, event_index);
        self.enable_messages(self.queues.len() as u32 + 1);
        self.set_status(15);
        assert_eq!(self.status(), 15);
    }

    pub fn notify(&self, queue: u16) {
        self.write(NOTIFY + 4 * u64::from(queue), &queue.to_le_bytes());
    }
}
