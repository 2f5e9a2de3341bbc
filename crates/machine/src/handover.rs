//! A running machine changes its engine.
//!
//! Devices hold on to the VM: they send it interrupts, give it doorbells, tell it of the
//! I/O APIC's routes. What they hold is a [`MovableVm`], which passes everything on to
//! the engine's VM of the moment and remembers what a later one has to be told. While
//! the VM is changed nobody gets through it, so that an interrupt which is sent in that
//! moment reaches the new one.
//!
//! The state of the vCPUs crosses in its neutral form; RAM stays where it is. If the
//! new engine refuses any of it, the machine is as it was.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use guise_engine::{
    Doorbell, Engine, EngineError, MemorySlot, Msi, Vcpu, VcpuState, Vm, VmConfig, VmState,
};

use crate::MachineError;
use crate::machine::Machine;

/// A VM that can be changed for another one.
pub(crate) struct MovableVm {
    current: RwLock<Arc<dyn Vm>>,
    told: Mutex<Told>,
}

/// What a VM has been told and another one has to be.
#[derive(Default)]
struct Told {
    memory: BTreeMap<u32, MemorySlot>,
    logged: BTreeMap<u32, bool>,
    routes: BTreeMap<u32, Option<Msi>>,
    doorbells: Vec<Doorbell>,
    external_interrupt: bool,
}

impl Told {
    fn tell(&self, vm: &dyn Vm) -> Result<(), EngineError> {
        for (number, slot) in &self.memory {
            vm.map_memory(*number, slot.clone())?;
        }
        for (number, enable) in self.logged.iter().filter(|(_, enable)| **enable) {
            vm.log_dirty_pages(*number, *enable)?;
        }
        for (pin, msi) in &self.routes {
            vm.route_ioapic_pin(*pin, *msi)?;
        }
        for doorbell in &self.doorbells {
            vm.register_doorbell(doorbell.clone())?;
        }
        vm.set_external_interrupt(self.external_interrupt)
    }
}

impl MovableVm {
    pub fn new(vm: Arc<dyn Vm>) -> MovableVm {
        MovableVm { current: RwLock::new(vm), told: Mutex::default() }
    }

    fn current(&self) -> RwLockReadGuard<'_, Arc<dyn Vm>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the VM that `change` makes in the place of the one that it is given.
    fn replace(
        &self,
        change: impl FnOnce(
            &dyn Vm,
            &dyn Fn(&dyn Vm) -> Result<(), EngineError>,
        ) -> Result<Arc<dyn Vm>, MachineError>,
    ) -> Result<(), MachineError> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let next = change(&**current, &|vm| self.told().tell(vm))?;
        *current = next;
        Ok(())
    }
}

impl Vm for MovableVm {
    fn map_memory(&self, slot: u32, memory: MemorySlot) -> Result<(), EngineError> {
        self.current().map_memory(slot, memory.clone())?;
        self.told().memory.insert(slot, memory);
        Ok(())
    }

    fn unmap_memory(&self, slot: u32) -> Result<(), EngineError> {
        self.current().unmap_memory(slot)?;
        self.told().memory.remove(&slot);
        Ok(())
    }

    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        self.current().create_vcpu(index)
    }

    fn signal_msi(&self, msi: Msi) -> Result<(), EngineError> {
        self.current().signal_msi(msi)
    }

    fn signal_nmi(&self, vcpu: u32) -> Result<(), EngineError> {
        self.current().signal_nmi(vcpu)
    }

    fn set_external_interrupt(&self, level: bool) -> Result<(), EngineError> {
        let current = self.current();
        self.told().external_interrupt = level;
        current.set_external_interrupt(level)
    }

    fn route_ioapic_pin(&self, pin: u32, msi: Option<Msi>) -> Result<(), EngineError> {
        let current = self.current();
        self.told().routes.insert(pin, msi);
        current.route_ioapic_pin(pin, msi)
    }

    fn log_dirty_pages(&self, slot: u32, enable: bool) -> Result<(), EngineError> {
        self.current().log_dirty_pages(slot, enable)?;
        self.told().logged.insert(slot, enable);
        Ok(())
    }

    fn take_dirty_pages(&self, slot: u32) -> Result<Vec<u64>, EngineError> {
        self.current().take_dirty_pages(slot)
    }

    fn register_doorbell(&self, doorbell: Doorbell) -> Result<(), EngineError> {
        self.current().register_doorbell(doorbell.clone())?;
        self.told().doorbells.push(doorbell);
        Ok(())
    }

    fn unregister_doorbell(&self, doorbell: &Doorbell) -> Result<(), EngineError> {
        self.current().unregister_doorbell(doorbell)?;
        self.told()
            .doorbells
            .retain(|other| other.address != doorbell.address || other.value != doorbell.value);
        Ok(())
    }

    fn state(&self) -> Result<VmState, EngineError> {
        self.current().state()
    }

    fn set_state(&self, state: &VmState) -> Result<(), EngineError> {
        self.current().set_state(state)
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        self.current().statistics()
    }
}

/// vCPUs are read and loaded one after the other while their time-stamp counters go on.
/// This corrects one's counter for how much later than the first one its turn came, or
/// they would drift apart with each move.
fn move_tsc(state: &mut VcpuState, late: Duration, change: fn(u64, u64) -> u64, tsc_khz: u64) {
    const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
    let ticks = (late.as_nanos() * u128::from(tsc_khz) / 1_000_000) as u64;
    for (number, value) in &mut state.msrs {
        if *number == IA32_TIME_STAMP_COUNTER {
            *value = change(*value, ticks);
        }
    }
}

impl Machine {
    /// Goes on with another engine. The machine must be paused; it stays so.
    pub fn hand_over(&self, engine: &dyn Engine) -> Result<(), MachineError> {
        self.vm.replace(|old, tell| {
            let clock = old.state()?;
            let mut states = Vec::new();
            let begin = Instant::now();
            for thread in &self.vcpus {
                let late = begin.elapsed();
                let mut state = thread.with(|vcpu| vcpu.state())??;
                move_tsc(&mut state, late, |tsc, ticks| tsc.wrapping_sub(ticks), clock.tsc_khz);
                states.push(state);
            }
            let next = engine.create_vm(&VmConfig {
                vcpus: self.config.vcpus,
                model: self.config.model,
                tsc_khz: (clock.tsc_khz != 0).then_some(clock.tsc_khz),
            })?;
            tell(&*next)?;
            next.set_state(&clock)?;
            let mut vcpus = states
                .iter()
                .map(|state| next.create_vcpu(state.index))
                .collect::<Result<Vec<_>, _>>()?;
            let begin = Instant::now();
            for (vcpu, state) in vcpus.iter_mut().zip(&mut states) {
                let late = begin.elapsed();
                move_tsc(state, late, |tsc, ticks| tsc.wrapping_add(ticks), clock.tsc_khz);
                vcpu.set_state(state)?;
            }
            // From here on nothing can fail but a thread that is no more.
            self.control.set_handles(vcpus.iter().map(|vcpu| vcpu.handle()).collect());
            for (thread, vcpu) in self.vcpus.iter().zip(vcpus) {
                thread.with(move |place| *place = vcpu)?;
            }
            Ok(next)
        })
    }
}
