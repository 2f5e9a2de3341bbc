//! One life of an instance: from its job to its recorded end.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use guise_api::{ApiError, Code, Ended};
use guise_container::jail::{Entered, Jail};
use guise_container::state::timestamp;

use crate::birth::{Midwife, News, Users};
use crate::body::{Body, Process, Session};
use crate::container;
use crate::control::{self, Input, Open, Served};
use crate::group::{self, Group};
use crate::jail;
use crate::job::{Form, Job};
use crate::log::Stream;
use crate::machine;
use crate::microvm::{MicroVm, Outside};
use crate::output::Output;
use crate::place::{End, Place};
use crate::vm::Vm;

/// How long a worker stays for those who still read what was printed.
const FAREWELL: Duration = Duration::from_secs(600);
/// How long what the workload left running may hold its streams open.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// The exit code of what ran for too long.
const TIMED_OUT: u8 = 124;

/// What a worker's helper does that copies files into a container or out of it, by its
/// arguments. None where these are others.
#[must_use]
pub fn copy(arguments: &[String]) -> Option<u8> {
    Some(match container::copy(arguments)? {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    })
}

/// The worker's whole work, in the process that is it. Its standard input is the
/// daemon's channel. Returns the process's exit code.
#[must_use]
pub fn run(state: &Path, run: &Path) -> u8 {
    let place = Place { state: state.to_owned(), run: run.to_owned() };
    let mut midwife = match Midwife::at_standard_input() {
        Ok(midwife) => midwife,
        Err(error) => {
            eprintln!("the daemon's channel is missing: {error}");
            return 1;
        }
    };
    match live(&place, &mut midwife) {
        Ok(()) => 0,
        Err(error) => {
            midwife.tell(&News::Failed(error));
            1
        }
    }
}

fn failure(what: &str) -> impl FnOnce(std::io::Error) -> ApiError {
    move |source| ApiError::new(Code::Internal, format!("{what}: {source}")).exit_code(125)
}

fn live(place: &Place, midwife: &mut Midwife) -> Result<(), ApiError> {
    // As the host knows it; in a jail it has another.
    let process = std::process::id();
    let Some(mut hold) = place.hold().map_err(failure("lock the instance"))? else {
        midwife.tell(&News::Taken);
        return Ok(());
    };
    let job = place.read_job().map_err(failure("read the job"))?.ok_or_else(|| {
        ApiError::new(Code::Internal, "the worker was given no job").exit_code(125)
    })?;
    // In the jail its name may be out of sight.
    let listener = control::bind(&place.socket()).map_err(failure("make the control socket"))?;
    // Before there is a second thread, which could not follow into namespaces.
    let (body, mut warnings) = prepare(&job, midwife).inspect_err(|_| {
        let _ = std::fs::remove_file(place.socket());
    })?;
    // What failed up to here, perhaps because the daemon is gone, may be tried again.
    place.begin().and_then(|()| hold.sign(process, job.life)).map_err(failure("begin a life"))?;
    let started = bring_up(place, &job, &body, listener);
    let (served, pumps, open) = match started {
        Ok(started) => started,
        Err(error) => {
            if let Err(left) = body.clean_up() {
                eprintln!("clean up after a failed start: {left}");
            }
            return Err(error);
        }
    };
    warnings.extend(body.remarks());
    midwife.tell(&News::Ready(warnings));
    let limit = job.time_limit.map(|limit| TimeLimit::begin(limit, &body, &served.workload));
    let exit = served.workload.wait();
    let too_long = limit.and_then(TimeLimit::exceeded);
    join(pumps, LAST_WORDS);
    if let Err(left) = body.clean_up() {
        eprintln!("clean up: {left}");
    }
    let ended = match exit {
        _ if too_long.is_some() => {
            Ended { exit_code: TIMED_OUT, error: too_long, ..Ended::default() }
        }
        Ok(exit) => Ended {
            exit_code: exit.code(),
            out_of_memory: exit == crate::body::Exit::OutOfMemory,
            error: None,
        },
        Err(error) => {
            let exit_code = error.exit_code();
            Ended { exit_code, out_of_memory: false, error: Some(error.into()) }
        }
    };
    let end = End {
        life: job.life,
        log: served.output.begin(),
        ended: ended.clone(),
        finished: timestamp(),
    };
    if let Err(error) = place.record_end(&end, !job.ephemeral) {
        eprintln!("record the end: {error}");
    }
    // From here on another life may begin, while this process still gives out what
    // was printed.
    body.leave(&place.socket());
    drop(hold);
    served.output.finish(ended);
    open.wait(FAREWELL);
    Ok(())
}

