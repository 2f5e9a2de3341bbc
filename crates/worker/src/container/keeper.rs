//! A container's keeper: the process that has the rights to change the container.
//!
//! It is in the namespaces in which the root file system is mounted, starts programs by
//! `guise oci`, whose subreaper it is, and does to the container what the worker asks for.
//! Of what a guest has written it reads nothing: it opens files, and hands descriptors on. It
//! ends with the worker, and the worker with it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use guise_container::jail::{Ward, keep_only};
use guise_container::namespaces::{has_ids, ranges};
use guise_container::runtime;
use guise_container::spec::{Process, Resources};
use guise_container::state::Store;
use serde_json::Value;

use super::copies::{Copying, Way};
use super::line::{self, Ask, Told};
use super::oci::{Ends, Invocation, Running};
use super::own_disk;
use super::spec;
use super::user::{Accounts, User};
use crate::body::{BodyError, Program, Stats, failed, system, unsupported};
use crate::job::Job;

/// What making, changing and ending a container takes, and what is left to its programs: all
/// but what reaches the host's kernel, clock, devices and log.
const RIGHTS: u64 = {
    // CHOWN to SETPCAP
    let of_files_and_users = 0x1ff;
    let of_networks = 1 << 10 | 1 << 12 | 1 << 13;
    // SYS_CHROOT, SYS_PTRACE, SYS_ADMIN, SYS_RESOURCE
    let of_namespaces = 1 << 18 | 1 << 19 | 1 << 21 | 1 << 24;
    // MKNOD, AUDIT_WRITE, SETFCAP
    let of_programs = 1 << 27 | 1 << 29 | 1 << 31;
    of_files_and_users | of_networks | of_namespaces | of_programs
};

pub struct Keeper {
    job: Job,
    store: Store,
    base: Process,
    root: PathBuf,
    workload: OnceLock<Arc<Running>>,
    /// The namespace that programs are started in.
    network: Mutex<Option<OwnedFd>>,
    programs: Mutex<Programs>,
}

#[derive(Default)]
struct Programs {
    started: u64,
    running: HashMap<u64, Arc<Running>>,
}

fn of_runtime(error: guise_container::Error) -> BodyError {
    match error {
        // It was asked in the moment of its end.
        guise_container::Error::NotFound(_) => BodyError::NotRunning,
        error => failed(error),
    }
}

impl Keeper {
    pub fn new(job: &Job, root: PathBuf) -> Keeper {
        Keeper {
            job: job.clone(),
            store: Store::new(job.run.join("oci")),
            base: spec::base(job),
            root,
            workload: OnceLock::new(),
            network: Mutex::default(),
            programs: Mutex::default(),
        }
    }

    /// Does what is asked through the line, until the worker has ended.
    pub fn keep(self, line: &UnixStream, worker: &Ward) -> ! {
        // What cannot be given up stays, as before.
        if let Err(error) = keep_only(RIGHTS) {
            eprintln!("a container's keeper: {error}");
        }
        let keeper = Arc::new(self);
        while let Some(asked) = line::accept(line) {
            let keeper = keeper.clone();
            let served = std::thread::Builder::new().spawn(move || keeper.serve(&asked));
            // Who asked sees the connection end.
            if let Err(error) = served {
                eprintln!("serve a request: {error}");
            }
        }
        // What runs yet is for the daemon to end, which finds it by its state.
        std::process::exit(worker.wait().unwrap_or(1))
    }

    fn serve(&self, asked: &UnixStream) {
        let Ok(ask) = line::hear::<Ask>(asked) else { return };
        let told = self.answer(asked, ask).unwrap_or_else(|error| Told::Failed(error.into()));
        // Whoever asked is gone when this fails, and now and then on the way.
        let _ = line::say(asked, &told);
    }

