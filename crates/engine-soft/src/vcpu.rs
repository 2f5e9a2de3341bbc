//! One vCPU as the seam sees it, and the loop around the interpreter: what happens
//! between instructions.
//!
//! | module | subject |
//! |---|---|
//! | [`events`] | interrupts, NMIs, INIT and SIPI, HLT, requests of other threads |
//! | [`debug`] | breakpoints, watchpoints and single steps, the guest's and a debugger's |
//! | [`reset`] | registers after power-up and INIT |
//! | [`saved`] | to and from the neutral state |

pub mod debug;
mod events;
mod reset;
mod saved;

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use guise_engine::state::RunState;
use guise_engine::{DebugControl, EngineError, Exit, Platform, Vcpu, VcpuHandle, VcpuState};

use crate::Tier;
use crate::cpu::deliver::Event;
use crate::cpu::{Cpu, Raised};
use crate::host::traps::{self, Line};
use crate::translate::{Broken, Translator};
use crate::vm::shared::{VcpuShared, VmShared, attention};

pub struct SoftVcpu {
    cpu: Box<Cpu>,
    translator: Option<Translator>,
    statistics: Arc<Mutex<BTreeMap<String, u64>>>,
}

struct Handle(Arc<VcpuShared>);

impl VcpuHandle for Handle {
    fn kick(&self) {
        self.0.raise(attention::KICK);
    }
}

impl SoftVcpu {
    pub fn new(
        shared: Arc<VmShared>,
        me: Arc<VcpuShared>,
        statistics: Arc<Mutex<BTreeMap<String, u64>>>,
        tier: Tier,
    ) -> Result<SoftVcpu, EngineError> {
        let cpu = Cpu::new(shared, me)?;
        // SAFETY: the word is in a box that this vCPU owns; `drop` disconnects it.
        unsafe { cpu.me.connect(Some(NonNull::from(&cpu.state.attention))) };
        let translator = match tier {
            Tier::Interpreter => None,
            Tier::Translator | Tier::Lockstep => {
                let translator = cpu.new_translator(tier == Tier::Lockstep);
                Some(translator.map_err(|source| EngineError::Host {
                    doing: "making room for translated code",
                    source,
                })?)
            }
        };
        Ok(SoftVcpu { cpu, translator, statistics })
    }

    /// Adds this vCPU's counters to the VM's.
    fn count(&mut self) {
        let counters = std::mem::take(&mut self.cpu.counters);
        let mut all = self.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, value) in [
            ("blocks_decoded", counters.blocks_decoded),
            ("blocks_invalidated", counters.blocks_invalidated),
            ("instructions_decoded", counters.instructions_decoded),
            ("block_lookups", counters.lookups),
            ("page_walks", counters.walks),
            ("exceptions", counters.exceptions),
            ("interrupts", counters.interrupts),
            ("halts", counters.halts),
            ("device_accesses", counters.device_accesses),
            ("port_accesses", counters.port_accesses),
            ("large_pages_made", self.cpu.shared.large_pages.take_made()),
        ] {
            *all.entry(name.to_owned()).or_default() += value;
        }
        for (name, value) in self.translator.iter_mut().flat_map(Translator::take_counts) {
            *all.entry(name).or_default() += value;
        }
    }
}

/// Where to look for what a thread's guest is doing.
struct Place {
    cpu: *const Cpu,
    translator: *const Translator,
}

/// For reports of signals in this thread that nobody expected.
fn describe(place: *const (), line: &mut Line) {
    // SAFETY: `run` made it a `Place` whose pointers are valid until it returns. Its thread
    // stands still in the signal handler, so nothing changes what is read here.
    let (cpu, translator) = unsafe {
        let place = &*place.cast::<Place>();
        (&*place.cpu, place.translator.as_ref())
    };
    let call = translator.and_then(Translator::call);
    line.text("; guest RIP ");
    line.hex(call.map_or(cpu.state.rip, |call| call.rip));
    line.text(if cpu.mode.cpl == 3 { " in user mode" } else { " in supervisor mode" });
    if let Some(call) = call {
        line.text(", called by the block at ");
        line.hex(call.block);
    }
}

