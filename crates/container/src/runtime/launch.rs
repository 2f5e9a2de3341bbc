//! Making the first process, in its namespaces and cgroups.

use std::io::ErrorKind;
use std::os::fd::AsFd;

use super::gate::Gate;
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use crate::init::{self, Job, message};
use crate::namespaces::{self, Plan};
use crate::rootfs::cgroupfs;
use crate::spec::{NamespaceKind, Spec};
use crate::sys::clone::{Child, Side, exit_now, fork, unshare};
use crate::sys::socket::Channel;

/// A process that sets itself up, and the channel to it.
pub struct Launched {
    pub child: Child,
    pub channel: Channel,
}

/// Makes it. With only new namespaces, or only joined ones, one `clone3` does.
/// With a user namespace among joined ones an intermediate process enters them
/// in order and makes the first one as its sibling.
pub fn launch(mut job: Job<'_>) -> Result<Launched> {
    let (ours, theirs) = Channel::pair().during(|| "make a socket pair")?;
    let plan = job.plan;
    if plan.needs_stages() {
        job.joined = true;
        return launch_in_stages(job, ours, theirs);
    }
    plan.join_pid()?;
    let spec = job.spec;
    let cgroup = job.cgroup;
    let directory = cgroup.open_for_clone();
    if !job.cgroups_later.get() {
        job.entrances = cgroup.entrances(directory.is_some(), "")?;
    }
    let into = directory.as_ref().map(AsFd::as_fd);
    // SAFETY: the runtime has one thread.
    let made = match unsafe { fork(plan.at_clone, into) } {
        Ok(side) => Ok(side),
        // A v2 cgroup that takes no processes by clone (or a kernel before 5.7):
        // the process is moved afterwards.
        Err(e) if into.is_some() && e.raw_os_error() != Some(libc::ENOSPC) => {
            job.entrances = cgroup.entrances(false, "")?;
            // SAFETY: as above.
            unsafe { fork(plan.at_clone, None) }
        }
        Err(e) => Err(e),
    };
    match made.map_err(namespaces::explain)? {
        Side::Child => {
            drop(ours);
            init::run(job, theirs)
        }
        Side::Parent(child) => {
            drop(theirs);
            let launched = Launched { child, channel: ours };
            launched.finish(spec).inspect_err(|_| launched.child.kill())?;
            Ok(launched)
        }
    }
}

impl Launched {
    /// Says that the cgroups are there, to a process that was made before them. One that is
    /// gone has said why, which is heard later.
    pub fn tell_of_cgroups(&self, cgroup: &Cgroup, spec: &Spec) -> Result<()> {
        let entrances = cgroup.entrances(false, "")?;
        let parts = cgroupfs::take_parts(spec, cgroup)?;
        let fds: Vec<_> = entrances.files().chain(parts.iter().map(AsFd::as_fd)).collect();
        match self.channel.send_many(&[message::CGROUPS], &fds) {
            Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                Ok(())
            }
            other => other.during(|| "hand over the cgroups"),
        }
    }

    /// What the runtime does for a process that it made directly.
    fn finish(&self, spec: &Spec) -> Result<()> {
        if spec.makes(NamespaceKind::User) {
            map_ids(self.child.pid, spec)?;
            self.channel
                .send(&[message::GO], None)
                .during(|| "talk to the container's first process")?;
        }
        adjust_oom_score(spec, self.child.pid)
    }
}

fn map_ids(pid: i32, spec: &Spec) -> Result<()> {
    namespaces::write_mappings(pid, &spec.linux.uid_mappings, &spec.linux.gid_mappings, true)
}

