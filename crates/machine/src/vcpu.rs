//! A thread for each vCPU: in the guest while the machine runs, at rest while it
//! is paused.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use guise_engine::{EngineError, Exit, Platform, Vcpu};

use crate::MachineError;
use crate::control::{Control, Ending, Order};

pub struct VcpuThread {
    index: usize,
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuThread {
    pub fn spawn(
        index: usize,
        vcpu: Box<dyn Vcpu>,
        platform: Arc<dyn Platform>,
        control: Arc<Control>,
    ) -> Result<Self, MachineError> {
        let theirs = control.clone();
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || serve(index, vcpu, &*platform, &theirs))
            .map_err(|source| MachineError::Host { doing: "starting a vCPU's thread", source })?;
        Ok(VcpuThread { index, control, thread: Some(thread) })
    }

    /// Has the thread work on its vCPU and waits for the result. Only while the
    /// machine is paused.
    pub fn with<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Vcpu) -> R + Send + 'static,
    ) -> Result<R, MachineError> {
        let (sender, receiver) = mpsc::channel();
        self.control.give(
            self.index,
            Box::new(move |vcpu| {
                // Whoever asked waits below, so there is a receiver.
                let _ = sender.send(work(vcpu));
            }),
        );
        receiver.recv().map_err(|_| {
            let reason = "its thread has ended".to_owned();
            MachineError::Engine(EngineError::Stuck { vcpu: self.index as u32, rip: 0, reason })
        })
    }

    /// Waits for the thread's end; [`Control::stop`] causes it.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of vCPU {} ended with a panic", self.index);
        }
    }
}

fn serve(index: usize, mut vcpu: Box<dyn Vcpu>, platform: &dyn Platform, control: &Control) {
    // An engine that panics must end the machine, not leave it waiting.
    let guard = EndOnPanic { vcpu: index as u32, control };
    let mut can_run = true;
    loop {
        match control.next(index, can_run) {
            Order::Stop => break,
            Order::Task(task) => task(&mut *vcpu),
            Order::Run => match vcpu.run(platform) {
                Ok(Exit::Interrupted) => {}
                Ok(Exit::Shutdown) => {
                    can_run = false;
                    control.end(Ending::TripleFault { vcpu: index as u32 });
                }
                Ok(Exit::Debug(stop)) => tracing::debug!(vcpu = index, ?stop, "debug stop"),
                Err(error) => {
                    can_run = false;
                    control.end(Ending::Engine(error));
                }
            },
        }
    }
    std::mem::forget(guard);
}

struct EndOnPanic<'a> {
    vcpu: u32,
    control: &'a Control,
}

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        let reason = "the engine failed".to_owned();
        self.control.end(Ending::Engine(EngineError::Stuck { vcpu: self.vcpu, rip: 0, reason }));
        self.control.stop();
    }
}
