//! What happens between two instructions.

use std::sync::atomic::Ordering;

use guise_engine::Exit;
use guise_engine::state::RunState;

use crate::apic::Pending;
use crate::cpu::Cpu;
use crate::cpu::deliver::Event;
use crate::cpu::mode::bits::*;
use crate::exception::{self, Exception};
use crate::translate::Translator;
use crate::vm::shared::{Request, attention, wait_until};

impl Cpu {
    /// Comes in: from now on others wait for this vCPU's answers.
    pub fn enter(&mut self) {
        loop {
            self.me.inside.store(true, Ordering::SeqCst);
            self.take_requests();
            if !self.shared.others_excluded_me(self.index) {
                return;
            }
            self.me.inside.store(false, Ordering::SeqCst);
            let shared = self.shared.clone();
            let me = self.index;
            wait_until(|| !shared.others_excluded_me(me), &mut || {});
        }
    }

    pub fn leave(&mut self) {
        self.me.inside.store(false, Ordering::SeqCst);
    }

    /// Does something during which others need not wait for this vCPU: nothing that
    /// was looked up before may be used after it.
    pub fn outside<T>(&mut self, action: impl FnOnce(&mut Cpu) -> T) -> T {
        self.leave();
        let result = action(self);
        self.enter();
        result
    }

    /// Does what others asked for, and stands still if somebody wants that.
    pub fn serve_requests(&mut self) {
        self.take_requests();
        if self.shared.others_excluded_me(self.index) {
            self.leave();
            self.enter();
        }
    }

    fn take_requests(&mut self) {
        let me = self.me.clone();
        let (requests, number) = me.take_requests();
        for request in requests {
            match request {
                Request::ForgetWrites { page } => self.spaces.forget_writes_to(page),
                Request::Invalidate { host, length } => self.invalidate_code(host, length),
                Request::ForgetAllWrites => self.spaces.forget_all_writes(),
                Request::Remap => {
                    self.bury_all_code();
                    // An instruction in flight may still point into the old memory.
                    let old = std::mem::replace(&mut self.map, self.shared.memory_map());
                    self.retired.push(old);
                    self.flush_everything();
                }
            }
        }
        me.served.fetch_max(number, Ordering::SeqCst);
    }

    /// Does something while all other vCPUs stand still.
    pub fn alone<T>(&mut self, action: impl FnOnce(&mut Cpu) -> T) -> T {
        let shared = self.shared.clone();
        shared.begin_exclusive(self.index, || self.serve_requests());
        let result = action(self);
        shared.end_exclusive();
        result
    }

    pub(super) fn take_attention(&mut self) -> u32 {
        let bits = self.state.attention.swap(0, Ordering::SeqCst);
        self.events.unhalted |= bits & attention::UNHALT != 0;
        bits
    }

    /// Looks at everything that may want attention. An answer ends the run.
    pub fn attend(&mut self) -> Option<Exit> {
        let bits = self.take_attention();
        self.retired.clear();
        if bits & (attention::REQUEST | attention::EXCLUSIVE) != 0 {
            self.serve_requests();
        }
        if bits & attention::SIGNAL != 0 {
            self.take_signals();
        }
        if bits & attention::KICK != 0 {
            // The rest is for the next run.
            self.want(bits & !(attention::KICK | attention::REQUEST | attention::EXCLUSIVE));
            return Some(Exit::Interrupted);
        }
        if self.run != RunState::Running {
            return None;
        }
        let shadow = self.events.sti_shadow || self.events.mov_ss_shadow;
        if !shadow {
            if self.events.pending_debug != 0 {
                self.deliver_debug();
                self.want(bits & attention::INTERRUPT);
            } else {
                self.take_interrupt();
            }
        } else {
            // Interrupts get their turn after the next instruction.
            self.want(bits & (attention::INTERRUPT | attention::SIGNAL));
        }
        if bits & attention::ALONE != 0 || shadow || self.wants_single_steps() {
            return self.step_alone();
        }
        None
    }

    /// Executes one instruction by itself, with all debugging that applies.
    fn step_alone(&mut self) -> Option<Exit> {
        if let Some(exit) = self.debugger_stops_before() {
            return Some(exit);
        }
        let traced = self.state.rflags & TF != 0;
        let shadowed = std::mem::take(&mut self.events.mov_ss_shadow);
        self.events.sti_shadow = false;
        self.events.step_suppressed = false;
        if self.instruction_breakpoint(shadowed) {
            self.deliver_raised();
        } else {
            // Gone with the instruction, unless that is the one that sets it.
            let resumed = self.state.rflags & RF;
            self.state.rflags &= !RF;
            match self.execute_one() {
                Ok(completed) => {
                    if !completed {
                        self.state.rflags |= resumed;
                    }
                    let suppressed = self.events.step_suppressed || self.events.mov_ss_shadow;
                    if traced && !suppressed {
                        self.events.pending_debug |= crate::cpu::control::DR6_BS;
                    }
                }
                Err(_) => {
                    self.events.pending_debug = 0;
                    self.deliver_raised();
                }
            }
        }
        if self.run == RunState::Shutdown {
            return None;
        }
        if self.events.mov_ss_shadow || self.events.pending_debug != 0 || self.wants_single_steps()
        {
            self.want(attention::ALONE);
        }
        // A trap comes before the next instruction, unless that is in a shadow.
        if self.events.pending_debug != 0 && !self.events.mov_ss_shadow {
            self.deliver_debug();
        }
        self.debugger_stops_after()
    }

