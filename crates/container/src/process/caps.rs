//! Capability sets by name.

use std::collections::BTreeSet;

use crate::error::{Context, Error, Result};
use crate::spec::Capabilities;
use crate::sys::cred;

/// The kernel's capabilities in the order of their numbers.
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// `CAP_SYS_ADMIN` as a bit.
pub const SYS_ADMIN: u64 = 1 << 21;

/// The five sets, each bit a capability's number.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Sets {
    pub bounding: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub permitted: u64,
    pub ambient: u64,
}

/// The number of a capability.
pub fn number(name: &str) -> Option<u32> {
    NAMES.iter().position(|n| n.eq_ignore_ascii_case(name)).map(|n| n as u32)
}

/// A set from names; those that are not known are left out.
fn parse(names: &[String]) -> u64 {
    names.iter().filter_map(|name| number(name)).fold(0, |set, n| set | 1 << n)
}

/// Refuses sets that no kernel grants, before anything is made: a process can make inheritable
/// only what is in its bounding set. Names that are not known are reported, as the specification
/// demands.
pub fn check(capabilities: &Capabilities) -> Result<()> {
    report_unknown(capabilities);
    let sets = Sets::of(Some(capabilities));
    let beyond = sets.inheritable & !sets.bounding;
    if beyond == 0 {
        return Ok(());
    }
    Err(Error::config(
        "process.capabilities.inheritable",
        format!("{} is not in the bounding set: Operation not permitted (EPERM)", names(beyond)),
    ))
}

fn report_unknown(c: &Capabilities) {
    let unknown: BTreeSet<&str> =
        [&c.bounding, &c.effective, &c.inheritable, &c.permitted, &c.ambient]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .filter(|name| number(name).is_none())
            .collect();
    if !unknown.is_empty() {
        let list: Vec<&str> = unknown.into_iter().collect();
        tracing::warn!("ignoring unknown or unavailable capabilities: [{}]", list.join(" "));
    }
}

impl Sets {
    /// Whether the program's user has `CAP_SYS_ADMIN` after an exec.
    pub fn keep_sys_admin(&self, uid: u32) -> bool {
        (uid == 0 && self.bounding & SYS_ADMIN != 0) || self.ambient & SYS_ADMIN != 0
    }

    /// Whether a program that starts with these sets could ever have `CAP_SYS_ADMIN`.
    pub fn lead_to_sys_admin(&self) -> bool {
        (self.bounding | self.permitted | self.ambient | self.inheritable) & SYS_ADMIN != 0
    }

    /// The sets of a configuration; an absent section grants nothing.
    pub fn of(capabilities: Option<&Capabilities>) -> Self {
        let Some(c) = capabilities else { return Sets::default() };
        Sets {
            bounding: parse(&c.bounding),
            effective: parse(&c.effective),
            inheritable: parse(&c.inheritable),
            permitted: parse(&c.permitted),
            ambient: parse(&c.ambient),
        }
    }

    /// Drops everything that is not in the bounding set from it. Has to come
    /// before the user changes: it needs `CAP_SETPCAP`.
    pub fn apply_bounding(&self) -> Result<()> {
        for capability in (0..64).filter(|n| self.bounding & 1 << n == 0) {
            let Err(refused) = cred::drop_from_bounding_set(capability) else { continue };
            match cred::in_bounding_set(capability) {
                // The kernel knows no such capability, and none after it.
                Err(_) => break,
                Ok(false) => {}
                Ok(true) => {
                    return Err(refused)
                        .during(|| format!("drop {} from the bounding set", name(capability)));
                }
            }
        }
        Ok(())
    }

    /// Sets the thread's own sets, after the user changed, out of those it
    /// holds. What the runtime does not have itself cannot be given and is
    /// reported.
    pub fn apply(&self, held: u64) -> Result<()> {
        let missing = self.permitted & !held;
        if missing != 0 {
            tracing::warn!("{} cannot be granted on this host", names(missing));
        }
        let permitted = self.permitted & held;
        let effective = self.effective & permitted;
        let inheritable = self.inheritable & (held | permitted);
        cred::set_capabilities(effective, permitted, inheritable)
            .during(|| "set the capabilities")?;
        cred::clear_ambient_set().during(|| "clear the ambient capabilities")?;
        for capability in 0..64 {
            if self.ambient & 1 << capability == 0 {
                continue;
            }
            if let Err(e) = cred::raise_ambient(capability) {
                // Commonly asked for without being inheritable, which the kernel
                // wants; the program then starts without it, as it would anywhere.
                tracing::debug!("{} cannot be made ambient: {e}", name(capability));
            }
        }
        Ok(())
    }
}

fn name(capability: u32) -> &'static str {
    NAMES.get(capability as usize).copied().unwrap_or("an unnamed capability")
}

fn names(set: u64) -> String {
    let list: Vec<&str> = (0..64).filter(|n| set & 1 << n != 0).map(name).collect();
    list.join(", ")
}
