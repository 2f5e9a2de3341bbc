//! The way from "inside the container, as its root" to the program itself.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use super::caps::Sets;
use super::landlock::Landlock;
use super::{labels, limits, lookup, schedule};
use crate::error::{Context, Error, Result};
use crate::rootfs::proc::PrivateProc;
use crate::seccomp::Filter;
use crate::spec::{Personality, Process};
use crate::sys::exec::{Program, Trampoline};
use crate::sys::{cred, files};

/// Everything the final steps need; prepared before the container starts.
pub struct Entry<'a> {
    pub process: &'a Process,
    pub filter: Option<&'a Filter>,
    /// Those of the container, which may hold Landlock rules.
    pub annotations: &'a BTreeMap<String, String>,
    pub personality: Option<&'a Personality>,
    pub proc: &'a PrivateProc,
    /// Extra environment, such as the socket-activation process id.
    pub listen_fds: u32,
    pub preserve_fds: u32,
    pub new_keyring: Option<&'a str>,
    /// Groups cannot be set in a user namespace where setgroups is denied.
    pub may_set_groups: bool,
}

/// What happens while the process becomes the program and is not its own
/// affair: it asks the runtime.
pub trait Outside {
    /// Sets resource limits with the runtime's privileges.
    fn set_limits(&self) -> Result<()>;
    /// Hands the seccomp listener to whoever answers its questions.
    fn seccomp_listener(&self, listener: OwnedFd) -> Result<()>;
}

impl Entry<'_> {
    /// Becomes the program; returns only with the reason why that failed.
    pub fn enter(&self, outside: &dyn Outside, report: BorrowedFd<'_>) -> Error {
        match self.try_enter(outside, report) {
            Err(e) => e,
            Ok(never) => match never {},
        }
    }

    fn try_enter(
        &self,
        outside: &dyn Outside,
        report: BorrowedFd<'_>,
    ) -> Result<std::convert::Infallible> {
        let process = self.process;
        if let Some(name) = self.new_keyring {
            new_keyring(name)?;
        }
        if let Some(profile) = process.apparmor_profile.as_deref().filter(|p| !p.is_empty()) {
            labels::apply_apparmor(self.proc, profile)?;
        }
        if let Some(label) = process.selinux_label.as_deref().filter(|l| !l.is_empty()) {
            labels::apply_selinux(self.proc, label)?;
        }
        if let Some(scheduler) = process.scheduler.as_ref().filter(|s| !s.policy.is_empty()) {
            schedule::apply_scheduler(scheduler)?;
        }
        if let Some(priority) = process.io_priority.as_ref().filter(|p| !p.class.is_empty()) {
            schedule::apply_io_priority(priority)?;
        }
        if let Some(personality) = self.personality {
            schedule::apply_personality(personality)?;
        }
        if !limits::apply_own(&process.rlimits)? {
            outside.set_limits()?;
        }
        let sets = Sets::of(process.capabilities.as_ref());
        sets.apply_bounding()?;
        let early = self.filter.filter(|f| {
            // The trampoline may load a filter with no_new_privs, or when the
            // program is privileged itself.
            f.has_listener()
                || !(process.no_new_privileges || sets.keep_sys_admin(process.user.uid))
        });
        if process.no_new_privileges {
            cred::set_no_new_privileges().during(|| "set no_new_privs")?;
        }
        self.change_user()?;
        enter_directory(&process.cwd)?;
        let path = lookup::find(&process.args[0], &process.env)?;
        let args = strings(&process.args)?;
        let env = self.environment()?;
        let program = Program {
            path: &path,
            args: &args,
            env: &env,
            filter: self.filter.filter(|_| early.is_none()).map(|f| (f.program(), f.flags())),
            report: Some(report).filter(|_| early.is_none()),
        };
        let trampoline = Trampoline::new(&program).during(|| "prepare the program's start")?;
        if let Some(landlock) = Landlock::of(self.annotations)? {
            // All that is opened after this is the program.
            landlock.apply()?;
        }
        let held = cred::permitted_capabilities().during(|| "read the capabilities")?;
        files::close_on_exec_from(3 + self.preserve_fds)
            .during(|| "mark descriptors to be closed")?;
        files::reset_signals();
        let Some(filter) = early else {
            sets.apply(held)?;
            let source = trampoline.jump(Some(report));
            return Err(Error::ProgramNotExecutable { program: process.args[0].clone(), source });
        };
        // From the loading on every call has to be one that the profile allows:
        // setting capabilities, and executing.
        let name = trampoline.name();
        cred::set_capabilities(held, held, 0).during(|| "raise the capabilities")?;
        if let Some(listener) = filter.load().during(
            || "load the seccomp filter (without process.noNewPrivileges that needs CAP_SYS_ADMIN)",
        )? {
            outside.seccomp_listener(listener)?;
        }
        sets.apply(held)?;
        let source = match name {
            Some(name) => trampoline.jump_by_name(&name),
            None => trampoline.jump(None),
        };
        Err(Error::ProgramNotExecutable { program: process.args[0].clone(), source })
    }

    /// The program's environment, with what every program expects.
    fn environment(&self) -> Result<Vec<CString>> {
        let process = self.process;
        let mut env = strings(last_of_each(&process.env))?;
        if !process.env.iter().any(|e| e.starts_with("HOME=")) {
            env.push(home(process.user.uid)?);
        }
        if self.listen_fds > 0 {
            env.push(CString::new(format!("LISTEN_FDS={}", self.listen_fds)).unwrap_or_default());
            let pid = std::process::id();
            env.push(CString::new(format!("LISTEN_PID={pid}")).unwrap_or_default());
        }
        Ok(env)
    }

    fn change_user(&self) -> Result<()> {
        let user = &self.process.user;
        if let Some(mask) = user.umask {
            cred::set_umask(mask);
        }
        cred::keep_capabilities(true).during(|| "keep the capabilities")?;
        if self.may_set_groups {
            cred::set_groups(&user.additional_gids)
                .during(|| format!("set the groups {:?}", user.additional_gids))?;
        } else if !user.additional_gids.is_empty() {
            return Err(Error::unsupported(
                "process.user.additionalGids",
                "without newgidmap a user namespace cannot set groups: leave them out",
            ));
        }
        cred::set_gid(user.gid).during(|| format!("become group {}", user.gid))?;
        cred::set_uid(user.uid).during(|| format!("become user {}", user.uid))?;
        cred::keep_capabilities(false).during(|| "stop keeping the capabilities")?;
        // The change of user made the process dumpable or not by its own rules.
        cred::set_undumpable().during(|| "keep others from tracing this process")
    }
}

