//! A debugger of the outside: gdb's remote protocol over a Unix socket.
//!
//! Each vCPU is a thread to gdb, numbered from 1. Breakpoints and watchpoints are the
//! engine's ([`guise_engine::DebugControl`]): no guest byte is changed, so that a guest
//! cannot see them and code that is loaded later can have them already. When one vCPU
//! stops, all do.

mod line;

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use gdbstub::common::{Signal, Tid};
use gdbstub::conn::ConnectionExt as _;
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{DisconnectReason, GdbStub, GdbStubError, MultiThreadStopReason};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::x86::X86_64_SSE;
use gdbstub_arch::x86::reg::X86_64CoreRegs;
use guise_engine::memory::vm_memory::{Bytes as _, GuestAddress};
use guise_engine::{DebugControl, DebugStop, EngineError, VcpuState, Watchpoint};

use crate::MachineError;
use crate::control::Ending;
use crate::machine::Machine;
use line::Line;

/// How often the debugger's socket is looked at while the guest runs.
const GLANCE: Duration = Duration::from_millis(20);
const PAGE_SIZE: u64 = 4096;

/// How a debugging session ended.
#[derive(Debug)]
pub enum Debugged {
    /// The debugger let go, or the time was over; the machine is paused.
    Detached,
    /// The debugger asked for the machine's end.
    Killed,
    /// The machine came to its end meanwhile.
    Ended(Ending),
}

impl Machine {
    /// Lets a debugger have the machine, which is paused, until it lets go, somebody
    /// wants the machine's end, or the deadline has come.
    pub fn debug(
        &self,
        connection: UnixStream,
        deadline: Option<Instant>,
    ) -> Result<Debugged, MachineError> {
        let line = Line::new(connection, self.control.clone(), deadline)
            .map_err(|source| MachineError::Host { doing: "talking to the debugger", source })?;
        let mut target = Debugger {
            machine: self,
            breakpoints: Vec::new(),
            watchpoints: Vec::new(),
            stepping: None,
            named: Vec::new(),
            locked: false,
            ending: None,
        };
        let session = GdbStub::new(line).run_blocking::<Session<'_>>(&mut target);
        self.pause()?;
        self.control.hold(Vec::new());
        for thread in &self.vcpus {
            thread.with(|vcpu| vcpu.set_debug(&DebugControl::default()))??;
        }
        match (session, target.ending) {
            (_, Some(ending)) => Ok(Debugged::Ended(ending)),
            (Ok(DisconnectReason::Kill), None) => Ok(Debugged::Killed),
            (Ok(_), None) => Ok(Debugged::Detached),
            (Err(error), None) => session_failed(error),
        }
    }
}

/// A debugger that goes away without a word has let go; all else is an error.
fn session_failed(error: GdbStubError<MachineError, io::Error>) -> Result<Debugged, MachineError> {
    if error.is_connection_error() {
        return Ok(Debugged::Detached);
    }
    match error.into_target_error() {
        Some(error) => Err(error),
        None => {
            let source = io::Error::other("the debugger broke the protocol");
            Err(MachineError::Host { doing: "talking to the debugger", source })
        }
    }
}

struct Debugger<'a> {
    machine: &'a Machine,
    breakpoints: Vec<u64>,
    watchpoints: Vec<Watchpoint>,
    /// The vCPU that is to execute one instruction.
    stepping: Option<usize>,
    /// vCPUs that the debugger named when it let the machine go on.
    named: Vec<usize>,
    /// Only those go on.
    locked: bool,
    ending: Option<Ending>,
}

fn thread_of(vcpu: usize) -> Tid {
    Tid::new(vcpu + 1).expect("not 0")
}

fn vcpu_of(thread: Tid) -> usize {
    thread.get() - 1
}

