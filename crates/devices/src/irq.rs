//! Interrupt lines and messages: how a device asks for attention.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use guise_engine::Msi;

/// A wire to an interrupt controller. Setting the level that it has is harmless.
pub trait IrqLine: Send + Sync {
    fn set(&self, level: bool);

    /// A rising edge that leaves the line low.
    fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl<F: Fn(bool) + Send + Sync> IrqLine for F {
    fn set(&self, level: bool) {
        self(level);
    }
}

/// Where message-signalled interrupts go.
pub trait MsiSink: Send + Sync {
    fn signal(&self, msi: Msi);
}

impl<F: Fn(Msi) + Send + Sync> MsiSink for F {
    fn signal(&self, msi: Msi) {
        self(msi);
    }
}

/// One wire into several controllers: an ISA interrupt is an input of the 8259 pair
/// and of the I/O APIC.
pub struct Fanout {
    lines: Vec<Arc<dyn IrqLine>>,
}

impl Fanout {
    pub fn new(lines: Vec<Arc<dyn IrqLine>>) -> Self {
        Self { lines }
    }
}

impl IrqLine for Fanout {
    fn set(&self, level: bool) {
        for line in &self.lines {
            line.set(level);
        }
    }
}

/// A wire that several sources hold up together: it is high while any of them is, as
/// PCI's INTx are.
pub struct SharedLine {
    line: Arc<dyn IrqLine>,
    /// How many sources are high.
    high: Mutex<usize>,
}

impl SharedLine {
    pub fn new(line: Arc<dyn IrqLine>) -> Arc<Self> {
        Arc::new(Self { line, high: Mutex::new(0) })
    }

    /// A new source, low. When it is dropped it lets go of the wire.
    pub fn source(self: &Arc<Self>) -> Arc<dyn IrqLine> {
        Arc::new(Source { shared: self.clone(), level: AtomicBool::new(false) })
    }
}

struct Source {
    shared: Arc<SharedLine>,
    level: AtomicBool,
}

impl IrqLine for Source {
    fn set(&self, level: bool) {
        let mut high = self.shared.high.lock().unwrap_or_else(PoisonError::into_inner);
        if self.level.swap(level, Ordering::Relaxed) == level {
            return;
        }
        // The wire changes under the lock, so that two sources cannot leave it at the
        // level of the one that was overtaken.
        if level {
            *high += 1;
            if *high == 1 {
                self.shared.line.set(true);
            }
        } else {
            *high -= 1;
            if *high == 0 {
                self.shared.line.set(false);
            }
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests;