/// Changes to the program's directory and makes sure that it is inside: a
/// descriptor that leaked from the host and is reached through `/proc/self/fd`
/// would be a working directory outside (CVE-2024-21626).
fn enter_directory(path: &str) -> Result<()> {
    rustix::process::chdir(path).during(|| format!("enter {path} (process.cwd)"))?;
    let now = std::env::current_dir().during(|| format!("find out where {path} is"))?;
    if !now.starts_with("/") || now.starts_with(Path::new("(unreachable)")) {
        return Err(Error::config("process.cwd", format!("{path} leads out of the container")));
    }
    Ok(())
}

fn new_keyring(name: &str) -> Result<()> {
    let name = CString::new(name).unwrap_or_default();
    match cred::new_session_keyring(&name) {
        // A profile that runs us may forbid it; the host's keys are then as far
        // away as that profile puts them.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(()),
        Err(e) => Err(e).during(|| "join a new session keyring"),
        Ok(serial) => {
            if let Err(e) = cred::let_owner_search_keyring(serial) {
                tracing::debug!("the session keyring keeps its permissions: {e}");
            }
            Ok(())
        }
    }
}

/// The variables without those that a later one of the same name takes the place of: most
/// programs see the first of two, and who adds one means the last.
fn last_of_each(env: &[String]) -> impl Iterator<Item = &String> {
    let name = |variable: &String| variable.split('=').next().unwrap_or_default().to_owned();
    let last: BTreeMap<String, usize> = env.iter().map(name).zip(0..).collect();
    env.iter().enumerate().filter(move |(at, it)| last[&name(it)] == *at).map(|(_, it)| it)
}

fn strings<'a>(list: impl IntoIterator<Item = &'a String>) -> Result<Vec<CString>> {
    list.into_iter()
        .map(|s| {
            CString::new(s.as_str())
                .map_err(|_| Error::config("process", "a string contains a NUL byte"))
        })
        .collect()
}

/// The user's home by the container's own list of users, read with a bound.
fn home(uid: u32) -> Result<CString> {
    use std::io::Read;
    const BOUND: u64 = 1 << 20;
    let mut text = String::new();
    if let Ok(file) = std::fs::File::open("/etc/passwd")
        && file.metadata().is_ok_and(|m| m.is_file())
    {
        let _ = file.take(BOUND).read_to_string(&mut text);
    }
    let home = text
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|f| f.len() >= 6 && f[2].parse() == Ok(uid))
        .map_or("/", |f| f[5]);
    let home = if home.is_empty() { "/" } else { home };
    Ok(CString::new(format!("HOME={home}")).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    /// The report descriptor has to be one that a test can borrow.
    #[test]
    fn working_directory_outside_is_refused() {
        let (ours, _theirs) = crate::sys::socket::Channel::pair().unwrap();
        let inside = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&ours.as_fd()));
        assert!(super::enter_directory(&inside).is_err());
    }
}
