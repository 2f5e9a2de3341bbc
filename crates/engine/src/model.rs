//! CPU models: what the guest is told about its processor.
//!
//! A named model is a promise that both engines can keep, so that a machine
//! started on one can move to the other; `host` is all that this host and this
//! engine have together and moves only to an equal host.

use std::fmt;
use std::str::FromStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum CpuModel {
    /// x86-64 as of 2003: SSE2, CMPXCHG8B, no CMPXCHG16B.
    Baseline,
    /// The psABI's level 2: SSE4.2, POPCNT, CMPXCHG16B.
    V2,
    /// The psABI's level 3: AVX2, BMI1/2, FMA, MOVBE, XSAVE.
    V3,
    /// Whatever this host's processor and the engine can do together.
    Host,
}

impl CpuModel {
    pub const ALL: [CpuModel; 4] = [CpuModel::Baseline, CpuModel::V2, CpuModel::V3, CpuModel::Host];

    pub fn name(self) -> &'static str {
        match self {
            CpuModel::Baseline => "baseline",
            CpuModel::V2 => "x86-64-v2",
            CpuModel::V3 => "x86-64-v3",
            CpuModel::Host => "host",
        }
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No model has this name.
#[derive(Debug, thiserror::Error)]
#[error("there is no CPU model '{0}': it is baseline, x86-64-v2, x86-64-v3 or host")]
pub struct UnknownModel(String);

impl FromStr for CpuModel {
    type Err = UnknownModel;

    fn from_str(name: &str) -> Result<Self, UnknownModel> {
        Self::ALL
            .into_iter()
            .find(|model| model.name() == name)
            .ok_or_else(|| UnknownModel(name.to_owned()))
    }
}
