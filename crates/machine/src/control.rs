//! Who may run, and how it ended: the place where vCPU threads, devices that ask for
//! power-off, and whoever drives the machine meet.
//!
//! Threads look at what is wanted before each entry into the guest; whoever changes
//! it kicks the vCPUs out of theirs. The first request to end is the one that
//! counts: a kernel that panics and then resets has panicked.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use guise_devices::power::{PowerRequest, PowerSink};
use guise_engine::{DebugStop, EngineError, Vcpu, VcpuHandle};

/// Why a machine will not go on.
#[derive(Debug)]
pub enum Ending {
    PowerOff,
    Reset,
    /// The guest's kernel said that it panicked.
    Panicked,
    TripleFault {
        vcpu: u32,
    },
    /// A test program asked to leave with this code.
    Exit(u32),
    /// Whoever runs the machine has seen enough.
    Left,
    /// It came to as many accesses of devices as it was to stop at; it can go on.
    Reached,
    /// A vCPU came to something that a debugger wanted to see; it can go on.
    Stopped {
        vcpu: u32,
        stop: DebugStop,
    },
    Engine(EngineError),
}

/// What vCPU threads are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Run,
    Pause,
    Stop,
}

/// Work on a vCPU that its own thread does while the machine is paused.
pub(crate) type Task = Box<dyn FnOnce(&mut Box<dyn Vcpu>) + Send>;

struct Shared {
    wanted: Wanted,
    /// Threads that are outside of the guest and stay there.
    parked: usize,
    ending: Option<Ending>,
    tasks: Vec<VecDeque<Task>>,
    /// vCPUs that stay out of the guest while the others run.
    held: Vec<usize>,
}

impl Shared {
    fn may_run(&self, vcpu: usize) -> bool {
        self.wanted == Wanted::Run && !self.held.contains(&vcpu)
    }
}

pub(crate) struct Control {
    shared: Mutex<Shared>,
    changed: Condvar,
    /// Known once all vCPUs are made; before that nobody runs.
    handles: RwLock<Vec<Arc<dyn VcpuHandle>>>,
}

/// What a thread finds when it asks what to do.
pub(crate) enum Order {
    Run,
    Task(Task),
    Stop,
}

impl Control {
    pub fn new(vcpus: usize) -> Self {
        let shared = Shared {
            wanted: Wanted::Pause,
            parked: 0,
            ending: None,
            tasks: (0..vcpus).map(|_| VecDeque::new()).collect(),
            held: Vec::new(),
        };
        Control { shared: Mutex::new(shared), changed: Condvar::new(), handles: RwLock::default() }
    }

    /// Names the vCPUs that are kicked when something changes.
    pub fn set_handles(&self, handles: Vec<Arc<dyn VcpuHandle>>) {
        *self.handles.write().unwrap_or_else(PoisonError::into_inner) = handles;
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_wanted(&self, wanted: Wanted) {
        let mut shared = self.lock();
        if shared.wanted != Wanted::Stop {
            shared.wanted = wanted;
        }
        self.changed.notify_all();
        drop(shared);
        self.kick();
    }

    fn kick(&self) {
        for handle in &*self.handles.read().unwrap_or_else(PoisonError::into_inner) {
            handle.kick();
        }
    }

    pub fn run(&self) {
        self.set_wanted(Wanted::Run);
    }

    pub fn stop(&self) {
        self.set_wanted(Wanted::Stop);
    }

    /// Returns when every thread is out of the guest, or, saying no, when one of them
    /// has not come out within the limit.
    pub fn pause(&self, limit: Duration) -> bool {
        self.set_wanted(Wanted::Pause);
        let inside = |shared: &mut Shared| {
            shared.parked < shared.tasks.len() && shared.wanted == Wanted::Pause
        };
        let (mut shared, _) = self
            .changed
            .wait_timeout_while(self.lock(), limit, inside)
            .unwrap_or_else(PoisonError::into_inner);
        !inside(&mut shared)
    }

    /// Ends the machine, unless it has ended already.
    pub fn end(&self, ending: Ending) {
        let mut shared = self.lock();
        if shared.ending.is_none() {
            shared.ending = Some(ending);
        }
        drop(shared);
        self.set_wanted(Wanted::Pause);
    }

    /// Names the vCPUs that stay out of the guest from the next run on.
    pub fn hold(&self, vcpus: Vec<usize>) {
        self.lock().held = vcpus;
    }

    /// Whether whoever runs the machine wants no more of it.
    pub fn is_left(&self) -> bool {
        matches!(self.lock().ending, Some(Ending::Left))
    }

    /// Waits for the end, for as long as is given.
    pub fn wait(&self, limit: Option<Duration>) -> Option<Ending> {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut shared = self.lock();
        loop {
            if let Some(ending) = shared.ending.take() {
                return Some(ending);
            }
            shared = match deadline {
                None => self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    self.changed
                        .wait_timeout(shared, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    /// Gives a thread work; it does it as soon as it is parked.
    pub fn give(&self, vcpu: usize, task: Task) {
        self.lock().tasks[vcpu].push_back(task);
        self.changed.notify_all();
    }

    /// What the thread of this vCPU is to do; blocks while that is nothing. A thread
    /// whose vCPU cannot run any more parks for good.
    pub fn next(&self, vcpu: usize, can_run: bool) -> Order {
        let mut shared = self.lock();
        if shared.may_run(vcpu) && can_run {
            return Order::Run;
        }
        shared.parked += 1;
        self.changed.notify_all();
        let order = loop {
            if shared.wanted == Wanted::Stop {
                break Order::Stop;
            }
            if let Some(task) = shared.tasks[vcpu].pop_front() {
                break Order::Task(task);
            }
            if shared.may_run(vcpu) && can_run {
                break Order::Run;
            }
            shared = self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner);
        };
        shared.parked -= 1;
        order
    }
}

impl PowerSink for Control {
    fn request(&self, request: PowerRequest) {
        match request {
            PowerRequest::PowerOff => self.end(Ending::PowerOff),
            PowerRequest::Reset => self.end(Ending::Reset),
            PowerRequest::Panicked => self.end(Ending::Panicked),
            PowerRequest::Exit(code) => self.end(Ending::Exit(code)),
            PowerRequest::CrashLoaded => {
                tracing::warn!("the guest's kernel panicked and its crash kernel takes over");
            }
        }
    }
}

#[cfg(test)]
mod tests;
