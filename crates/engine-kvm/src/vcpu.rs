//! The run loop: exits in, platform calls and [`Exit`]s out.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use guise_engine::{
    DebugControl, DebugStop, EngineError, Exit, Platform, Vcpu, VcpuHandle, VcpuState, VmConfig,
};
use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug,
    kvm_interrupt,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::cpuid::Offer;
use crate::kick::{EXTERNAL_INTERRUPT, STOP, SignalPending};
use crate::lapic::{self, OneShot};
use crate::vm::Shared;
use crate::{failed, state};

const KVM_INTERNAL_ERROR_EMULATION: u32 = 1;
/// One part in so many is how far two measurements of one clock may be apart.
const TSC_TOLERANCE: u64 = 1000;
/// How much later than its count says a timer of the kernel may be through.
const TIMER_LATENESS: Duration = Duration::from_micros(200);
const DR6_SINGLE_STEP: u64 = 1 << 14;

pub struct KvmVcpu {
    fd: VcpuFd,
    index: u32,
    shared: Arc<Shared>,
    debug: DebugControl,
    /// The state of a one-shot timer that KVM does not tell.
    timer: OneShot,
}

/// Why `KVM_RUN` returned.
enum Left {
    /// For something that has been done.
    Served,
    BySignal,
    For(Exit),
}

impl KvmVcpu {
    pub fn new(
        shared: Arc<Shared>,
        index: u32,
        config: &VmConfig,
        offer: &Offer,
    ) -> Result<KvmVcpu, EngineError> {
        let fd = shared.fd.create_vcpu(u64::from(index)).map_err(failed("cannot make a vCPU"))?;
        let tsc_khz = tsc_frequency(&fd, config.tsc_khz)?;
        shared.tsc_khz.store(tsc_khz, Ordering::Relaxed);
        let leaves = offer.leaves(config, index, tsc_khz)?;
        fd.set_cpuid2(&leaves).map_err(failed("cannot set CPUID"))?;
        Ok(KvmVcpu { fd, index, shared, debug: DebugControl::default(), timer: OneShot::default() })
    }

    /// A second descriptor of this vCPU.
    pub fn descriptor(&self) -> std::io::Result<OwnedFd> {
        // SAFETY: the descriptor is open for as long as `self.fd` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) }.try_clone_to_owned()
    }

    /// Gives the kernel the 8259's interrupt when the guest takes one, else asks to be
    /// told when it does.
    fn offer_external_interrupt(&mut self, platform: &dyn Platform) -> Result<(), EngineError> {
        self.shared.kicks[0].take(EXTERNAL_INTERRUPT);
        let wanted = self.shared.external_interrupt.load(Ordering::SeqCst);
        let run = self.fd.get_kvm_run();
        if wanted && run.ready_for_interrupt_injection != 0 {
            if let Some(vector) = platform.acknowledge_interrupt() {
                self.inject(vector)?;
            }
            let more = self.shared.external_interrupt.load(Ordering::SeqCst);
            self.fd.get_kvm_run().request_interrupt_window = more as u8;
        } else {
            run.request_interrupt_window = wanted as u8;
        }
        Ok(())
    }