/// What asks for what a form needs before the process has threads.
fn prepare(job: &Job, midwife: &mut Midwife) -> Result<(Arc<dyn Body>, Vec<String>), ApiError> {
    group::bind(job)?;
    match &job.form {
        Form::Container { layers } => {
            Group::enter_beside(job);
            let (body, warnings) =
                container::Container::prepare(job, layers, || midwife.have_mapped(Users::All))?;
            Ok((Arc::new(body), warnings))
        }
        Form::Microvm { root, kernel, modules, cache, engine } => {
            let (group, mut warnings) = Group::enter(job, MicroVm::bounds(job)?);
            let outside = Outside::make(job, kernel, modules, cache)?;
            let files = [&**root, &*outside.kernel.kernel, &*outside.kernel.initrd];
            let (engine, remark) = machine::engine(*engine)?;
            let entered = shut_in(jail::of_machine(job, &files), &group, midwife)?;
            let (body, remarks) = MicroVm::prepare(job, root, engine, outside, group)?;
            warnings.extend(remarks.into_iter().chain(remark).chain(jail::warnings(entered)));
            Ok((Arc::new(body), warnings))
        }
        Form::Vm { image, boots, engine, user_data, ssh_keys } => {
            let (group, mut warnings) = Group::enter(job, Vm::bounds(job)?);
            let network = machine::network(job, "a VM")?;
            let (engine, remark) = machine::engine(*engine)?;
            let entered = shut_in(jail::of_machine(job, &[&**image]), &group, midwife)?;
            let told = (user_data.as_deref(), &ssh_keys[..]);
            let (body, remarks) =
                Vm::prepare(job, (image, *boots), told, (engine, group), network)?;
            warnings.extend(remarks.into_iter().chain(remark).chain(jail::warnings(entered)));
            Ok((Arc::new(body), warnings))
        }
        #[cfg(feature = "wasm")]
        Form::Wasm { program, layers } => {
            let (group, mut warnings) = Group::enter(job, crate::wasm::bounds(job));
            let map = || midwife.have_mapped(Users::Root);
            let (body, remarks) = crate::wasm::Wasm::prepare(job, program, layers, group, map)?;
            warnings.extend(remarks);
            Ok((Arc::new(body), warnings))
        }
        #[cfg(not(feature = "wasm"))]
        Form::Wasm { .. } => Err(crate::body::unsupported(
            "WebAssembly with this build of guise",
            "build it with its feature wasm",
        )
        .into()),
    }
}

fn shut_in(mut jail: Jail, group: &Group, midwife: &mut Midwife) -> Result<Entered, ApiError> {
    jail.ends_with_parent = group.is_another;
    jail.enter(|| midwife.have_mapped(Users::Root))
        .map_err(|error| ApiError::internal(error).exit_code(125))
}

type Started = (Arc<Served>, Vec<JoinHandle<()>>, Arc<Open>);

/// Starts the workload, and everything that listens to it.
fn bring_up(
    place: &Place,
    job: &Job,
    body: &Arc<dyn Body>,
    listener: UnixListener,
) -> Result<Started, ApiError> {
    let output = Output::new(&place.kept(), job.log).map_err(failure("open the log"))?;
    let output = Arc::new(output);
    let Session { stdin, stdout, stderr, process } = body.start()?;
    let told = output.clone();
    body.tell_of_space(Arc::new(move |lacking| told.set_without_space(lacking)));
    let pumps = [(stdout, Stream::Stdout), (stderr, Stream::Stderr)]
        .into_iter()
        .filter_map(|(from, stream)| Some((from?, stream)))
        .map(|(from, stream)| {
            let output = output.clone();
            std::thread::spawn(move || {
                control::pump(from, |bytes| {
                    output.write(stream, bytes);
                    true
                });
            })
        })
        .collect();
    let served = Arc::new(Served {
        body: body.clone(),
        workload: process,
        output,
        input: Input::new(stdin),
    });
    let open = Arc::new(Open::default());
    control::serve(listener, served.clone(), open.clone());
    Ok((served, pumps, open))
}

/// Ends an instance when its time is over.
struct TimeLimit {
    limit: Duration,
    over: Arc<AtomicBool>,
    /// Dropped when the instance has ended by itself.
    ended: Sender<()>,
}

impl TimeLimit {
    fn begin(limit: Duration, body: &Arc<dyn Body>, workload: &Arc<dyn Process>) -> TimeLimit {
        let (ended, end) = channel();
        let over = Arc::new(AtomicBool::new(false));
        let (body, workload, exceeded) = (body.clone(), workload.clone(), over.clone());
        std::thread::spawn(move || {
            workload.await_start();
            if end.recv_timeout(limit) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            exceeded.store(true, Ordering::SeqCst);
            if let Err(error) = body.stop(Duration::ZERO) {
                eprintln!("end it when its time is over: {error}");
            }
        });
        TimeLimit { limit, over, ended }
    }

    /// What is told of an instance that the limit has ended.
    fn exceeded(self) -> Option<ApiError> {
        drop(self.ended);
        let message = || format!("it was ended after {} s", self.limit.as_secs());
        self.over.load(Ordering::SeqCst).then(|| {
            ApiError::new(Code::State, message()).hint("--timeout gives it more time, or no limit")
        })
    }
}

/// Waits for threads, but not for ever: a program that left its terminal to another
/// would keep one waiting.
fn join(threads: Vec<JoinHandle<()>>, patience: Duration) {
    let deadline = Instant::now() + patience;
    for thread in threads {
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