impl Debugger<'_> {
    fn state(&self, thread: Tid) -> Result<VcpuState, MachineError> {
        let vcpu = self.vcpu(thread)?;
        Ok(vcpu.with(|vcpu| vcpu.state())??)
    }

    fn vcpu(&self, thread: Tid) -> Result<&crate::vcpu::VcpuThread, MachineError> {
        let wanted = thread.get() as u32;
        let max = self.machine.vcpus.len() as u32;
        self.machine
            .vcpus
            .get(vcpu_of(thread))
            .ok_or(MachineError::Engine(EngineError::VcpuCount { wanted, max }))
    }

    /// The guest-physical address behind a linear one, as this vCPU sees it.
    fn physical(&self, thread: Tid, linear: u64) -> Result<Option<GuestAddress>, MachineError> {
        let found = self.vcpu(thread)?.with(move |vcpu| vcpu.translate(linear))??;
        Ok(found.map(GuestAddress))
    }

    /// Tells the engine of everything to stop at. A set that it cannot take is refused
    /// as a whole.
    fn apply(&self) -> Result<(), MachineError> {
        for (number, thread) in self.machine.vcpus.iter().enumerate() {
            let control = DebugControl {
                single_step: self.stepping == Some(number),
                breakpoints: self.breakpoints.clone(),
                watchpoints: self.watchpoints.clone(),
            };
            thread.with(move |vcpu| vcpu.set_debug(&control))??;
        }
        Ok(())
    }

    /// Changes what to stop at, or leaves it as it was.
    fn change(&mut self, change: impl FnOnce(&mut Self)) -> bool {
        let before = (self.breakpoints.clone(), self.watchpoints.clone());
        change(self);
        if self.apply().is_ok() {
            return true;
        }
        (self.breakpoints, self.watchpoints) = before;
        // The former set was taken before.
        let _ = self.apply();
        false
    }

    /// Pieces of a linear range that do not cross pages.
    fn pieces(start: u64, length: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            if at == length {
                return None;
            }
            let address = start.wrapping_add(at as u64);
            let size = (PAGE_SIZE - address % PAGE_SIZE).min((length - at) as u64) as usize;
            let piece = (address, at..at + size);
            at += size;
            Some(piece)
        })
    }
}

impl Target for Debugger<'_> {
    type Arch = X86_64_SSE;
    type Error = MachineError;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

/// gdb's order of the first eight registers, as places in the machine's order.
const GDB_ORDER: [usize; 8] = [0, 3, 1, 2, 6, 7, 5, 4];

