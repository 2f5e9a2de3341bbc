//! A board without devices for guests of a few instructions: it remembers the port that
//! was written to last and stops the vCPU there, so that a handler can tell its number.
//! Reads find ones.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use guise_engine::{Platform, VcpuHandle};

#[derive(Default)]
pub struct PortBoard {
    pub port: AtomicU32,
    pub vcpu: OnceLock<Arc<dyn VcpuHandle>>,
}

impl Platform for PortBoard {
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn port_write(&self, port: u16, _: &[u8]) {
        self.port.store(port.into(), Ordering::Relaxed);
        if let Some(vcpu) = self.vcpu.get() {
            vcpu.kick();
        }
    }

    fn memory_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn memory_write(&self, _: u64, _: &[u8]) {}

    fn acknowledge_interrupt(&self) -> Option<u8> {
        None
    }

    fn end_of_interrupt(&self, _: u8) {}
}
