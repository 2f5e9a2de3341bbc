//! Whether this host has the memory that an instance asks for.
//!
//! Memory that instances are promised is not promised twice, and some is kept for the
//! host. An instance without a limit is promised none.

pub mod processors;

use guise_api::{ApiError, Code, Instance};

/// How much memory is given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Kept for the host; otherwise 2 GiB or a tenth, whichever is less.
    pub kept: Option<u64>,
    /// More may be promised than there is.
    pub overcommit: bool,
}

impl Rules {
    /// Refuses an instance whose memory is not there; `others` are those that run.
    pub fn admit(
        &self,
        instance: &Instance,
        others: &[u64],
        host_memory: u64,
    ) -> Result<(), ApiError> {
        const MOST_KEPT: u64 = 2 << 30;
        let Some(wanted) = instance.spec.resources.memory_bytes.filter(|_| !self.overcommit) else {
            return Ok(());
        };
        let kept = self.kept.unwrap_or_else(|| MOST_KEPT.min(host_memory / 10));
        let promised = others.iter().fold(kept, |sum, bytes| sum.saturating_add(*bytes));
        let left = host_memory.saturating_sub(promised);
        if wanted <= left {
            return Ok(());
        }
        let mib = |bytes: u64| bytes >> 20;
        Err(ApiError::new(
            Code::Exhausted,
            format!(
                "{} wants {} MiB of memory, and {} MiB are left of this host's {} MiB",
                instance.name,
                mib(wanted),
                mib(left),
                mib(host_memory)
            ),
        )
        .hint(
            "give it less with --memory, stop others, or start the daemon with GUISE_OVERCOMMIT=1",
        )
        .exit_code(125))
    }
}

/// This host's memory in bytes.
pub fn host_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit.max(1)))
}

#[cfg(test)]
mod tests;
