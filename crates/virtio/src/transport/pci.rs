//! A virtio device as a PCI function.
//!
//! Everything lies in one BAR: the common structure, the interrupt status, the
//! device's configuration, notification addresses, the MSI-X table. Five vendor
//! capabilities say where. One of them is a window through configuration space to the
//! rest, for drivers that cannot map memory yet.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guise_devices::irq::{IrqLine, MsiSink};
use guise_devices::pci::config::{ConfigError, ConfigState};
use guise_devices::pci::msix::MsixState;
use guise_devices::pci::{BarKind, ConfigSpace, Identity, Msix, PciFunction};
use guise_engine::{Doorbell, DoorbellAddress, GuestMemory};
use serde::{Deserialize, Serialize};

use super::common::{Change, Common, DRIVER_OK, LENGTH as COMMON_LENGTH};
use super::interrupt::{Interrupt, Vectors};
use crate::device::{DeviceState, Session, VirtioDevice};
use crate::queue::{Position, Queue, QueueError};

const VENDOR: u16 = 0x1af4;
/// Added to the device's kind.
const FIRST_DEVICE: u16 = 0x1040;
const VENDOR_CAPABILITY: u8 = 0x09;

/// The BAR and its parts.
const BAR: usize = 0;
const BAR_SIZE: u64 = 0x8000;
const COMMON: u64 = 0x0000;
const STATUS: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const PART: u64 = 0x1000;
const NOTIFY: u64 = 0x3000;
/// Between the notification addresses of two queues.
const NOTIFY_STEP: u32 = 4;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PENDING: u64 = 0x7000;

/// Kinds of capabilities.
const CAPABILITY_COMMON: u8 = 1;
const CAPABILITY_NOTIFY: u8 = 2;
const CAPABILITY_STATUS: u8 = 3;
const CAPABILITY_DEVICE: u8 = 4;
const CAPABILITY_WINDOW: u8 = 5;

/// A device that was saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioPciState {
    config: ConfigState,
    msix: MsixState,
    common: Common,
    vectors: Vectors,
    interrupt: (u8, u8, bool),
    /// How far the queues have come, while the device runs.
    positions: Vec<Option<Position>>,
    device: DeviceState,
}

