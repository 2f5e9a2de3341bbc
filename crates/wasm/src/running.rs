//! The thread that runs a program, and who holds, stops and awaits it.
//!
//! A program never keeps its thread: where it waits it gives the thread back, and while it
//! computes it does so at every tick of a clock, which ticks only then. In between, whoever
//! wants the program to stand still or to end is heard.

use std::fs::File;
use std::future::poll_fn;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Sleep;
use wasmtime::Engine;
use wasmtime_wasi::I32Exit;

use crate::code::{self, Code, Life};
use crate::memory::Meter;
use crate::{Program, StartError, context};

/// How long a program computes before it is asked for its thread.
const TICK: Duration = Duration::from_millis(10);

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Code(i32),
    /// By [`Running::kill`].
    Killed(i32),
    /// It did what cannot be done; it has been told on its standard error.
    Trapped(String),
    /// The same, after memory was refused to it.
    OutOfMemory,
}

/// A program that runs, or has run.
pub struct Running(Arc<Shared>);

struct Shared {
    engine: Engine,
    meter: Arc<Meter>,
    state: Mutex<State>,
    /// The program's turn begins or ends, or it has ended.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    killed: Option<i32>,
    held: bool,
    /// It is the program's turn.
    computing: bool,
    waker: Option<Waker>,
    end: Option<End>,
}

/// What keeps a program to its part of a processor.
struct Share {
    part: f64,
    rest: Option<Pin<Box<Sleep>>>,
}

impl Running {
    /// Compiles a program and starts it.
    pub fn start(mut program: Program) -> Result<Running, StartError> {
        let engine = code::engine()?;
        let code = Code::compile(&engine, &std::mem::take(&mut program.code))?;
        let shared = Arc::new(Shared {
            engine,
            meter: Arc::new(Meter::new(program.memory)),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let last_words = rustix::io::fcntl_dupfd_cloexec(&program.streams.errors, 3)
            .map_err(|error| StartError::failed("keep the program's output")(error.into()))?;
        let (tell, told) = sync_channel(1);
        let make = StartError::failed("make a thread for the program");
        let inside = shared.clone();
        thread::Builder::new()
            .name("program".to_owned())
            .spawn(move || inside.live(&code, program, &tell, last_words))
            .map_err(make)?;
        let gone = || StartError::NotExecutable("it ended before it began".to_owned());
        told.recv().unwrap_or_else(|_| Err(gone()))?;
        Ok(Running(shared))
    }

    /// Ends it, as a signal would; nothing happens to one that has ended.
    pub fn kill(&self, signal: i32) {
        let mut state = self.0.lock();
        state.killed.get_or_insert(signal);
        wake(&mut state);
    }

    /// Holds it where it is. Returns when it stands still.
    pub fn pause(&self) {
        let mut state = self.0.lock();
        state.held = true;
        while state.computing {
            state = self.0.wait(state);
        }
    }

    pub fn resume(&self) {
        let mut state = self.0.lock();
        state.held = false;
        wake(&mut state);
    }

    /// Waits for its end; any number of callers get the same answer.
    #[must_use]
    pub fn wait(&self) -> End {
        let mut state = self.0.lock();
        loop {
            if let Some(end) = &state.end {
                return end.clone();
            }
            state = self.0.wait(state);
        }
    }
}

fn wake(state: &mut State) {
    if let Some(waker) = state.waker.take() {
        waker.wake();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// The program's thread from beginning to end.
    fn live(
        self: Arc<Self>,
        code: &Code,
        program: Program,
        tell: &SyncSender<Result<(), StartError>>,
        last_words: OwnedFd,
    ) {
        let part = program.processors.unwrap_or(1.0);
        let prepare = StartError::failed("prepare what the program waits with");
        // The other end waits for just this one message.
        let say = |started| drop(tell.send(started));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = match runtime.map_err(prepare) {
            Ok(runtime) => runtime,
            Err(error) => return say(Err(error)),
        };
        let _finish = Finish(&self);
        let end = runtime.block_on(async {
            let linked = context::of(program)
                .and_then(|given| code.link(&self.engine, given, self.meter.clone()))
                .and_then(|life| self.start_clock().map(|()| life));
            match linked {
                Ok(life) => {
                    say(Ok(()));
                    Some(self.drive(life, Share { part, rest: None }).await)
                }
                Err(error) => {
                    say(Err(error));
                    None
                }
            }
        });
        // A file's read that is under way ends by itself; nobody waits for it.
        runtime.shutdown_background();
        let Some(end) = end else { return };
        if let End::Trapped(why) = &end {
            // As far as there is room: who does not read is not waited for.
            let _ = writeln!(&File::from(last_words), "guise: the program was ended: {why}");
        }
        self.lock().end = Some(end);
        self.changed.notify_all();
    }

    /// Runs the program until it has ended or has to.
    async fn drive(&self, mut life: Life, mut share: Share) -> End {
        let end = poll_fn(|context| {
            {
                let mut state = self.lock();
                if let Some(signal) = state.killed {
                    return Poll::Ready(End::Killed(signal));
                }
                state.waker = Some(context.waker().clone());
                if state.held {
                    return Poll::Pending;
                }
                state.computing = true;
                self.changed.notify_all();
            }
            let polled = share.turn(&mut life, context);
            self.lock().computing = false;
            self.changed.notify_all();
            polled.map(|result| self.end_of(result))
        })
        .await;
        drop(life);
        end
    }

    fn end_of(&self, result: wasmtime::Result<()>) -> End {
        match result {
            Ok(()) => End::Code(0),
            Err(error) => match error.downcast_ref::<I32Exit>() {
                Some(exit) => End::Code(exit.0),
                None if self.meter.refused() => End::OutOfMemory,
                None => End::Trapped(code::cause(&error)),
            },
        }
    }

    fn start_clock(self: &Arc<Self>) -> Result<(), StartError> {
        let clock = self.clone();
        thread::Builder::new()
            .name("clock".to_owned())
            .spawn(move || clock.tick())
            .map(drop)
            .map_err(StartError::failed("make a clock for the program"))
    }

    /// The clock that interrupts the program. It stands still while the program waits.
    fn tick(&self) {
        let mut state = self.lock();
        while state.end.is_none() {
            if state.computing {
                drop(state);
                thread::sleep(TICK);
                self.engine.increment_epoch();
                state = self.lock();
            } else {
                state = self.wait(state);
            }
        }
    }
}

/// Tells those who wait when the program's thread ends without having said how.
struct Finish<'s>(&'s Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let failed = || End::Trapped("the thread that ran it has failed".to_owned());
        self.0.lock().end.get_or_insert_with(failed);
        self.0.changed.notify_all();
    }
}

impl Share {
    /// Lets the program have its turn, unless it has to rest first.
    fn turn(&mut self, life: &mut Life, context: &mut Context<'_>) -> Poll<wasmtime::Result<()>> {
        if let Some(rest) = &mut self.rest {
            std::task::ready!(rest.as_mut().poll(context));
            self.rest = None;
        }
        if self.part >= 1.0 {
            return life.as_mut().poll(context);
        }
        let before = processor_time();
        let polled = life.as_mut().poll(context);
        let used = processor_time().saturating_sub(before);
        if polled.is_pending() {
            let rest = used.mul_f64(1.0 / self.part - 1.0);
            self.rest = Some(Box::pin(tokio::time::sleep(rest)));
        }
        polled
    }
}

/// What this thread has used.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}
