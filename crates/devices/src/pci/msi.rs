//! MSI: one message, whose address and data the guest writes into configuration space.

use guise_engine::Msi;

use super::config::{ConfigError, ConfigSpace};
use crate::bus::value;

const CAPABILITY_MSI: u8 = 0x05;
const ENABLE: u64 = 1 << 0;
const WIDE_ADDRESS: u8 = 1 << 7;

/// Control, address in two halves, data.
const LENGTH: usize = 12;

/// Where a function's MSI capability is.
#[derive(Clone, Copy, Debug)]
pub struct MsiCapability(u16);

impl MsiCapability {
    /// Adds the capability: a single message with a 64-bit address, which cannot be masked.
    pub fn add(config: &mut ConfigSpace) -> Result<Self, ConfigError> {
        let mut body = [0; LENGTH];
        body[0] = WIDE_ADDRESS;
        let writable =
            [ENABLE as u8, 0, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        Ok(Self(config.add_capability(CAPABILITY_MSI, &body, &writable)?))
    }

    /// The message, if the guest chose it over INTx.
    pub fn message(self, config: &ConfigSpace) -> Option<Msi> {
        let mut body = [0; LENGTH];
        config.read(self.0 + 2, &mut body);
        let (control, address, data) = (&body[..2], &body[2..10], &body[10..]);
        let message = Msi { address: value(address), data: value(data) as u32 };
        (value(control) & ENABLE != 0).then_some(message)
    }
}

#[cfg(test)]
mod tests;