/// A saved device that cannot be loaded here.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    Config(#[from] guise_devices::pci::config::ForeignConfig),
    #[error(transparent)]
    Msix(#[from] guise_devices::pci::msix::ForeignMsix),
    #[error("the saved virtio device has other queues or features")]
    Device,
    #[error("a queue of the saved virtio device: {0}")]
    Queue(#[from] QueueError),
    #[error("the saved virtio device cannot run here: {0}")]
    Start(#[from] crate::device::StartError),
}

/// A virtio device on PCI.
pub struct VirtioPci {
    device: Arc<dyn VirtioDevice>,
    memory: GuestMemory,
    config: Arc<ConfigSpace>,
    msix: Arc<Msix>,
    interrupt: Arc<Interrupt>,
    common: Mutex<Common>,
    /// Where the window's capability is.
    window: u16,
}

/// The body of a vendor capability, after id and next pointer.
fn capability(kind: u8, offset: u64, length: u64, more: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + more.len() as u8, kind, BAR as u8, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((length as u32).to_le_bytes());
    body.extend(more);
    body
}

impl VirtioPci {
    /// `line` is the slot's INTx.
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        memory: GuestMemory,
        sink: Arc<dyn MsiSink>,
        line: Arc<dyn IrqLine>,
    ) -> Result<Arc<Self>, ConfigError> {
        let sizes = device.queue_sizes();
        // A message for each queue, and one for the configuration.
        let msix = Msix::new(sizes.len() as u16 + 1, sink);
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE + device.kind(),
            subsystem_vendor: VENDOR,
            subsystem: FIRST_DEVICE + device.kind(),
            class: device.class(),
            revision: 1,
        });
        config.set_interrupt_pin();
        config.add_bar(BAR, BarKind::Memory64 { prefetchable: false }, BAR_SIZE)?;
        let notify = u64::from(NOTIFY_STEP) * sizes.len() as u64;
        for (kind, offset, length, more) in [
            (CAPABILITY_COMMON, COMMON, COMMON_LENGTH as u64, None),
            (CAPABILITY_NOTIFY, NOTIFY, notify, Some(NOTIFY_STEP)),
            (CAPABILITY_STATUS, STATUS, 1, None),
            (CAPABILITY_DEVICE, DEVICE, PART, None),
        ] {
            let more = more.map_or(Vec::new(), |step: u32| step.to_le_bytes().to_vec());
            config.add_capability(
                VENDOR_CAPABILITY,
                &capability(kind, offset, length, &more),
                &[],
            )?;
        }
        let body = capability(CAPABILITY_WINDOW, 0, 0, &[0; 4]);
        // BAR, offset, length and data are the driver's to write.
        let writable = [
            0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            0xff,
        ];
        let window = config.add_capability(VENDOR_CAPABILITY, &body, &writable)?;
        config.add_msix(msix.clone(), BAR, MSIX_TABLE as u32, MSIX_PENDING as u32)?;
        let config = Arc::new(config);
        let common = Mutex::new(Common::new(device.features(), &sizes));
        let interrupt = Interrupt::new(config.clone(), msix.clone(), line, sizes.len());
        Ok(Arc::new(Self { device, memory, config, msix, interrupt, common, window }))
    }

    /// The way to the driver, for changes of the device's configuration.
    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    fn lock(&self) -> MutexGuard<'_, Common> {
        self.common.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the device with queues at these positions.
    fn start(&self, common: &Common, positions: &[Option<Position>]) -> Result<(), StateError> {
        let mut queues = Vec::with_capacity(common.queues.len());
        for index in 0..common.queues.len() {
            let position = positions.get(index).copied().flatten().unwrap_or_default();
            let config = common.queue_config(index);
            let queue = config.map(|config| Queue::new(self.memory.clone(), config, position));
            queues.push(queue.transpose()?);
        }
        let interrupt = self.interrupt.clone();
        self.device.start(Session { queues, features: common.accepted, interrupt })?;
        Ok(())
    }

    /// Stops the device and resets everything that is virtio's own.
    fn reset_device(&self, common: &mut Common) {
        self.device.stop();
        common.reset();
        self.interrupt.reset();
    }

    fn write_common(&self, offset: u64, data: &[u8]) {
        let mut common = self.lock();
        match common.write(offset, data, &self.interrupt, &self.msix) {
            Change::None => {}
            Change::Reset => self.reset_device(&mut common),
            Change::Start => {
                self.device.begin(common.accepted);
                if let Err(error) = self.start(&common, &[]) {
                    tracing::warn!(%error, kind = self.device.kind(), "a driver set up a device that cannot start");
                    self.interrupt.needs_reset();
                }
            }
        }
    }

    /// The eventfds that stand for writes to the notification addresses, where the
    /// BAR is now.
    pub fn doorbells(&self) -> Vec<Doorbell> {
        let base = self.config.bars().iter().find_map(|bar| bar.base.filter(|_| bar.decoded));
        let Some(base) = base else { return Vec::new() };
        let queues = self.lock().queues.len() as u16;
        let doorbell = |queue| {
            let address = base + NOTIFY + u64::from(NOTIFY_STEP) * u64::from(queue);
            self.device.doorbell(queue).map(|eventfd| Doorbell {
                address: DoorbellAddress::Memory(address),
                length: 2,
                value: None,
                eventfd,
            })
        };
        (0..queues).filter_map(doorbell).collect()
    }

    /// What the window means now: an offset in the BAR and a width.
    fn window_target(&self) -> Option<(u64, usize)> {
        let mut body = [0; 12];
        self.config.read(self.window + 4, &mut body);
        let [bar, _, _, _, a, b, c, d, length @ ..] = body;
        let (offset, length) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes(length));
        let fits = usize::from(bar) == BAR && matches!(length, 1 | 2 | 4);
        (fits && offset % length.max(1) == 0).then_some((u64::from(offset), length as usize))
    }

    /// Saves the device. It is stopped for that moment: requests that it has taken are
    /// finished, and it goes on with the next ones.
    pub fn state(&self) -> VirtioPciState {
        let common = self.lock();
        let running = common.status & DRIVER_OK != 0 && !self.interrupt.is_broken();
        let queues = if running { self.device.stop() } else { Vec::new() };
        let positions: Vec<_> =
            queues.iter().map(|queue| queue.as_ref().map(Queue::position)).collect();
        drop(queues);
        let state = VirtioPciState {
            config: self.config.state(),
            msix: self.msix.state(),
            common: common.clone(),
            vectors: self.interrupt.vectors().clone(),
            interrupt: self.interrupt.state(),
            positions,
            device: self.device.state(),
        };
        if running && let Err(error) = self.start(&common, &state.positions) {
            tracing::error!(%error, "a virtio device did not go on after it was saved");
            self.interrupt.needs_reset();
        }
        state
    }

    /// Loads a saved device into one that was made the same way.
    pub fn set_state(&self, state: &VirtioPciState) -> Result<(), StateError> {
        let mut common = self.lock();
        let shape = |common: &Common| -> Vec<u16> {
            common.queues.iter().map(|queue| queue.largest).collect()
        };
        let same = shape(&common) == shape(&state.common)
            && common.offered == state.common.offered
            && state.vectors.queues.len() == common.queues.len();
        if !same {
            return Err(StateError::Device);
        }
        self.reset_device(&mut common);
        self.config.set_state(&state.config)?;
        self.msix.set_state(&state.msix)?;
        common.clone_from(&state.common);
        self.interrupt.vectors().clone_from(&state.vectors);
        self.interrupt.set_state(state.interrupt);
        if !self.device.set_state(&state.device) {
            return Err(StateError::Device);
        }
        if common.status & DRIVER_OK != 0 && !self.interrupt.is_broken() {
            self.start(&common, &state.positions)?;
        }
        Ok(())
    }
}

