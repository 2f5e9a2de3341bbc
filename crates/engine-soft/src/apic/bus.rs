//! All local APICs of a VM, and delivery between them.

use std::sync::atomic::{AtomicUsize, Ordering};

use guise_engine::Msi;

use super::access::{Effect, Refused};
use super::local::LocalApic;
use super::message::{BROADCAST, DeliveryMode, Destination, Message};

/// Makes a vCPU look at [`LocalApic::pending`]: sets its attention word and ends its
/// halt. Called on any thread, with no lock held.
pub trait Wake: Send + Sync {
    fn wake(&self, vcpu: u32);
}

impl<F: Fn(u32) + Send + Sync> Wake for F {
    fn wake(&self, vcpu: u32) {
        self(vcpu);
    }
}

/// The APICs of a VM, by vCPU index, which is their id.
pub struct ApicBus {
    apics: Vec<LocalApic>,
    wake: Box<dyn Wake>,
    /// Where the search for a lowest-priority destination begins next.
    turn: AtomicUsize,
}

impl ApicBus {
    pub fn new(vcpus: u32, wake: impl Wake + 'static) -> Self {
        Self {
            apics: (0..vcpus).map(LocalApic::new).collect(),
            wake: Box::new(wake),
            turn: AtomicUsize::new(0),
        }
    }

    /// The APIC of a vCPU that exists.
    pub fn apic(&self, vcpu: u32) -> &LocalApic {
        &self.apics[vcpu as usize]
    }

    pub fn signal_msi(&self, msi: Msi) {
        if let Some(message) = Message::from_msi(msi) {
            self.deliver(&message, None);
        }
    }

    pub fn signal_nmi(&self, vcpu: u32) {
        if let Some(apic) = self.apics.get(vcpu as usize) {
            let (_, gained) = apic.change(|registers| registers.pend_nmi());
            self.wake_if(gained, vcpu);
        }
    }

    /// The 8259 pair's INTR line, which leads to vCPU 0.
    pub fn set_external_interrupt(&self, level: bool) {
        if let Some(apic) = self.apics.first() {
            let (_, gained) = apic.change(|registers| registers.set_external(level));
            self.wake_if(gained, 0);
        }
    }

    fn wake_if(&self, gained: bool, vcpu: u32) {
        if gained {
            self.wake.wake(vcpu);
        }
    }

    /// A write to the register page by its own vCPU. Returns the level-triggered
    /// vector that it ended, if any: [`guise_engine::Platform::end_of_interrupt`]
    /// wants to know.
    pub fn write(&self, vcpu: u32, offset: u64, data: &[u8], now: u64) -> Option<u8> {
        // Only whole, aligned registers can be written; of wider accesses the first
        // register takes its part.
        let first: [u8; 4] = data.get(..4)?.try_into().ok()?;
        if offset & 15 != 0 {
            return None;
        }
        let (effect, gained) = self.apic(vcpu).write_page(offset, u32::from_le_bytes(first), now);
        self.wake_if(gained, vcpu);
        self.apply(effect, vcpu)
    }

    /// A write of MSR 0x800 to 0x8ff; otherwise like [`ApicBus::write`].
    pub fn write_msr(
        &self,
        vcpu: u32,
        msr: u32,
        value: u64,
        now: u64,
    ) -> Result<Option<u8>, Refused> {
        let (effect, gained) = self.apic(vcpu).write_msr(msr, value, now);
        self.wake_if(gained, vcpu);
        Ok(self.apply(effect?, vcpu))
    }

    /// Sends what a hypercall asks for: an IPI with this low half of an ICR to the
    /// vCPU, if it exists.
    pub fn send_ipi(&self, icr_low: u32, vcpu: u32) {
        if let Some(message) = Message::from_icr(icr_low & 0xffff, vcpu) {
            self.deliver(&message, None);
        }
    }

    fn apply(&self, effect: Effect, sender: u32) -> Option<u8> {
        match effect {
            Effect::None => None,
            Effect::EndOfInterrupt(vector) => Some(vector),
            Effect::Send(message) => {
                self.deliver(&message, Some(sender));
                None
            }
        }
    }

    fn deliver(&self, message: &Message, sender: Option<u32>) {
        if message.mode == DeliveryMode::LowestPriority {
            if let Some(vcpu) = self.lowest_priority(message, sender) {
                self.give(vcpu, message);
            }
            return;
        }
        for vcpu in 0..self.apics.len() as u32 {
            if self.is_meant(vcpu, message, sender) {
                self.give(vcpu, message);
            }
        }
    }

    fn give(&self, vcpu: u32, message: &Message) {
        let gained = self.apic(vcpu).receive(message);
        self.wake_if(gained, vcpu);
    }

    fn is_meant(&self, vcpu: u32, message: &Message, sender: Option<u32>) -> bool {
        match message.destination {
            Destination::Sender => sender == Some(vcpu),
            Destination::AllButSender if sender == Some(vcpu) => false,
            destination => {
                let registers = self.apic(vcpu).lock();
                // INIT and start-up IPIs reach a processor whose APIC is off, too.
                let reachable = registers.enabled()
                    || matches!(message.mode, DeliveryMode::Init | DeliveryMode::StartUp);
                reachable
                    && match destination {
                        Destination::Physical(id) => id == BROADCAST || id == registers.id,
                        Destination::Logical(id) => registers.logical_id().matches(id),
                        _ => true,
                    }
            }
        }
    }

    /// Of all that are meant, one with the lowest priority; in turn among equals.
    fn lowest_priority(&self, message: &Message, sender: Option<u32>) -> Option<u32> {
        let count = self.apics.len();
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut best: Option<(u8, u32)> = None;
        for step in 0..count {
            let vcpu = (start.wrapping_add(step) % count) as u32;
            if !self.is_meant(vcpu, message, sender) {
                continue;
            }
            let registers = self.apic(vcpu).lock();
            let priority = registers.processor_priority();
            if registers.accepts_fixed() && best.is_none_or(|(lowest, _)| priority < lowest) {
                best = Some((priority, vcpu));
            }
        }
        best.map(|(_, vcpu)| vcpu)
    }
}

#[cfg(test)]
mod tests;
