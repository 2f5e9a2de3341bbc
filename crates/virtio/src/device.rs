//! What a device is to its transport.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::balloon::BalloonState;
use crate::console::ConsoleState;
use crate::mem::MemState;
use crate::net::NetState;
use crate::queue::Queue;
use crate::transport::Interrupt;

/// Feature bits that are not of one kind of device.
pub const INDIRECT_DESCRIPTORS: u64 = 1 << 28;
pub const EVENT_INDEX: u64 = 1 << 29;
pub const VERSION_1: u64 = 1 << 32;
pub const PACKED_RING: u64 = 1 << 34;

/// What a device works with from DRIVER_OK until it is stopped.
pub struct Session {
    /// By index; none where the driver uses no queue.
    pub queues: Vec<Option<Queue>>,
    pub features: u64,
    pub interrupt: Arc<Interrupt>,
}

/// What a kind of device saves besides its queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    None,
    Net(NetState),
    Balloon(BalloonState),
    Console(ConsoleState),
    Mem(MemState),
}

/// What a device could not be started for.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the driver has not set up queue {0}")]
    MissingQueue(usize),
    #[error("{doing}: {source}")]
    Host {
        doing: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// A virtio device behind its transport. The transport calls `start` and `stop` in
/// turn, and never two of them at once.
pub trait VirtioDevice: Send + Sync {
    /// The number of its kind.
    fn kind(&self) -> u16;
    /// PCI class, subclass and interface.
    fn class(&self) -> u32;
    /// Its own feature bits.
    fn features(&self) -> u64;
    /// The most entries that each queue may have.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Reads its configuration; past its end are zeros.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes its configuration; of most devices no part can be written.
    fn write_config(&self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// A driver has negotiated anew: what an earlier one told the device is forgotten.
    fn begin(&self, features: u64) {
        let _ = features;
    }

    /// What is to be saved besides queues. The device is stopped.
    fn state(&self) -> DeviceState {
        DeviceState::None
    }

    /// Loads what was saved, before `start`. Says whether it is this device's.
    fn set_state(&self, state: &DeviceState) -> bool {
        *state == DeviceState::None
    }

    /// The driver is ready. On an error the device stays stopped.
    fn start(&self, session: Session) -> Result<(), StartError>;
    /// Ends what is under way and gives the queues back, as far as requests have been
    /// taken from them. A stopped device has none.
    fn stop(&self) -> Vec<Option<Queue>>;
    /// The driver notifies of new chains in a queue.
    fn notify(&self, queue: u16);
    /// The eventfd that does the same as `notify`, while the device is started.
    fn doorbell(&self, queue: u16) -> Option<Arc<OwnedFd>>;
}
