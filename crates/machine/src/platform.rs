//! What answers an instruction in flight: the two buses and the interrupt
//! controllers, with a count of each kind of access for `--stats`.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use guise_devices::bus::Bus;
use guise_engine::Platform;

use crate::control::{Control, Ending};

/// Interrupt controllers as an engine needs them.
pub trait InterruptControllers: Send + Sync {
    fn acknowledge(&self) -> Option<u8>;
    fn end_of_interrupt(&self, vector: u8);
}

pub struct Buses {
    pub ports: Arc<Bus>,
    pub memory: Arc<Bus>,
    controllers: Box<dyn InterruptControllers>,
    counts: Counts,
    milestone: Milestone,
}

/// Ends the run after a number of accesses.
struct Milestone {
    /// How many are left; none is counted where it is negative.
    left: AtomicI64,
    control: Arc<Control>,
}

impl Milestone {
    fn count(&self) {
        if self.left.load(Ordering::Relaxed) > 0 && self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.control.end(Ending::Reached);
        }
    }
}

#[derive(Default)]
struct Counts {
    port_reads: AtomicU64,
    port_writes: AtomicU64,
    memory_reads: AtomicU64,
    memory_writes: AtomicU64,
    acknowledges: AtomicU64,
    ends_of_interrupt: AtomicU64,
}

impl Buses {
    pub fn new(
        ports: Arc<Bus>,
        memory: Arc<Bus>,
        controllers: Box<dyn InterruptControllers>,
        control: Arc<Control>,
    ) -> Self {
        let milestone = Milestone { left: AtomicI64::new(0), control };
        Buses { ports, memory, controllers, counts: Counts::default(), milestone }
    }

    /// Ends the run with [`Ending::Reached`] after this many accesses from now on.
    pub fn stop_after(&self, accesses: u64) {
        self.milestone.left.store(accesses.try_into().unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// How often the guest came here, by reason.
    pub fn counts(&self) -> Vec<(String, u64)> {
        let counts = &self.counts;
        [
            ("port_read", &counts.port_reads),
            ("port_write", &counts.port_writes),
            ("memory_read", &counts.memory_reads),
            ("memory_write", &counts.memory_writes),
            ("interrupt_acknowledge", &counts.acknowledges),
            ("end_of_interrupt", &counts.ends_of_interrupt),
        ]
        .map(|(name, count)| (name.to_owned(), count.load(Ordering::Relaxed)))
        .into()
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Platform for Buses {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        count(&self.counts.port_reads);
        self.milestone.count();
        self.ports.read(u64::from(port), data);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        count(&self.counts.port_writes);
        self.milestone.count();
        self.ports.write(u64::from(port), data);
    }

    fn memory_read(&self, address: u64, data: &mut [u8]) {
        count(&self.counts.memory_reads);
        self.milestone.count();
        self.memory.read(address, data);
    }

    fn memory_write(&self, address: u64, data: &[u8]) {
        count(&self.counts.memory_writes);
        self.milestone.count();
        self.memory.write(address, data);
    }

    fn acknowledge_interrupt(&self) -> Option<u8> {
        count(&self.counts.acknowledges);
        self.controllers.acknowledge()
    }

    fn end_of_interrupt(&self, vector: u8) {
        count(&self.counts.ends_of_interrupt);
        self.controllers.end_of_interrupt(vector);
    }
}
