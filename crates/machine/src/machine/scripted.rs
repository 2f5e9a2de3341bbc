//! An engine for tests of what is around engines: its vCPUs execute no instructions
//! but a function, called again and again until it gives an exit.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use guise_engine::memory::MemorySlot;
use guise_engine::{
    DebugControl, Doorbell, Engine, EngineError, Exit, Msi, Platform, Vcpu, VcpuHandle, VcpuState,
    Vm, VmConfig, VmState,
};

/// What a vCPU does: its index, its platform. Nothing as long as it goes on.
type Script = dyn Fn(u32, &dyn Platform) -> Option<Result<Exit, EngineError>> + Send + Sync;

pub struct ScriptedEngine {
    script: Arc<Script>,
    pub vm: Arc<ScriptedVm>,
}

#[derive(Default)]
pub struct ScriptedVm {
    script: Mutex<Option<Arc<Script>>>,
    pub slots: Mutex<HashMap<u32, MemorySlot>>,
    state: Mutex<VmState>,
}

impl ScriptedEngine {
    pub fn new(
        script: impl Fn(u32, &dyn Platform) -> Option<Result<Exit, EngineError>> + Send + Sync + 'static,
    ) -> Self {
        ScriptedEngine { script: Arc::new(script), vm: Arc::default() }
    }
}

impl Engine for ScriptedEngine {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn create_vm(&self, _: &VmConfig) -> Result<Arc<dyn Vm>, EngineError> {
        *self.vm.script.lock().unwrap() = Some(self.script.clone());
        Ok(self.vm.clone())
    }
}

impl Vm for ScriptedVm {
    fn map_memory(&self, slot: u32, memory: MemorySlot) -> Result<(), EngineError> {
        self.slots.lock().unwrap().insert(slot, memory);
        Ok(())
    }

    fn unmap_memory(&self, slot: u32) -> Result<(), EngineError> {
        self.slots.lock().unwrap().remove(&slot);
        Ok(())
    }

    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        let script = self.script.lock().unwrap().clone().expect("made by the engine");
        Ok(Box::new(ScriptedVcpu {
            index,
            script,
            state: reset_state(index),
            kicked: Arc::default(),
        }))
    }

    fn signal_msi(&self, _: Msi) -> Result<(), EngineError> {
        Ok(())
    }

    fn signal_nmi(&self, _: u32) -> Result<(), EngineError> {
        Ok(())
    }

    fn set_external_interrupt(&self, _: bool) -> Result<(), EngineError> {
        Ok(())
    }

    fn log_dirty_pages(&self, _: u32, _: bool) -> Result<(), EngineError> {
        Ok(())
    }

    fn take_dirty_pages(&self, _: u32) -> Result<Vec<u64>, EngineError> {
        Ok(Vec::new())
    }

    fn register_doorbell(&self, _: Doorbell) -> Result<(), EngineError> {
        Ok(())
    }

    fn unregister_doorbell(&self, _: &Doorbell) -> Result<(), EngineError> {
        Ok(())
    }

    fn state(&self) -> Result<VmState, EngineError> {
        Ok(self.state.lock().unwrap().clone())
    }

    fn set_state(&self, state: &VmState) -> Result<(), EngineError> {
        self.state.lock().unwrap().clone_from(state);
        Ok(())
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
}

struct ScriptedVcpu {
    index: u32,
    script: Arc<Script>,
    state: VcpuState,
    kicked: Arc<Kick>,
}

#[derive(Default)]
struct Kick(AtomicBool);

impl VcpuHandle for Kick {
    fn kick(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Vcpu for ScriptedVcpu {
    fn run(&mut self, platform: &dyn Platform) -> Result<Exit, EngineError> {
        loop {
            if self.kicked.0.swap(false, Ordering::SeqCst) {
                return Ok(Exit::Interrupted);
            }
            self.state.registers.rip += 1;
            if let Some(exit) = (self.script)(self.index, platform) {
                return exit;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn handle(&self) -> Arc<dyn VcpuHandle> {
        self.kicked.clone()
    }

    fn state(&mut self) -> Result<VcpuState, EngineError> {
        Ok(self.state.clone())
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        self.state = state.clone();
        Ok(())
    }

    fn set_debug(&mut self, _: &DebugControl) -> Result<(), EngineError> {
        Ok(())
    }

    fn translate(&mut self, linear: u64) -> Result<Option<u64>, EngineError> {
        Ok(Some(linear))
    }
}

fn reset_state(index: u32) -> VcpuState {
    VcpuState {
        version: VcpuState::VERSION,
        index,
        run: Default::default(),
        registers: Default::default(),
        system: Default::default(),
        events: Default::default(),
        xsave: Vec::new(),
        msrs: vec![(0xc000_0080, 0)],
        lapic: Vec::new(),
        lapic_timer_ns: None,
    }
}