    fn inject(&self, vector: u8) -> Result<(), EngineError> {
        const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;
        self.shared.counters.external_interrupts.fetch_add(1, Ordering::Relaxed);
        let interrupt = kvm_interrupt { irq: u32::from(vector) };
        // SAFETY: the ioctl reads this structure of its own type.
        match unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_INTERRUPT, &interrupt) } {
            0 => Ok(()),
            _ => Err(EngineError::last_os_error("cannot inject an interrupt")),
        }
    }

    /// Enters the guest once and deals with what it left for.
    fn enter_guest(&mut self, platform: &dyn Platform) -> Result<Left, EngineError> {
        let counters = &self.shared.counters;
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                count(&counters.port);
                let width = port_width(data.len(), &mut self.fd);
                port_in(platform, &mut self.fd, port, width);
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                count(&counters.port);
                let data = data.to_vec();
                let width = port_width(data.len(), &mut self.fd);
                data.chunks(width).for_each(|piece| platform.port_write(port, piece));
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                count(&counters.memory);
                platform.memory_read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                count(&counters.memory);
                platform.memory_write(address, data);
            }
            Ok(VcpuExit::IoapicEoi(vector)) => {
                count(&counters.ioapic_ends);
                platform.end_of_interrupt(vector);
            }
            Ok(VcpuExit::IrqWindowOpen) => count(&counters.interrupt_windows),
            // The local APIC is the kernel's, so a halt comes out only where the
            // kernel cannot wait itself; going back in is right then too.
            Ok(VcpuExit::Hlt) => {}
            Ok(VcpuExit::Intr) => return Ok(Left::BySignal),
            Ok(VcpuExit::Shutdown) => return Ok(Left::For(Exit::Shutdown)),
            Ok(VcpuExit::Debug(stop)) => {
                let stop = self.debug_stop(stop.pc, stop.dr6);
                return Ok(Left::For(Exit::Debug(stop)));
            }
            Ok(VcpuExit::InternalError) => return Err(self.internal_error()),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return Err(self.stuck(format!(
                    "the processor refuses the guest's state (reason {reason:#x})"
                )));
            }
            Ok(other) => {
                let reason = format!("KVM left it with {other:?}, which Guise does not use");
                return Err(self.stuck(reason));
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                self.fd.set_kvm_immediate_exit(0);
                return Ok(Left::BySignal);
            }
            Err(error) => return Err(failed("cannot run a vCPU")(error)),
        }
        Ok(Left::Served)
    }

    /// Lets the kernel finish what it has begun for this vCPU, without executing anything of
    /// the guest. The result is None when that is done.
    fn settle(&mut self, platform: &dyn Platform) -> Result<Option<Exit>, EngineError> {
        let run = self.fd.get_kvm_run();
        run.immediate_exit = 0;
        // It would be told before the signal is seen, again and again.
        run.request_interrupt_window = 0;
        let vcpu = self
            .descriptor()
            .map_err(|source| EngineError::Host { doing: "cannot share a vCPU", source })?;
        let _signal = SignalPending::new(vcpu.as_fd())
            .map_err(|source| EngineError::Host { doing: "cannot stop a vCPU", source })?;
        let mut again = true;
        loop {
            match self.enter_guest(platform)? {
                Left::Served => {}
                Left::For(exit) => return Ok(Some(exit)),
                // A halted vCPU wakes up the first time; what woke it, an interrupt of the
                // 8259 that no register shows, is on its way in after the second.
                Left::BySignal if again => {
                    again = false;
                    let page = self.fd.get_lapic().map_err(failed(lapic::CANNOT_READ))?;
                    if lapic::is_over(&page) {
                        // Its count is 0, but its interrupt may not have been noted yet.
                        std::thread::sleep(TIMER_LATENESS);
                    }
                }
                Left::BySignal => {
                    let page = self.fd.get_lapic().map_err(failed(lapic::CANNOT_READ))?;
                    self.timer.stopped(&page);
                    return Ok(None);
                }
            }
        }
    }

    fn stuck(&self, reason: String) -> EngineError {
        let rip = self.fd.get_regs().map(|regs| regs.rip).unwrap_or_default();
        EngineError::Stuck { vcpu: self.index, rip, reason }
    }

    fn internal_error(&mut self) -> EngineError {
        let run = self.fd.get_kvm_run();
        // SAFETY: this is the variant that goes with KVM_EXIT_INTERNAL_ERROR; all its
        // fields are integers.
        let (suberror, ndata, data) = unsafe {
            let internal = &run.__bindgen_anon_1.internal;
            (internal.suberror, internal.ndata, internal.data)
        };
        if suberror != KVM_INTERNAL_ERROR_EMULATION {
            return self.stuck(format!("KVM reports internal error {suberror}"));
        }
        // data[0] says that the instruction's bytes follow: a length, then 15 bytes.
        let mut bytes = [0u8; 16];
        bytes[..8].copy_from_slice(&data[1].to_le_bytes());
        bytes[8..].copy_from_slice(&data[2].to_le_bytes());
        let length = usize::from(bytes[0]).min(15);
        let shown = if ndata >= 4 && data[0] & 1 == 1 && length > 0 {
            let hex: Vec<String> = bytes[1..=length].iter().map(|b| format!("{b:02x}")).collect();
            format!(" (bytes {})", hex.join(" "))
        } else {
            String::new()
        };
        self.stuck(format!("KVM cannot emulate this instruction{shown}; use --engine soft"))
    }

    fn debug_stop(&self, rip: u64, dr6: u64) -> DebugStop {
        let hit = (0..4).find(|n| dr6 >> n & 1 == 1);
        match hit.map(|n| n as usize) {
            Some(n) if n < self.debug.breakpoints.len() => DebugStop::Breakpoint { rip },
            Some(n) => {
                let watched = self.debug.watchpoints.get(n - self.debug.breakpoints.len());
                DebugStop::Watchpoint { rip, address: watched.map_or(0, |w| w.address) }
            }
            None if dr6 & DR6_SINGLE_STEP != 0 => DebugStop::Step { rip },
            None => DebugStop::Breakpoint { rip },
        }
    }
}

