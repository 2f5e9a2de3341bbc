//! A thread for a queue. It sleeps on an eventfd, which the driver's notifications and
//! the host's side tick, and does not wake up for anything else. Where drivers follow up
//! quickly it looks for more for a moment before it sleeps.

mod lookout;
mod thread;

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{read, retry_on_intr, write};

use self::lookout::Lookout;
pub use self::thread::Thread;
use crate::device::StartError;
use crate::queue::{Queue, QueueError};
use crate::transport::Interrupt;

/// Why a handler came to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It took all that the driver has made available.
    Drained,
    /// It waits for the host's side, and not for the driver.
    WaitingForHost,
    /// It may not do more before so much time has passed.
    Until(Duration),
}

/// What a device does with a queue, on the queue's thread.
pub trait Handler: Send + 'static {
    /// Takes chains and gives them back until there is no more to do. `stopping` turns
    /// true when the device is to stop: what has been taken is to be given back, and
    /// nothing more to be taken.
    fn process(&mut self, queue: &mut Queue, stopping: &AtomicBool) -> Result<Rest, QueueError>;

    /// Waits until the kick rings, something else has happened that the handler waits
    /// for, or the time has passed. Says whether it was the kick.
    fn wait(&mut self, kick: &Kick, time: Option<Duration>) -> bool {
        match time {
            Some(_) => kick.wait_also_for(None, time),
            None => {
                kick.wait();
                true
            }
        }
    }

    /// The device stops: gives back what has been taken, and takes nothing more.
    fn finish(&mut self, queue: &mut Queue) -> Result<(), QueueError> {
        let _ = queue;
        Ok(())
    }
}

/// An eventfd that makes a worker look again.
#[derive(Clone)]
pub struct Kick(Arc<OwnedFd>);

impl Kick {
    pub fn new() -> Result<Self, StartError> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| StartError::Host {
            doing: "making an eventfd",
            source: error.into(),
        })?;
        Ok(Self(Arc::new(fd)))
    }

    pub fn ring(&self) {
        // The counter cannot overflow before somebody has read it 2^64 rings later.
        _ = retry_on_intr(|| write(&self.0, &1_u64.to_ne_bytes()));
    }

    pub(crate) fn wait(&self) {
        _ = retry_on_intr(|| read(&self.0, &mut [0; 8]));
    }

    /// Waits for a ring, for another descriptor that becomes readable, or for so long. Says
    /// whether it was the ring.
    pub(crate) fn wait_also_for(&self, other: Option<BorrowedFd>, time: Option<Duration>) -> bool {
        let limit = time.and_then(|time| Timespec::try_from(time).ok());
        let kick = PollFd::new(&self.0, PollFlags::IN);
        // Without another one it is the kick twice.
        let other = other.unwrap_or(self.0.as_fd());
        let mut fds = [kick, PollFd::from_borrowed_fd(other, PollFlags::IN)];
        // A signal is as good as a ring: the handler looks, and comes back.
        let rung =
            poll(&mut fds, limit.as_ref()).is_ok() && fds[0].revents().contains(PollFlags::IN);
        if rung {
            self.wait();
        }
        rung
    }

    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.0
    }
}

/// A queue that its thread holds while it works on it. While the thread sleeps others may do
/// what they can; when it has ended there is none.
pub type Shared = Arc<Mutex<Option<Queue>>>;

/// The running thread of a queue.
pub struct Worker {
    thread: Thread<()>,
    queue: Shared,
}

impl Worker {
    /// `index` is the queue's, for its interrupt.
    pub fn serving(
        name: String,
        kick: Kick,
        index: u16,
        queue: Queue,
        interrupt: Arc<Interrupt>,
        mut handler: impl Handler,
    ) -> Result<Self, StartError> {
        let bell = kick.clone();
        let queue = Arc::new(Mutex::new(Some(queue)));
        let theirs = queue.clone();
        let thread =
            Thread::start(name, "starting the thread of a virtio queue", kick, move |stopping| {
                let result = serve(&theirs, index, &interrupt, &mut handler, &bell, stopping);
                if let Err(error) = result {
                    tracing::warn!(%error, queue = index, "the driver broke a queue");
                    interrupt.needs_reset();
                }
            })?;
        Ok(Self { thread, queue })
    }

    pub fn queue(&self) -> &Shared {
        &self.queue
    }

    /// Ends the thread and takes the queue. Nothing if the thread died.
    fn stop(self) -> Option<Queue> {
        self.thread.stop()?;
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn serve(
    shared: &Mutex<Option<Queue>>,
    index: u16,
    interrupt: &Interrupt,
    handler: &mut impl Handler,
    kick: &Kick,
    stopping: &AtomicBool,
) -> Result<(), QueueError> {
    let mut lookout = Lookout::default();
    loop {
        let mut held = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(queue) = &mut *held else { return Ok(()) };
        if stopping.load(Ordering::SeqCst) {
            handler.finish(queue)?;
            if queue.needs_interrupt()? {
                interrupt.signal_queue(index);
            }
            return Ok(());
        }
        queue.disable_notification()?;
        let rest = handler.process(queue, stopping)?;
        if queue.needs_interrupt()? {
            interrupt.signal_queue(index);
        }
        if stopping.load(Ordering::SeqCst) {
            continue;
        }
        let time = match rest {
            Rest::Drained if lookout.sees(queue.in_hand(), || queue.is_waiting())? => continue,
            Rest::Drained if queue.enable_notification()? => continue,
            Rest::Until(time) => Some(time),
            Rest::Drained | Rest::WaitingForHost => None,
        };
        let in_hand = queue.in_hand();
        drop(held);
        let begun = Instant::now();
        let rung = handler.wait(kick, time);
        lookout.slept(in_hand, begun.elapsed(), rung);
    }
}

/// The workers of a device's queues, as `start` and `stop` need them.
#[derive(Default)]
pub struct Workers(Vec<Option<Worker>>);

impl Workers {
    pub fn add(&mut self, worker: Option<Worker>) {
        self.0.push(worker);
    }

    /// Ends all threads and collects the queues.
    pub fn stop(&mut self) -> Vec<Option<Queue>> {
        // All are told before the first is waited for.
        self.0.iter().flatten().for_each(|worker| worker.thread.tell_to_stop());
        self.0.drain(..).map(|worker| worker.and_then(Worker::stop)).collect()
    }

    /// Makes all of them look again.
    pub fn ring_all(&self) {
        self.0.iter().flatten().for_each(|worker| worker.thread.ring());
    }

    /// Makes the worker of a queue look again.
    pub fn ring(&self, queue: u16) {
        self.of(queue).inspect(|worker| worker.thread.ring());
    }

    /// What rings the worker of a queue.
    pub fn doorbell(&self, queue: u16) -> Option<Arc<OwnedFd>> {
        self.of(queue).map(|worker| worker.thread.doorbell())
    }

    fn of(&self, queue: u16) -> Option<&Worker> {
        self.0.get(usize::from(queue))?.as_ref()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}