impl Drop for SoftVcpu {
    fn drop(&mut self) {
        // SAFETY: disconnecting; nobody uses the word after this.
        unsafe { self.cpu.me.connect(None) };
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self, platform: &dyn Platform) -> Result<Exit, EngineError> {
        traps::prepare_thread().map_err(|source| EngineError::Host {
            doing: "preparing the thread for generated code",
            source,
        })?;
        // SAFETY: the state is in a box, and nothing is generated that outlives it.
        unsafe { self.cpu.state.bind_to_thread() }.map_err(|source| EngineError::Host {
            doing: "setting the thread's GS base",
            source,
        })?;
        // SAFETY: taken back below, before the borrow ends; a panic in between leaves
        // a vCPU that its owner cannot run without lending again.
        unsafe { self.cpu.lend_platform(platform) };
        self.cpu.enter();
        let place = Place {
            cpu: &raw const *self.cpu,
            translator: self.translator.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
        };
        let guest = traps::guest_of_thread(describe, (&raw const place).cast());
        let result = self.cpu.run_guest(self.translator.as_mut());
        drop(guest);
        self.cpu.leave();
        self.cpu.take_platform();
        self.count();
        result
    }

    fn handle(&self) -> Arc<dyn VcpuHandle> {
        Arc::new(Handle(self.cpu.me.clone()))
    }

    fn state(&mut self) -> Result<VcpuState, EngineError> {
        self.cpu.save()
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        self.cpu.load_state(state)
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<(), EngineError> {
        self.cpu.debug.control = control.clone();
        self.cpu.debug_registers_changed();
        Ok(())
    }

    fn translate(&mut self, linear: u64) -> Result<Option<u64>, EngineError> {
        Ok(self.cpu.look_up(linear))
    }
}

impl Cpu {
    fn run_guest(&mut self, mut translator: Option<&mut Translator>) -> Result<Exit, EngineError> {
        loop {
            if self.run != RunState::Running {
                if self.run == RunState::Shutdown {
                    return Ok(Exit::Shutdown);
                }
                if let Some(exit) = self.wait(translator.as_deref_mut()) {
                    return Ok(exit);
                }
                continue;
            }
            if self.state.attention.load(Ordering::SeqCst) != 0 {
                // SAFETY: the bank is the vCPU's current one, and what is attended to below
                // may change that.
                let bank = unsafe { &*self.state.bank };
                self.shared.large_pages.settle(&self.map, bank);
                if let Some(exit) = self.attend() {
                    return Ok(exit);
                }
            }
            if self.run == RunState::Running && self.state.attention.load(Ordering::SeqCst) == 0 {
                match &mut translator {
                    Some(translator) if self.is_translatable() => {
                        let result = if translator.compares() {
                            translator.run_lockstep(self)
                        } else {
                            translator.run(self)
                        };
                        result.map_err(|broken| self.stuck(broken))?;
                    }
                    _ if self.execute().is_err() => self.deliver_raised(),
                    _ => {}
                }
            }
        }
    }

    fn stuck(&self, broken: Broken) -> EngineError {
        EngineError::Stuck { vcpu: self.index, rip: broken.rip, reason: broken.reason }
    }

    /// Delivers what an instruction raised; a shut-down ends the run.
    pub(crate) fn deliver_raised(&mut self) {
        let raised = std::mem::replace(&mut self.raised, Raised::Nothing);
        let delivered = match raised {
            Raised::Exception(exception) => self.deliver(Event::Exception(exception)),
            Raised::NonCanonical => {
                self.deliver(Event::Exception(crate::exception::Exception::general_protection(0)))
            }
            Raised::Nothing => Ok(()),
            Raised::Shutdown => Err(crate::interpret::op::Trap),
        };
        if delivered.is_err() {
            self.run = RunState::Shutdown;
        }
    }
}
