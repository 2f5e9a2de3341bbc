//! How a device reaches its driver: MSI-X messages, or INTx with a status register.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guise_devices::irq::IrqLine;
use guise_devices::pci::{ConfigSpace, Msix};
use serde::{Deserialize, Serialize};

/// No vector: the event is not signalled.
pub const NO_VECTOR: u16 = 0xffff;

/// Bits of the interrupt status register.
const QUEUE: u8 = 1;
const CONFIGURATION: u8 = 2;

/// Which message is whose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vectors {
    pub configuration: u16,
    pub queues: Vec<u16>,
}

/// A device's way to its driver. Any thread may use it.
pub struct Interrupt {
    config: Arc<ConfigSpace>,
    msix: Arc<Msix>,
    line: Arc<dyn IrqLine>,
    vectors: Mutex<Vectors>,
    /// The interrupt status register; its lock orders what happens to the line.
    status: Mutex<u8>,
    generation: AtomicU8,
    needs_reset: AtomicBool,
}

impl Interrupt {
    pub(super) fn new(
        config: Arc<ConfigSpace>,
        msix: Arc<Msix>,
        line: Arc<dyn IrqLine>,
        queues: usize,
    ) -> Arc<Self> {
        let vectors = Vectors { configuration: NO_VECTOR, queues: vec![NO_VECTOR; queues] };
        Arc::new(Self {
            config,
            msix,
            line,
            vectors: Mutex::new(vectors),
            status: Mutex::new(0),
            generation: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
        })
    }

    pub(super) fn vectors(&self) -> MutexGuard<'_, Vectors> {
        self.vectors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> MutexGuard<'_, u8> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_line(&self, status: u8) {
        self.line.set(self.config.set_interrupt_status(status != 0));
    }

    fn signal(&self, vector: u16, cause: u8) {
        if self.msix.enabled() {
            if vector != NO_VECTOR {
                self.msix.notify(vector);
            }
            return;
        }
        let mut status = self.status();
        *status |= cause;
        self.set_line(*status);
    }

    /// Chains have come back.
    pub fn signal_queue(&self, queue: u16) {
        let vector = self.vectors().queues.get(usize::from(queue)).copied();
        self.signal(vector.unwrap_or(NO_VECTOR), QUEUE);
    }

    /// The device's configuration has changed.
    pub fn signal_configuration(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        let vector = self.vectors().configuration;
        self.signal(vector, CONFIGURATION);
    }

    /// The driver broke something, and the device stops until it is reset.
    pub fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.signal_configuration();
    }

    pub(super) fn is_broken(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// Reading the status register clears it, and lowers the line.
    pub(super) fn take_status(&self) -> u8 {
        let mut status = self.status();
        let taken = std::mem::take(&mut *status);
        self.set_line(0);
        taken
    }

    /// INTx was enabled or disabled in the command register.
    pub(super) fn refresh_line(&self) {
        let status = self.status();
        self.set_line(if self.msix.enabled() { 0 } else { *status });
    }

    pub(super) fn reset(&self) {
        let mut vectors = self.vectors();
        vectors.configuration = NO_VECTOR;
        vectors.queues.fill(NO_VECTOR);
        drop(vectors);
        self.needs_reset.store(false, Ordering::SeqCst);
        self.take_status();
    }

    /// What there is to save besides the vectors: status, generation, broken or not.
    pub(super) fn state(&self) -> (u8, u8, bool) {
        (*self.status(), self.generation(), self.is_broken())
    }

    pub(super) fn set_state(&self, (status, generation, broken): (u8, u8, bool)) {
        *self.status() = status;
        self.generation.store(generation, Ordering::Release);
        self.needs_reset.store(broken, Ordering::SeqCst);
        self.refresh_line();
    }
}
