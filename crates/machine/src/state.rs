//! A saved machine without its RAM: engine-neutral, versioned.

use guise_engine::{VcpuState, VmState};
use serde::{Deserialize, Serialize};

use crate::MachineError;
use crate::board::BoardState;
use crate::machine::MachineConfig;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineState {
    pub version: u32,
    pub config: MachineConfig,
    pub clock_ns: u64,
    pub vm: VmState,
    pub vcpus: Vec<VcpuState>,
    pub board: BoardState,
}

impl MachineState {
    pub const VERSION: u32 = 1;

    /// Whether a machine of this configuration can become the saved one.
    pub(crate) fn check(&self, config: &MachineConfig) -> Result<(), MachineError> {
        let refuse = |reason: String| Err(MachineError::Saved(reason));
        if self.version != Self::VERSION {
            return refuse(format!(
                "it is of version {} and this is version {}",
                self.version,
                Self::VERSION
            ));
        }
        if self.config != *config {
            return refuse("it was made with another configuration".to_owned());
        }
        if self.vcpus.len() != config.vcpus as usize {
            return refuse(format!(
                "it holds {} vCPUs and has {} by its configuration",
                self.vcpus.len(),
                config.vcpus
            ));
        }
        Ok(())
    }
}