    fn deliver_debug(&mut self) {
        let bits = std::mem::take(&mut self.events.pending_debug);
        if self.run == RunState::Halted {
            self.run = RunState::Running;
        }
        if let Err(_trap) = self.raise_debug::<()>(bits) {
            self.deliver_raised();
        }
    }

    /// Takes INIT and start-up IPIs.
    pub(super) fn take_signals(&mut self) {
        if self.apic().pending().has(Pending::INIT) && self.apic().take_init() {
            self.init();
        }
        if self.apic().pending().has(Pending::SIPI)
            && let Some(page) = self.apic().take_sipi()
            && self.run == RunState::WaitForSipi
        {
            self.start_up(page);
        }
    }

    /// Delivers an NMI or an external interrupt, if one may come now.
    fn take_interrupt(&mut self) {
        let pending = self.apic().pending();
        if pending.has(Pending::NMI) && !self.events.nmi_blocked && self.apic().take_nmi() {
            self.events.nmi_blocked = true;
            self.deliver_event(Event::Interrupt { vector: exception::NMI });
            if self.has_interrupt() {
                self.want(attention::INTERRUPT);
            }
            return;
        }
        let waits = self.state.rflags & IF == 0 && self.has_interrupt();
        self.state.generated.waiting = u32::from(waits);
        if self.state.rflags & IF == 0 {
            return;
        }
        let vector = if pending.has(Pending::EXTERNAL) {
            self.platform().acknowledge_interrupt()
        } else if pending.has(Pending::INTERRUPT) {
            self.apic().accept()
        } else {
            None
        };
        if let Some(vector) = vector {
            self.deliver_event(Event::Interrupt { vector });
        }
        if self.has_interrupt() && self.state.rflags & IF != 0 {
            self.want(attention::INTERRUPT);
        }
    }

    fn deliver_event(&mut self, event: Event) {
        if self.deliver(event).is_err() {
            self.run = RunState::Shutdown;
        }
    }

    /// Waits in HLT, or for a start-up IPI. A translator whose guest has been calm for a
    /// while gives back what it has made.
    pub fn wait(&mut self, mut translator: Option<&mut Translator>) -> Option<Exit> {
        if let Some(translator) = &mut translator {
            translator.calm.begin_to_wait();
        }
        let exit = self.wait_for_events(translator.as_deref_mut());
        if let Some(translator) = translator {
            translator.calm.go_on();
        }
        exit
    }

    fn wait_for_events(&mut self, mut translator: Option<&mut Translator>) -> Option<Exit> {
        loop {
            let bits = self.take_attention();
            if bits & (attention::REQUEST | attention::EXCLUSIVE) != 0 {
                self.serve_requests();
            }
            self.take_signals();
            if bits & attention::KICK != 0 {
                self.want(bits & !(attention::KICK | attention::REQUEST | attention::EXCLUSIVE));
                return Some(Exit::Interrupted);
            }
            match self.run {
                RunState::Halted => {
                    let pending = self.apic().pending();
                    let wakes = pending.has(Pending::NMI) && !self.events.nmi_blocked
                        || self.state.rflags & IF != 0 && self.has_interrupt()
                        || self.events.unhalted;
                    if wakes {
                        self.events.unhalted = false;
                        self.run = RunState::Running;
                        self.want(attention::INTERRUPT);
                        return None;
                    }
                }
                RunState::WaitForSipi => {}
                RunState::Running | RunState::Shutdown => return None,
            }
            let me = self.me.clone();
            let limit = translator.as_deref().and_then(Translator::gives_back_in);
            let woken = self.outside(|cpu| me.sleep(&cpu.state.attention, limit));
            if !woken && let Some(translator) = &mut translator {
                translator.give_back(&mut self.state);
                self.forget_all_code();
            }
        }
    }

    /// Raises #DB if an instruction breakpoint is at RIP.
    fn instruction_breakpoint(&mut self, shadowed: bool) -> bool {
        if shadowed || self.state.rflags & RF != 0 {
            return false;
        }
        let bits = self.debug.instruction_at(self.linear_rip());
        if bits == 0 {
            return false;
        }
        self.state.dr6 = self.state.dr6 & !0xf | bits;
        self.raised = crate::cpu::Raised::Exception(Exception::plain(exception::DEBUG));
        true
    }
}