impl MultiThreadBase for Debugger<'_> {
    fn read_registers(
        &mut self,
        registers: &mut X86_64CoreRegs,
        thread: Tid,
    ) -> TargetResult<(), Self> {
        let state = self.state(thread).map_err(TargetError::Fatal)?;
        for (n, register) in registers.regs.iter_mut().enumerate() {
            let place = GDB_ORDER.get(n).copied().unwrap_or(n);
            *register = state.registers.gpr[place];
        }
        registers.rip = state.registers.rip;
        registers.eflags = state.registers.rflags as u32;
        let system = &state.system;
        registers.segments.cs = system.cs.selector.into();
        registers.segments.ss = system.ss.selector.into();
        registers.segments.ds = system.ds.selector.into();
        registers.segments.es = system.es.selector.into();
        registers.segments.fs = system.fs.selector.into();
        registers.segments.gs = system.gs.selector.into();
        // The legacy part of the XSAVE area.
        if let Some(legacy) = state.xsave.get(..512) {
            for (n, xmm) in registers.xmm.iter_mut().enumerate() {
                let bytes = &legacy[160 + 16 * n..176 + 16 * n];
                *xmm = u128::from_le_bytes(bytes.try_into().expect("16 bytes"));
            }
            for (n, st) in registers.st.iter_mut().enumerate() {
                st.copy_from_slice(&legacy[32 + 16 * n..42 + 16 * n]);
            }
            let mxcsr = legacy[24..28].try_into().expect("4 bytes");
            registers.mxcsr = u32::from_le_bytes(mxcsr);
        }
        Ok(())
    }

    fn write_registers(
        &mut self,
        registers: &X86_64CoreRegs,
        thread: Tid,
    ) -> TargetResult<(), Self> {
        let mut state = self.state(thread).map_err(TargetError::Fatal)?;
        for (n, register) in registers.regs.iter().enumerate() {
            let place = GDB_ORDER.get(n).copied().unwrap_or(n);
            state.registers.gpr[place] = *register;
        }
        state.registers.rip = registers.rip;
        let high = state.registers.rflags & !0xffff_ffff;
        state.registers.rflags = high | u64::from(registers.eflags);
        if let Some(legacy) = state.xsave.get_mut(..512) {
            for (n, xmm) in registers.xmm.iter().enumerate() {
                legacy[160 + 16 * n..176 + 16 * n].copy_from_slice(&xmm.to_le_bytes());
            }
        }
        let vcpu = self.vcpu(thread).map_err(TargetError::Fatal)?;
        let written = vcpu.with(move |vcpu| vcpu.set_state(&state));
        match written.map_err(TargetError::Fatal)? {
            Ok(()) => Ok(()),
            Err(_) => Err(TargetError::NonFatal),
        }
    }

    fn read_addrs(
        &mut self,
        start: u64,
        data: &mut [u8],
        thread: Tid,
    ) -> TargetResult<usize, Self> {
        let mut done = 0;
        for (address, range) in Self::pieces(start, data.len()) {
            let piece = &mut data[range];
            let physical = self.physical(thread, address).map_err(TargetError::Fatal)?;
            let read = physical.map(|at| self.machine.ram().memory.read_slice(piece, at));
            if !matches!(read, Some(Ok(()))) {
                break;
            }
            done += piece.len();
        }
        if done == 0 && !data.is_empty() { Err(TargetError::NonFatal) } else { Ok(done) }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], thread: Tid) -> TargetResult<(), Self> {
        for (address, range) in Self::pieces(start, data.len()) {
            let physical = self.physical(thread, address).map_err(TargetError::Fatal)?;
            let memory = &self.machine.ram().memory;
            let written = physical.map(|at| memory.write_slice(&data[range], at));
            if !matches!(written, Some(Ok(()))) {
                return Err(TargetError::NonFatal);
            }
        }
        Ok(())
    }

    fn list_active_threads(&mut self, active: &mut dyn FnMut(Tid)) -> Result<(), Self::Error> {
        (0..self.machine.vcpus.len()).for_each(|vcpu| active(thread_of(vcpu)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadResume for Debugger<'_> {
    fn resume(&mut self) -> Result<(), Self::Error> {
        self.apply()?;
        let held = match self.locked {
            true => (0..self.machine.vcpus.len()).filter(|n| !self.named.contains(n)).collect(),
            false => Vec::new(),
        };
        self.machine.control.hold(held);
        self.machine.resume();
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Self::Error> {
        self.stepping = None;
        self.named.clear();
        self.locked = false;
        Ok(())
    }

    fn set_resume_action_continue(
        &mut self,
        thread: Tid,
        _: Option<Signal>,
    ) -> Result<(), Self::Error> {
        self.named.push(vcpu_of(thread));
        Ok(())
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Debugger<'_> {
    fn set_resume_action_step(
        &mut self,
        thread: Tid,
        _: Option<Signal>,
    ) -> Result<(), Self::Error> {
        self.stepping = Some(vcpu_of(thread));
        self.named.push(vcpu_of(thread));
        Ok(())
    }
}

/// gdb steps over a breakpoint by taking it out for one instruction of one vCPU; the
/// others must not run past it meanwhile.
impl MultiThreadSchedulerLocking for Debugger<'_> {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Self::Error> {
        self.locked = true;
        Ok(())
    }
}

impl Breakpoints for Debugger<'_> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Debugger<'_> {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.change(|debugger| debugger.breakpoints.push(address)))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        let place = self.breakpoints.iter().position(|other| *other == address);
        Ok(place.is_some_and(|place| {
            self.change(|debugger| {
                debugger.breakpoints.remove(place);
            })
        }))
    }
}