impl PciFunction for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        if offset == self.window + 16
            && let Some((at, width)) = self.window_target()
        {
            let mut bytes = [0; 4];
            self.bar_read(BAR, at, &mut bytes[..width]);
            self.config.write(self.window + 16, &bytes);
        }
        self.config.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.config.write(offset, data);
        if offset == self.window + 16
            && let Some((at, width)) = self.window_target()
        {
            let mut bytes = [0; 4];
            self.config.read(self.window + 16, &mut bytes);
            self.bar_write(BAR, at, &bytes[..width]);
        }
        self.interrupt.refresh_line();
    }

    fn bar_read(&self, _: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            COMMON..STATUS => {
                let bytes = self.lock().bytes(&self.interrupt);
                let from = bytes.get(offset as usize..).unwrap_or_default();
                let length = from.len().min(data.len());
                data[..length].copy_from_slice(&from[..length]);
            }
            STATUS => {
                if let Some(first) = data.first_mut() {
                    *first = self.interrupt.take_status();
                }
            }
            DEVICE..NOTIFY => self.device.read_config(offset - DEVICE, data),
            MSIX_TABLE..MSIX_PENDING => self.msix.table_read(offset - MSIX_TABLE, data),
            MSIX_PENDING.. => self.msix.pending_read(offset - MSIX_PENDING, data),
            _ => {}
        }
    }

    fn bar_write(&self, _: usize, offset: u64, data: &[u8]) {
        match offset {
            COMMON..STATUS => self.write_common(offset, data),
            DEVICE..NOTIFY => self.device.write_config(offset - DEVICE, data),
            NOTIFY..MSIX_TABLE => {
                self.device.notify(((offset - NOTIFY) / u64::from(NOTIFY_STEP)) as u16);
            }
            MSIX_TABLE..MSIX_PENDING => self.msix.table_write(offset - MSIX_TABLE, data),
            _ => {}
        }
    }

    fn reset(&self) {
        self.reset_device(&mut self.lock());
        self.msix.reset();
        self.config.reset();
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.device.stop();
    }
}

#[cfg(test)]
mod tests;
