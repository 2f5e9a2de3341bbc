//! What the PCI bus asks of a function.

use super::config::ConfigSpace;

/// A PCI function. The host bridge forwards accesses to its configuration space and
/// keeps its BARs on the buses where the guest puts them.
pub trait PciFunction: Send + Sync {
    fn config(&self) -> &ConfigSpace;

    /// Reads bytes of the 4 KiB configuration space. A function with registers that
    /// do more than keep their values looks at them here, and in `config_write`.
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.config().write(offset, data);
    }

    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]);
    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]);

    /// The bus was reset: everything is as after power-on, except for the addresses
    /// of BARs. To be called with [`ConfigSpace::reset`] among its effects.
    fn reset(&self);
}