    /// Does it; what is told last.
    fn answer(&self, asked: &UnixStream, ask: Ask) -> Result<Told, BodyError> {
        match ask {
            Ask::Accounts => self.accounts(asked)?,
            Ask::Start { user, plugged } => return self.start(asked, user, plugged),
            Ask::Open { program, user } => return self.open(asked, &program, user),
            Ask::Signal { program, signal } => {
                let running = self.programs().running.get(&program).cloned();
                running.ok_or(BodyError::NotRunning)?.signal(signal)?;
            }
            Ask::Pause => runtime::pause(&self.store, &self.job.id).map_err(of_runtime)?,
            Ask::Resume => runtime::resume(&self.store, &self.job.id).map_err(of_runtime)?,
            Ask::Stats => return self.stats().map(Told::Stats),
            Ask::Stop { grace } => self.stop(grace)?,
            Ask::CopyOut { path } => self.copy(asked, Way::Out, &path)?,
            Ask::CopyIn { path } => self.copy(asked, Way::In, &path)?,
            Ask::CleanUp => self.clean_up()?,
            Ask::Leave => {
                let socket = self.job.place().socket();
                std::fs::remove_file(socket).map_err(system("remove the socket"))?;
            }
        }
        Ok(Told::Done)
    }

    fn programs(&self) -> MutexGuard<'_, Programs> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn workload(&self) -> Result<&Arc<Running>, BodyError> {
        self.workload.get().ok_or(BodyError::NotRunning)
    }

    fn invocation(&self, command: &str) -> (u64, Invocation) {
        let mut programs = self.programs();
        programs.started += 1;
        let number = programs.started;
        (number, Invocation::new(&self.job.run, command, number))
    }

    fn accounts(&self, asked: &UnixStream) -> Result<(), BodyError> {
        let Accounts { users, groups } = Accounts::open(&self.root)?;
        let told = Told::Accounts { users: users.is_some(), groups: groups.is_some() };
        let _ = line::say(asked, &told);
        let files: Vec<_> = users.iter().chain(&groups).map(AsFd::as_fd).collect();
        if !files.is_empty() {
            let _ = line::hand_over(asked, &files);
        }
        Ok(())
    }

    fn start(&self, asked: &UnixStream, user: User, plugged: bool) -> Result<Told, BodyError> {
        let mut network = None;
        if plugged {
            let taken = line::take_over(asked, 1).map_err(system("take the network"))?.pop();
            network = taken.as_ref().map(|namespace| {
                format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd())
            });
            *self.network.lock().unwrap_or_else(PoisonError::into_inner) = taken;
        }
        check(&user)?;
        let program = &self.job.program;
        let process = spec::process(program, user, &self.base);
        let spec = spec::of(&self.job, &self.root, network, process)?;
        let bundle = self.job.run.join("bundle");
        std::fs::create_dir_all(&bundle)
            .and_then(|()| {
                let text = serde_json::to_vec(&spec).map_err(io::Error::other)?;
                std::fs::write(bundle.join("config.json"), text)
            })
            .map_err(system("write the container's configuration"))?;
        let (number, mut invocation) = self.invocation("run");
        invocation.arg("--bundle").arg(&bundle);
        let (running, ends) = invocation.start(&self.job.id, program)?;
        let running = Arc::new(running);
        // A second one is refused by the runtime.
        let _ = self.workload.set(running.clone());
        let remarks = self.remarks(&spec.linux.resources);
        Ok(self.attend(asked, (number, remarks), &running, ends, || {
            let state = self.store.find(&self.job.id).and_then(|entry| entry.state());
            state.is_ok_and(|state| state.cgroup().memory_kills() > 0)
        }))
    }

    fn open(&self, asked: &UnixStream, program: &Program, user: User) -> Result<Told, BodyError> {
        self.workload()?;
        check(&user)?;
        let process = spec::process(program, user, &self.base);
        let (number, mut invocation) = self.invocation("exec");
        let description = invocation.file("json");
        let text = serde_json::to_vec(&process).map_err(failed)?;
        std::fs::write(&description, text).map_err(system("describe the program"))?;
        invocation.arg("--process").arg(&description);
        let started = invocation.start(&self.job.id, program);
        let _ = std::fs::remove_file(&description);
        let (running, ends) = started?;
        Ok(self.attend(asked, (number, Vec::new()), &Arc::new(running), ends, || false))
    }

    /// What of the container's limits this host does not hold it to.
    fn remarks(&self, wanted: &Resources) -> Vec<String> {
        if !spec::limits(&self.job.resources) {
            return Vec::new();
        }
        let state = self.store.find(&self.job.id).and_then(|entry| entry.state());
        state.map(|state| spec::remarks(&state.cgroup().missing(wanted))).unwrap_or_default()
    }

    /// Gives a program's streams away and waits for its end.
    fn attend(
        &self,
        asked: &UnixStream,
        (number, remarks): (u64, Vec<String>),
        running: &Arc<Running>,
        ends: Ends,
        killed: impl FnOnce() -> bool,
    ) -> Told {
        self.programs().running.insert(number, running.clone());
        let _ = line::say(asked, &Told::Program { number, streams: ends.kind(), remarks })
            .and_then(|()| line::hand_over(asked, &ends.descriptors()));
        drop(ends);
        let exit = running.reap(killed);
        self.programs().running.remove(&number);
        Told::Ended(exit)
    }

    fn stats(&self) -> Result<Stats, BodyError> {
        let event = runtime::stats(&self.store, &self.job.id).map_err(of_runtime)?;
        let number = |path: &str| event.data.pointer(path).and_then(Value::as_u64);
        let operations = |name: &str| {
            let entries = event.data.pointer("/blkio/ioServiceBytesRecursive")?.as_array()?;
            let of_kind = entries.iter().filter(|entry| entry["op"] == name);
            Some(of_kind.filter_map(|entry| entry["value"].as_u64()).sum())
        };
        let pressure = |resource: &str| {
            let total = event.data.pointer(&format!("/{resource}/pressure/some/total"));
            total.and_then(Value::as_f64).map(|microseconds| microseconds as u64)
        };
        // What the kernel says where there is no limit is rounded to pages.
        const UNLIMITED: u64 = 1 << 62;
        Ok(Stats {
            cpu_nanoseconds: number("/cpu/usage/total"),
            memory_bytes: number("/memory/usage/usage"),
            memory_limit: number("/memory/usage/limit").filter(|limit| *limit < UNLIMITED),
            processes: number("/pids/current"),
            disk_read_bytes: operations("Read"),
            disk_written_bytes: operations("Write"),
            cpu_pressure_microseconds: pressure("cpu"),
            memory_pressure_microseconds: pressure("memory"),
            io_pressure_microseconds: pressure("blkio"),
            ..Stats::default()
        })
    }

    fn stop(&self, grace: Duration) -> Result<(), BodyError> {
        const SIGKILL: i32 = 9;
        let workload = self.workload()?;
        workload.signal(self.job.stop_signal)?;
        // A paused container would sleep through its grace.
        let _ = runtime::resume(&self.store, &self.job.id);
        if !workload.has_ended_within(grace) {
            runtime::kill(&self.store, &self.job.id, SIGKILL, false).map_err(failed)?;
            // Nor would one that was paused since then notice its death.
            let _ = runtime::resume(&self.store, &self.job.id);
            workload.await_told_end();
        }
        Ok(())
    }

    fn copy(&self, asked: &UnixStream, way: Way, path: &str) -> Result<(), BodyError> {
        // As the workload sees it, with all that is mounted.
        let root = format!("/proc/{}/root", self.workload()?.pid());
        let root = File::open(root).map(OwnedFd::from).map_err(|_| BodyError::NotRunning)?;
        let (copying, archive) = Copying::begin(way, root, path)?;
        let _ = line::say(asked, &Told::Stream)
            .and_then(|()| line::hand_over(asked, &[archive.as_fd()]));
        drop(archive);
        copying.finish()
    }

    fn clean_up(&self) -> Result<(), BodyError> {
        let deleted = runtime::delete(&self.store, &self.job.id, true).map_err(failed);
        drop(self.network.lock().unwrap_or_else(PoisonError::into_inner).take());
        let released = own_disk::release(&self.job, &self.root);
        deleted?;
        released.map_err(system("let go of the instance's disk"))
    }
}

/// Refuses a user that a plain user's namespace does not have.
fn check(user: &User) -> Result<(), BodyError> {
    let groups: Vec<u32> = user.groups.iter().copied().chain([user.gid]).collect();
    if has_ids(user.uid, &groups) {
        return Ok(());
    }
    let mut what = format!("user {} of group {} in a plain user's container", user.uid, user.gid);
    if let Some(lack) = ranges::lack_here() {
        what.push_str(&format!(" ({lack})"));
    }
    Err(unsupported(
        &what,
        "give the user ranges of enough ids in /etc/subuid and /etc/subgid and install uidmap, be \
         user 0 inside (-u 0), or use --as microvm, which has all users",
    ))
}
