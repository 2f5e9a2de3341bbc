//! The common configuration structure: negotiation and the setting up of queues.

use guise_devices::pci::Msix;
use serde::{Deserialize, Serialize};

use super::interrupt::{Interrupt, NO_VECTOR};
use crate::device::{EVENT_INDEX, INDIRECT_DESCRIPTORS, PACKED_RING, VERSION_1};
use crate::queue::{MAX_SIZE, QueueConfig};

/// Bits of the device status.
pub const DRIVER_OK: u8 = 4;
pub const FEATURES_OK: u8 = 8;
pub const NEEDS_RESET: u8 = 64;

/// Length of the structure.
pub const LENGTH: usize = 0x38;

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIGURATION_VECTOR: u64 = 0x10;
pub const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_DESCRIPTORS: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;

/// One queue as the driver sets it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegisters {
    pub largest: u16,
    pub size: u16,
    pub enabled: bool,
    pub descriptors: u64,
    pub driver: u64,
    pub device: u64,
}

/// The registers behind the structure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Common {
    pub offered: u64,
    pub accepted: u64,
    pub status: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    pub queues: Vec<QueueRegisters>,
}

/// What a write asks of the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    None,
    Reset,
    /// The driver is ready.
    Start,
}

impl Common {
    pub fn new(features: u64, queue_sizes: &[u16]) -> Self {
        let generic = VERSION_1 | INDIRECT_DESCRIPTORS | EVENT_INDEX | PACKED_RING;
        let queues = queue_sizes.iter().map(|&size| QueueRegisters {
            largest: size.min(MAX_SIZE),
            size: size.min(MAX_SIZE),
            enabled: false,
            descriptors: 0,
            driver: 0,
            device: 0,
        });
        Self {
            offered: features | generic,
            accepted: 0,
            status: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            queues: queues.collect(),
        }
    }

    pub fn reset(&mut self) {
        self.accepted = 0;
        self.status = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        for queue in &mut self.queues {
            let largest = queue.largest;
            *queue = QueueRegisters {
                largest,
                size: largest,
                enabled: false,
                descriptors: 0,
                driver: 0,
                device: 0,
            };
        }
    }

    /// How a queue is to be used, if the driver has enabled it.
    pub fn queue_config(&self, index: usize) -> Option<QueueConfig> {
        let queue = self.queues.get(index).filter(|queue| queue.enabled)?;
        Some(QueueConfig {
            size: queue.size,
            descriptors: queue.descriptors,
            driver: queue.driver,
            device: queue.device,
            packed: self.accepted & PACKED_RING != 0,
            event_index: self.accepted & EVENT_INDEX != 0,
        })
    }

    /// The structure as bytes.
    pub fn bytes(&self, interrupt: &Interrupt) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        let mut put = |at: u64, value: &[u8]| {
            bytes[at as usize..at as usize + value.len()].copy_from_slice(value);
        };
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let vectors = interrupt.vectors();
        let selected = usize::from(self.queue_select);
        put(DEVICE_FEATURE_SELECT, &self.device_feature_select.to_le_bytes());
        put(0x04, &half(self.offered, self.device_feature_select).to_le_bytes());
        put(DRIVER_FEATURE_SELECT, &self.driver_feature_select.to_le_bytes());
        put(DRIVER_FEATURE, &half(self.accepted, self.driver_feature_select).to_le_bytes());
        put(CONFIGURATION_VECTOR, &vectors.configuration.to_le_bytes());
        put(0x12, &(self.queues.len() as u16).to_le_bytes());
        let broken = if interrupt.is_broken() { NEEDS_RESET } else { 0 };
        put(STATUS, &[self.status | broken, interrupt.generation()]);
        put(QUEUE_SELECT, &self.queue_select.to_le_bytes());
        // A queue that does not exist has a size of zero.
        if let Some(queue) = self.queues.get(selected) {
            put(QUEUE_SIZE, &queue.size.to_le_bytes());
            put(QUEUE_VECTOR, &vectors.queues[selected].to_le_bytes());
            put(QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
            // Each queue has the notification address of its number.
            put(0x1e, &self.queue_select.to_le_bytes());
            put(QUEUE_DESCRIPTORS, &queue.descriptors.to_le_bytes());
            put(QUEUE_DRIVER, &queue.driver.to_le_bytes());
            put(QUEUE_DEVICE, &queue.device.to_le_bytes());
        } else {
            put(QUEUE_VECTOR, &NO_VECTOR.to_le_bytes());
        }
        bytes
    }