/// Sets the TSC's frequency, where one is wanted and it is another than the host's, and
/// returns what it is.
fn tsc_frequency(fd: &VcpuFd, wanted: Option<u64>) -> Result<u64, EngineError> {
    let own = fd.get_tsc_khz().map_err(failed("cannot read the TSC's frequency"))?;
    let Some(wanted) = wanted.filter(|wanted| *wanted != u64::from(own)) else {
        return Ok(own.into());
    };
    let set = u32::try_from(wanted).ok().map(|khz| fd.set_tsc_khz(khz));
    match set {
        Some(Ok(())) => Ok(wanted),
        // The clock's frequency is a measurement: the last digits differ each time.
        _ if wanted.abs_diff(own.into()) * TSC_TOLERANCE <= u64::from(own) => Ok(own.into()),
        _ => Err(EngineError::State(format!(
            "the guest's time-stamp counter runs at {wanted} kHz and this host's at {own} kHz, \
             which its processor cannot bridge"
        ))),
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, platform: &dyn Platform) -> Result<Exit, EngineError> {
        let kick = self.shared.kicks[self.index as usize].clone();
        let immediate_exit = std::ptr::from_mut(&mut self.fd.get_kvm_run().immediate_exit);
        // SAFETY: the byte is in this vCPU's mapping of kvm_run, which outlives the
        // guard; an AtomicU8 has the layout of a byte.
        let _entered = unsafe { kick.enter(immediate_exit.cast::<AtomicU8>()) };
        loop {
            if kick.take(STOP) {
                let exit = self.settle(platform)?;
                if exit.is_some() {
                    kick.request(STOP);
                } else {
                    count(&self.shared.counters.interrupted);
                }
                return Ok(exit.unwrap_or(Exit::Interrupted));
            }
            if self.index == 0 {
                self.offer_external_interrupt(platform)?;
            }
            if let Left::For(exit) = self.enter_guest(platform)? {
                return Ok(exit);
            }
        }
    }

    fn handle(&self) -> Arc<dyn VcpuHandle> {
        self.shared.kicks[self.index as usize].clone()
    }

    fn state(&mut self) -> Result<VcpuState, EngineError> {
        state::save(&self.fd, self.index, self.timer)
    }

    fn set_state(&mut self, wanted: &VcpuState) -> Result<(), EngineError> {
        self.timer = state::load(&self.fd, self.index, wanted)?;
        Ok(())
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<(), EngineError> {
        if control.breakpoints.len() + control.watchpoints.len() > 4 {
            return Err(EngineError::State(
                "the processor has four debug registers; with more breakpoints and \
                 watchpoints, use --engine soft"
                    .to_owned(),
            ));
        }
        let mut debug = kvm_guest_debug::default();
        if *control != DebugControl::default() {
            debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
            if control.single_step {
                debug.control |= KVM_GUESTDBG_SINGLESTEP;
            }
            for (n, &address) in control.breakpoints.iter().enumerate() {
                debug.arch.debugreg[n] = address;
                debug.arch.debugreg[7] |= 2 << (2 * n);
            }
            for (n, watch) in (control.breakpoints.len()..).zip(&control.watchpoints) {
                let kind: u64 = if watch.on_read { 3 } else { 1 };
                let length: u64 = match watch.length {
                    1 => 0,
                    2 => 1,
                    8 => 2,
                    _ => 3,
                };
                debug.arch.debugreg[n] = watch.address;
                debug.arch.debugreg[7] |= 2 << (2 * n) | (kind | length << 2) << (16 + 4 * n);
            }
        }
        self.debug = control.clone();
        self.fd.set_guest_debug(&debug).map_err(failed("cannot set debug registers"))
    }

    fn translate(&mut self, linear: u64) -> Result<Option<u64>, EngineError> {
        let found =
            self.fd.translate_gva(linear).map_err(failed("cannot translate a guest address"))?;
        Ok((found.valid != 0).then_some(found.physical_address))
    }
}

/// The width of one port access: a string instruction hands over several at once.
fn port_width(bytes: usize, fd: &mut VcpuFd) -> usize {
    // SAFETY: this is the variant that goes with KVM_EXIT_IO; its fields are integers.
    let width = usize::from(unsafe { fd.get_kvm_run().__bindgen_anon_1.io.size });
    if width == 0 || !bytes.is_multiple_of(width) { bytes.max(1) } else { width }
}

/// Answers a port read: the bytes go where KVM will pick them up.
fn port_in(platform: &dyn Platform, fd: &mut VcpuFd, port: u16, width: usize) {
    let run = fd.get_kvm_run();
    // SAFETY: KVM says where in the mapping of kvm_run, which is larger than the
    // structure itself, the `size * count` bytes of this access are.
    let data = unsafe {
        let io = run.__bindgen_anon_1.io;
        let start = std::ptr::from_mut(run).cast::<u8>().add(io.data_offset as usize);
        std::slice::from_raw_parts_mut(start, usize::from(io.size) * io.count as usize)
    };
    data.chunks_mut(width).for_each(|piece| platform.port_read(port, piece));
}
