//! An IOMMU with a little memory, and a language of random bytes to drive it: what a
//! guest can write into tables, queues and registers, and what functions ask for then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use guise_devices::bus::Device;
use guise_devices::dma::Dma;
use guise_devices::iommu::{Iommu, RequesterId};
use guise_devices::irq::MsiSink;
use guise_engine::memory::vm_memory::{Bytes, GuestAddress};
use guise_engine::{GuestMemory, Msi};

const MEMORY: u64 = 0x1_0000;

/// The unit, and how often it let a message through or sent one.
pub struct Unit {
    iommu: Arc<Iommu>,
    memory: GuestMemory,
    messages: Arc<AtomicU64>,
}

impl Unit {
    pub fn new() -> Self {
        let ranges = [(GuestAddress(0), MEMORY as usize)];
        let memory = GuestMemory::from_ranges(&ranges).unwrap();
        let messages: Arc<AtomicU64> = Arc::default();
        let counter = messages.clone();
        let sink = Arc::new(move |_| _ = counter.fetch_add(1, Ordering::Relaxed));
        Self { iommu: Iommu::new(memory.clone(), sink), memory, messages }
    }

    /// Does what 16 bytes say.
    pub fn step(&self, operation: [u8; 16]) {
        let [what, length, id_low, id_high, a, b, c, d, wide @ ..] = operation;
        let narrow = u32::from_le_bytes([a, b, c, d]);
        let wide = u64::from_le_bytes(wide);
        // Half of the requests are those of one function, so that tables matter.
        let id = match id_high & 1 {
            0 => RequesterId::in_slot(3),
            _ => RequesterId { bus: id_high >> 1, device: id_low >> 3, function: id_low & 7 },
        };
        let requester = self.iommu.requester(id);
        let register = (u64::from(narrow) % 0x300) & !3;
        match what % 9 {
            0 | 1 => {
                let address = (u64::from(narrow) % MEMORY) & !7;
                self.memory.write_obj(wide, GuestAddress(address)).unwrap();
            }
            2 => self.iommu.write(register, &wide.to_le_bytes()),
            3 => self.iommu.write(register, &(wide as u32).to_le_bytes()),
            4 => _ = Dma::read(&*requester, wide, &mut [0; 256][..usize::from(length)]),
            5 => _ = Dma::write(&*requester, wide, &[what; 256][..usize::from(length)]),
            6 => requester.signal(message(narrow, wide)),
            7 => {
                let io_apic = self.iommu.io_apic();
                let found = io_apic.preview(message(narrow, wide));
                let before = self.messages.load(Ordering::Relaxed);
                io_apic.signal(message(narrow, wide));
                // One, or that of the fault that there was instead.
                let sent = self.messages.load(Ordering::Relaxed) - before;
                assert!(sent <= 1 && (found.is_none() || sent == 1));
            }
            _ => {
                let state = self.iommu.state();
                if wide & 1 != 0 {
                    self.iommu.reset();
                }
                self.iommu.set_state(&state);
                assert!(self.iommu.state() == state);
                self.iommu.read(register, &mut [0; 8][..usize::from(length % 9)]);
            }
        }
    }

    /// Does what a string of bytes says. No operation sends more than two messages.
    pub fn run(&self, program: &[u8]) {
        let operations = program.chunks_exact(16);
        let bound = 2 * operations.len() as u64;
        for operation in operations {
            self.step(operation.try_into().unwrap());
        }
        assert!(self.messages.load(Ordering::Relaxed) <= bound);
    }
}

fn message(address: u32, data: u64) -> Msi {
    // Most addresses are those of messages.
    let head = if address >> 28 == 0 { u64::from(address) << 8 } else { 0xfee0_0000 };
    Msi { address: head | u64::from(address & 0xf_ffff), data: data as u32 }
}