    /// A write of a whole field, or of half of an address.
    pub fn write(
        &mut self,
        offset: u64,
        data: &[u8],
        interrupt: &Interrupt,
        msix: &Msix,
    ) -> Change {
        let mut wide = [0; 8];
        let length = data.len().min(8);
        wide[..length].copy_from_slice(&data[..length]);
        let value = u64::from_le_bytes(wide);
        // A message that does not exist is refused by not taking it.
        let vector = if value < u64::from(msix.vectors()) { value as u16 } else { NO_VECTOR };
        match (offset, length) {
            (DEVICE_FEATURE_SELECT, 4) => self.device_feature_select = value as u32,
            (DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select = value as u32,
            // Features are settled once FEATURES_OK is.
            (DRIVER_FEATURE, 4) if self.status & FEATURES_OK == 0 => {
                let shift = match self.driver_feature_select {
                    0 => 0,
                    1 => 32,
                    _ => return Change::None,
                };
                self.accepted = self.accepted & !(0xffff_ffff << shift) | value << shift;
            }
            (CONFIGURATION_VECTOR, 2) => interrupt.vectors().configuration = vector,
            (STATUS, 1) => return self.set_status(value as u8),
            (QUEUE_SELECT, 2) => self.queue_select = value as u16,
            (QUEUE_VECTOR, 2) => {
                let selected = usize::from(self.queue_select);
                if let Some(slot) = interrupt.vectors().queues.get_mut(selected) {
                    *slot = vector;
                }
            }
            _ => self.write_queue(offset, length, value),
        }
        Change::None
    }

    fn write_queue(&mut self, offset: u64, length: usize, value: u64) {
        let running = self.status & DRIVER_OK != 0;
        let packed = self.accepted & PACKED_RING != 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        if queue.enabled || running {
            return;
        }
        let set = |address: &mut u64, half: u64| match (half, length) {
            (0, 8) => *address = value,
            (0, 4) => *address = *address & !0xffff_ffff | value,
            (4, 4) => *address = *address & 0xffff_ffff | value << 32,
            _ => {}
        };
        match offset {
            QUEUE_SIZE if length == 2 => {
                let size = value as u16;
                if size != 0 && size <= queue.largest && (packed || size.is_power_of_two()) {
                    queue.size = size;
                }
            }
            QUEUE_ENABLE if length == 2 => queue.enabled = value == 1,
            0x20..0x28 => set(&mut queue.descriptors, offset - QUEUE_DESCRIPTORS),
            0x28..0x30 => set(&mut queue.driver, offset - QUEUE_DRIVER),
            0x30..0x38 => set(&mut queue.device, offset - QUEUE_DEVICE),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u8) -> Change {
        if value == 0 {
            return Change::Reset;
        }
        // Bits are only ever added.
        let mut value = value & !NEEDS_RESET | self.status;
        let settles = value & !self.status & FEATURES_OK != 0;
        let acceptable = self.accepted & !self.offered == 0 && self.accepted & VERSION_1 != 0;
        if settles && !acceptable {
            value &= !FEATURES_OK;
        }
        if value & FEATURES_OK == 0 {
            value &= !DRIVER_OK;
        }
        let starts = value & !self.status & DRIVER_OK != 0;
        self.status = value;
        if starts { Change::Start } else { Change::None }
    }
}