fn adjust_oom_score(spec: &Spec, pid: i32) -> Result<()> {
    let Some(adjust) = spec.process.as_ref().and_then(|p| p.oom_score_adj) else {
        return Ok(());
    };
    match std::fs::write(format!("/proc/{pid}/oom_score_adj"), adjust.to_string()) {
        // Only the host's root may make a process less likely to be chosen.
        Err(e) if e.raw_os_error() == Some(libc::EACCES) && !is_host_root() => {
            tracing::warn!("not enforced on this host: process.oomScoreAdj {adjust}");
            Ok(())
        }
        other => other.during(|| format!("set process.oomScoreAdj to {adjust}")),
    }
}

fn is_host_root() -> bool {
    rustix::process::geteuid().is_root() && !namespaces::in_user_namespace()
}

fn launch_in_stages(mut job: Job<'_>, ours: Channel, theirs: Channel) -> Result<Launched> {
    let (spec, plan) = (job.spec, job.plan);
    job.entrances = job.cgroup.entrances(false, "")?;
    // SAFETY: the runtime has one thread.
    match unsafe { fork(0, None) }.during(|| "clone3 an intermediate process")? {
        Side::Child => {
            drop(ours);
            intermediate(job, plan, theirs)
        }
        Side::Parent(stage) => {
            drop(theirs);
            match attend(&stage, &ours, spec) {
                Ok(child) => {
                    let _ = stage.wait();
                    Ok(Launched { child, channel: ours })
                }
                Err(e) => {
                    stage.kill();
                    Err(e)
                }
            }
        }
    }
}

/// Answers an intermediate process until it has made the first one.
fn attend(stage: &Child, channel: &Channel, spec: &Spec) -> Result<Child> {
    loop {
        let (text, _) = channel.receive().during(|| "listen to an intermediate process")?;
        match text.first() {
            Some(&message::MAP_IDS) => {
                map_ids(stage.pid, spec)?;
                channel.send(&[message::GO], None).during(|| "talk to an intermediate process")?;
            }
            Some(&message::PID) => {
                let pid = text
                    .get(1..5)
                    .and_then(|b| b.try_into().ok())
                    .map(i32::from_ne_bytes)
                    .unwrap_or(0);
                let child = Child::adopt(pid).during(|| "hold the first process")?;
                return match adjust_oom_score(spec, pid) {
                    Ok(()) => Ok(child),
                    Err(e) => {
                        child.kill();
                        Err(e)
                    }
                };
            }
            Some(&message::ERROR) => {
                let (code, text) = init::decode_error(&text);
                return Err(Error::Init { code, text });
            }
            _ => {
                let text = "an intermediate process ended early".into();
                return Err(Error::Init { code: 1, text });
            }
        }
    }
}

/// The intermediate process: namespaces in order, then the first process as a
/// child of the runtime.
fn intermediate(job: Job<'_>, plan: &Plan, channel: Channel) -> ! {
    let fail = |e: &Error| -> ! {
        let _ = channel.send(&init::encode_error(e), None);
        exit_now(1)
    };
    let runtime = init::Runtime::new(&channel);
    let mut flags = plan.at_clone;
    let entered = plan.join_in_stages().and_then(|()| {
        if flags & libc::CLONE_NEWUSER as u64 != 0 {
            flags &= !(libc::CLONE_NEWUSER as u64);
            unshare(libc::CLONE_NEWUSER).during(|| "make a user namespace")?;
            runtime.ask(message::MAP_IDS)?;
        }
        init::become_root()?;
        Gate::new()
    });
    let gate = match entered {
        Ok(gate) => gate,
        Err(e) => fail(&e),
    };
    // SAFETY: this copy of the runtime has one thread.
    match unsafe { fork(flags | libc::CLONE_PARENT as u64, None) } {
        Ok(Side::Child) => {
            gate.wait();
            init::run(job, channel)
        }
        Ok(Side::Parent(child)) => {
            let mut text = vec![message::PID];
            text.extend_from_slice(&child.pid.to_ne_bytes());
            let sent = channel.send(&text, None).is_ok();
            exit_now(i32::from(!sent))
        }
        Err(source) => fail(&namespaces::explain(source)),
    }
}