impl HwBreakpoint for Debugger<'_> {
    fn add_hw_breakpoint(&mut self, address: u64, kind: usize) -> TargetResult<bool, Self> {
        self.add_sw_breakpoint(address, kind)
    }

    fn remove_hw_breakpoint(&mut self, address: u64, kind: usize) -> TargetResult<bool, Self> {
        self.remove_sw_breakpoint(address, kind)
    }
}

fn watchpoint(address: u64, length: u64, kind: WatchKind) -> Watchpoint {
    Watchpoint {
        address,
        length,
        on_read: kind != WatchKind::Write,
        on_write: kind != WatchKind::Read,
    }
}

impl HwWatchpoint for Debugger<'_> {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        let wanted = watchpoint(address, length, kind);
        Ok(self.change(|debugger| debugger.watchpoints.push(wanted)))
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        length: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        let wanted = watchpoint(address, length, kind);
        let place = self.watchpoints.iter().position(|other| *other == wanted);
        Ok(place.is_some_and(|place| {
            self.change(|debugger| {
                debugger.watchpoints.remove(place);
            })
        }))
    }
}

/// The loop between the debugger's words and the guest's stops.
struct Session<'a>(std::marker::PhantomData<&'a ()>);

type Stop = MultiThreadStopReason<u64>;

impl<'a> BlockingEventLoop for Session<'a> {
    type Target = Debugger<'a>;
    type Connection = Line;
    type StopReason = Stop;

    fn wait_for_stop_reason(
        target: &mut Debugger<'a>,
        line: &mut Line,
    ) -> Result<Event<Stop>, WaitForStopReasonError<MachineError, io::Error>> {
        loop {
            if let Some(ending) = target.machine.wait(Some(GLANCE)) {
                target.machine.pause().map_err(WaitForStopReasonError::Target)?;
                return Ok(Event::TargetStopped(target.stopped(ending)));
            }
            if line.peek().map_err(WaitForStopReasonError::Connection)?.is_some() {
                let byte = line.read().map_err(WaitForStopReasonError::Connection)?;
                return Ok(Event::IncomingData(byte));
            }
        }
    }

    fn on_interrupt(target: &mut Debugger<'a>) -> Result<Option<Stop>, MachineError> {
        target.machine.pause()?;
        Ok(Some(Stop::SignalWithThread { tid: thread_of(0), signal: Signal::SIGINT }))
    }
}

impl Debugger<'_> {
    /// A stop or an end of the machine, in gdb's words.
    fn stopped(&mut self, ending: Ending) -> Stop {
        let stop = match &ending {
            Ending::Stopped { vcpu, stop } => {
                let tid = thread_of(*vcpu as usize);
                return match *stop {
                    DebugStop::Step { .. } => {
                        Stop::SignalWithThread { tid, signal: Signal::SIGTRAP }
                    }
                    DebugStop::Breakpoint { .. } => Stop::SwBreak(tid),
                    DebugStop::Watchpoint { address, .. } => {
                        Stop::Watch { tid, kind: self.kind_at(address), addr: address }
                    }
                };
            }
            Ending::Exit(code) => Stop::Exited(*code as u8),
            Ending::TripleFault { .. } | Ending::Engine(_) => Stop::Terminated(Signal::SIGSEGV),
            Ending::Panicked => Stop::Terminated(Signal::SIGABRT),
            _ => Stop::Exited(0),
        };
        self.ending = Some(ending);
        stop
    }

    fn kind_at(&self, address: u64) -> WatchKind {
        let watched = self.watchpoints.iter().find(|watch| watch.address == address);
        match watched.map(|watch| (watch.on_read, watch.on_write)) {
            Some((true, true)) => WatchKind::ReadWrite,
            Some((true, false)) => WatchKind::Read,
            _ => WatchKind::Write,
        }
    }
}
