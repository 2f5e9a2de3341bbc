//! What this host can do, what it cannot, and what to change: `guise doctor`.
//!
//! Each check tries the thing itself where that is possible without leaving a trace
//! (a namespace is unshared, a virtual machine is run), because that a feature exists
//! says little of whether this user may use it here. A check that needs text from
//! the kernel takes it as an argument, so that tests can pass what other hosts say.

mod checks;
mod report;

pub use report::{Finding, Group, Report, Status};

/// Looks at everything. Takes a fraction of a second and changes nothing.
pub fn examine() -> Report {
    Report {
        groups: vec![
            checks::processor::examine(),
            checks::virtualization::examine(),
            checks::confidential::examine(),
            checks::namespaces::examine(),
            checks::cgroups::examine(),
            checks::memory::examine(),
            checks::kernel::examine(),
            checks::limits::examine(),
        ],
    }
}
