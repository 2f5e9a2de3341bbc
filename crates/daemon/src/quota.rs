//! What projects may have together, and what of it is taken.
//!
//! An instance takes its share when it is made and gives it back when it is removed, in the
//! commit that does so. A project that limits something takes no instance that does not say
//! how much of it it wants, because that could take any amount.

use guise_api::{ApiError, Code, Guise, Instance, Project, Reserved};

use crate::Daemon;

/// What an instance takes.
fn share(instance: &Instance) -> Reserved {
    let resources = &instance.spec.resources;
    Reserved {
        instances: 1,
        vcpus: resources.cpus.unwrap_or(0.0),
        memory_bytes: resources.memory_bytes.unwrap_or(0),
        disk_bytes: resources.disk_bytes.unwrap_or(0),
    }
}

/// Sums of parts of processors, without what binary fractions add to them.
fn rounded(vcpus: f64) -> f64 {
    const PARTS: f64 = 1e6;
    (vcpus * PARTS).round() / PARTS
}

fn sum(one: Reserved, other: Reserved) -> Reserved {
    Reserved {
        instances: one.instances.saturating_add(other.instances),
        vcpus: rounded(one.vcpus + other.vcpus),
        memory_bytes: one.memory_bytes.saturating_add(other.memory_bytes),
        disk_bytes: one.disk_bytes.saturating_add(other.disk_bytes),
    }
}

/// What all of these take.
pub fn total<'a>(instances: impl Iterator<Item = &'a Instance>) -> Reserved {
    instances.map(share).fold(Reserved::default(), sum)
}

/// What is taken when this instance has gone.
pub fn release(reserved: Reserved, instance: &Instance) -> Reserved {
    let less = share(instance);
    Reserved {
        instances: reserved.instances.saturating_sub(less.instances),
        vcpus: rounded((reserved.vcpus - less.vcpus).max(0.0)),
        memory_bytes: reserved.memory_bytes.saturating_sub(less.memory_bytes),
        disk_bytes: reserved.disk_bytes.saturating_sub(less.disk_bytes),
    }
}

/// Whether the size of what an instance may write is a part of its project's quota, and not only
/// what somebody would like.
pub fn holds_disk(daemon: &Daemon, instance: &Instance) -> Result<bool, ApiError> {
    match instance.spec.resources.disk_bytes {
        Some(_) => Ok(daemon.objects.project(&instance.project)?.quota.disk_bytes.is_some()),
        None => Ok(false),
    }
}

/// What is taken when there is this instance too, if the project has room for it.
pub fn reserve(project: &Project, instance: &Instance) -> Result<Reserved, ApiError> {
    reserve_where(project, instance, guise_worker::own_disk_obstacle)
}

/// The same where this keeps what is no machine from having a disk of its own.
fn reserve_where(
    project: &Project,
    instance: &Instance,
    obstacle: impl FnOnce() -> Option<&'static str>,
) -> Result<Reserved, ApiError> {
    let (quota, resources) = (&project.quota, &instance.spec.resources);
    let unsaid = |what: &str, option: &str| {
        let name = &project.name;
        Err(ApiError::invalid(format!("project {name} limits {what}, and none was said"))
            .hint(format!("say how much: {option}")))
    };
    if quota.vcpus.is_some() && resources.cpus.is_none() {
        return unsaid("processors", "--cpus");
    }
    if quota.memory_bytes.is_some() && resources.memory_bytes.is_none() {
        return unsaid("memory", "--memory");
    }
    if quota.disk_bytes.is_some() {
        let (name, guise) = (&project.name, instance.status.guise);
        let is_machine = matches!(guise, Guise::Microvm | Guise::Vm);
        let why = if is_machine { None } else { obstacle() };
        if let Some(why) = why {
            let what = format!(
                "project {name} limits disk space, and an instance as {} can have no limit of it \
                 here: {why}",
                guise.name()
            );
            let hint = match guise {
                Guise::Wasm => "have a daemon of root's run it",
                _ => "run it as a machine: --as microvm, or --as vm",
            };
            return Err(ApiError::new(Code::Unsupported, what).hint(hint));
        }
        if resources.disk_bytes.is_none() {
            return unsaid("disk space", "--disk-size");
        }
    }
    let taken = sum(project.reserved, share(instance));
    let over = |what: &str, wanted: f64, limit: Option<f64>, unit: f64| match limit {
        Some(limit) if wanted > limit => Err(ApiError::new(
            Code::Exhausted,
            format!(
                "project {} may have {} {what}, and would have {}",
                project.name,
                limit / unit,
                wanted / unit
            ),
        )
        .hint("remove others, or have the project's quota raised: guise project set")),
        _ => Ok(()),
    };
    const MIB: f64 = 1048576.0;
    let number = |limit: Option<u64>| limit.map(|limit| limit as f64);
    over("instances", taken.instances as f64, number(quota.instances), 1.0)?;
    over("processors", taken.vcpus, quota.vcpus, 1.0)?;
    over("MiB of memory", taken.memory_bytes as f64, number(quota.memory_bytes), MIB)?;
    over("MiB of disk space", taken.disk_bytes as f64, number(quota.disk_bytes), MIB)?;
    Ok(taken)
}

#[cfg(test)]
mod tests;
