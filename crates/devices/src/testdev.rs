//! Devices for test programs: the debug-exit port, with which a guest leaves and
//! tells how it went, and the test device that the kvm-unit-tests suite looks for.

use std::sync::{Arc, Mutex, PoisonError};

use crate::bus::{Bus, BusError, Device, value};
use crate::irq::IrqLine;
use crate::power::{PowerRequest, PowerSink};

pub const DEBUG_EXIT_PORT: u64 = 0xf4;
pub const DEBUG_EXIT_COUNT: u64 = 4;

/// A port: writing `v` ends the machine with exit code `(v << 1) | 1`.
pub struct DebugExit {
    power: Arc<dyn PowerSink>,
}

impl DebugExit {
    pub fn new(power: Arc<dyn PowerSink>) -> Arc<Self> {
        Arc::new(Self { power })
    }
}

impl Device for DebugExit {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, data: &[u8]) {
        let code = (value(data) as u32) << 1 | 1;
        self.power.request(PowerRequest::Exit(code));
    }
}

/// Where the test device's parts are.
const REGISTER_PORTS: u64 = 0xe0;
const FLUSH_PORTS: u64 = 0xe4;
const BYTE_REGISTER_PORTS: u64 = 0xe8;
const LINE_PORTS: u64 = 0x2000;
const LINES: u64 = 24;
const MEMORY: u64 = 0xff00_0000;
const MEMORY_LENGTH: usize = 0x1_0000;
/// Added to offsets in the memory, to tell it from ports.
const MEMORY_OFFSET: u64 = 1 << 32;

struct TestState {
    register: [u8; 4],
    memory: Box<[u8]>,
}

/// The test device: a register at two places, a port for each interrupt line, and
/// 64 KiB of memory that is not RAM.
pub struct TestDevice {
    lines: Vec<Arc<dyn IrqLine>>,
    state: Mutex<TestState>,
}

impl TestDevice {
    /// `lines` are the inputs of interrupts 0 and up.
    pub fn new(lines: Vec<Arc<dyn IrqLine>>) -> Arc<Self> {
        let state = TestState { register: [0; 4], memory: vec![0; MEMORY_LENGTH].into() };
        Arc::new(Self { lines, state: Mutex::new(state) })
    }

    /// Puts all parts on the buses.
    pub fn attach(self: &Arc<Self>, ports: &Bus, memory: &Bus) -> Result<(), BusError> {
        for base in [REGISTER_PORTS, FLUSH_PORTS, BYTE_REGISTER_PORTS] {
            ports.insert(base, 4, base, self.clone())?;
        }
        ports.insert(LINE_PORTS, LINES, LINE_PORTS, self.clone())?;
        memory.insert(MEMORY, MEMORY_LENGTH as u64, MEMORY_OFFSET, self.clone())
    }

    /// The bytes that an access in the register or the memory means.
    fn with_bytes(&self, offset: u64, length: usize, access: impl FnOnce(&mut [u8])) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = match offset {
            MEMORY_OFFSET.. => {
                let start = (offset - MEMORY_OFFSET) as usize;
                start.checked_add(length).and_then(|end| state.memory.get_mut(start..end))
            }
            REGISTER_PORTS..FLUSH_PORTS | BYTE_REGISTER_PORTS..0xec => {
                let start = (offset & 3) as usize;
                state.register.get_mut(start..start + length)
            }
            _ => None,
        };
        bytes.map(access).is_some()
    }
}

impl Device for TestDevice {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let length = data.len();
        if !self.with_bytes(offset, length, |bytes| data.copy_from_slice(bytes)) {
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match offset {
            LINE_PORTS..MEMORY_OFFSET => {
                let line = self.lines.get((offset - LINE_PORTS) as usize);
                if let (Some(line), Some(level)) = (line, data.first()) {
                    line.set(*level != 0);
                }
            }
            // Flushing a page asks the hypervisor to map it anew: here nothing of the
            // guest's is cached that a flush would help.
            FLUSH_PORTS..BYTE_REGISTER_PORTS => {}
            _ => {
                self.with_bytes(offset, data.len(), |bytes| bytes.copy_from_slice(data));
            }
        }
    }
}

#[cfg(test)]
mod tests;
