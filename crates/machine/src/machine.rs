//! A machine from its making to its end: RAM, an engine's VM, a board, and a thread
//! for each vCPU.

use std::sync::Arc;
use std::time::Duration;

use guise_devices::bus::Bus;
use guise_devices::clock::Clock;
use guise_devices::uart::Uart;
use guise_engine::memory::vm_memory::{Bytes as _, GuestAddress};
use guise_engine::{
    CpuModel, DebugControl, Engine, EngineError, MAX_VCPUS, Platform, Vm, VmConfig,
};
use guise_virtio::VirtioDevice;
use guise_virtio::mem::Mem;
use serde::{Deserialize, Serialize};

use crate::MachineError;
use crate::acpi;
use crate::board::{Board, BoardKind, Wiring};
use crate::boot::{self, BootSource, Target};
use crate::control::{Control, Ending};
use crate::handover::MovableVm;
use crate::layout::ACPI_TABLES;
use crate::memory::{Ram, Size};
use crate::platform::Buses;
use crate::state::MachineState;
use crate::vcpu::VcpuThread;

/// What a machine is, before it is anything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// In bytes.
    pub memory: u64,
    /// Memory that can be added while it runs, in bytes.
    pub addable_memory: u64,
    pub vcpus: u32,
    pub board: BoardKind,
    pub model: CpuModel,
    /// Put an IOMMU between PCI's functions and the rest of it.
    pub iommu: bool,
    /// Add the devices that test programs end through, and those that they drive.
    pub test_devices: bool,
}

/// How long a vCPU may take to come out of the guest. On a busy host a device's
/// system call in the middle of an instruction may take its time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Made paused; [`Machine::resume`] starts it.
pub struct Machine {
    pub(crate) config: MachineConfig,
    ram: Ram,
    pub(crate) vm: Arc<MovableVm>,
    clock: Arc<Clock>,
    platform: Arc<Buses>,
    board: Board,
    more_memory: Option<Arc<Mem>>,
    pub(crate) control: Arc<Control>,
    pub(crate) vcpus: Vec<VcpuThread>,
}

/// Ends a machine from outside, from any thread, as long as it lives.
#[derive(Clone)]
pub struct Stopper(Arc<Control>);

impl Stopper {
    /// Makes [`Machine::wait`] return [`Ending::Left`].
    pub fn leave(&self) {
        self.0.end(Ending::Left);
    }
}

impl Machine {
    /// Makes all of it. `output` takes what the guest writes to its serial port.
    pub fn new(
        engine: &dyn Engine,
        config: &MachineConfig,
        output: Box<dyn std::io::Write + Send>,
    ) -> Result<Self, MachineError> {
        if !(1..=MAX_VCPUS).contains(&config.vcpus) {
            let error = EngineError::VcpuCount { wanted: config.vcpus, max: MAX_VCPUS };
            return Err(error.into());
        }
        let ram = Ram::new(config.memory, config.addable_memory)?;
        let vm = engine.create_vm(&VmConfig {
            vcpus: config.vcpus,
            model: config.model,
            tsc_khz: None,
        })?;
        let vm = Arc::new(MovableVm::new(vm));
        ram.map_into(&*vm)?;
        let devices_vm: Arc<dyn Vm> = vm.clone();
        let clock = Clock::start()
            .map_err(|source| MachineError::Host { doing: "starting the clock", source })?;
        clock.pause();
        let control = Arc::new(Control::new(config.vcpus as usize));
        let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let wiring = Wiring {
            config,
            ram: ram.layout,
            vm: &devices_vm,
            guest_memory: &ram.memory,
            clock: &clock,
            power: control.clone(),
            ports: &ports,
            memory: &memory,
        };
        let board = Board::new(wiring, output)?;
        let mut more_memory = None;
        if config.addable_memory > 0 {
            let device = Mem::new(ram.memory.clone(), ram.layout.addable_range());
            board.expansion().add(device.clone())?;
            more_memory = Some(device);
        }
        let platform =
            Arc::new(Buses::new(ports, memory, board.interrupt_controllers(), control.clone()));
        let mut machine = Machine {
            config: config.clone(),
            ram,
            vm,
            clock,
            platform,
            board,
            more_memory,
            control,
            vcpus: Vec::new(),
        };
        machine.start_threads()?;
        Ok(machine)
    }

    fn start_threads(&mut self) -> Result<(), MachineError> {
        let vcpus = (0..self.config.vcpus)
            .map(|index| self.vm.create_vcpu(index))
            .collect::<Result<Vec<_>, _>>()?;
        self.control.set_handles(vcpus.iter().map(|vcpu| vcpu.handle()).collect());
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let platform: Arc<dyn Platform> = self.platform.clone();
            self.vcpus.push(VcpuThread::spawn(index, vcpu, platform, self.control.clone())?);
        }
        Ok(())
    }

    /// Loads a kernel and puts the first vCPU at its entry.
    pub fn boot(&self, source: &BootSource) -> Result<(), MachineError> {
        let tables = acpi::build(&self.board.hardware());
        let memory = &self.ram.memory;
        memory
            .write_slice(&tables, GuestAddress(ACPI_TABLES))
            .map_err(|_| MachineError::AcpiTables)?;
        let target = Target { memory, ram: self.ram.layout, rsdp: ACPI_TABLES };
        let entry = boot::load(&target, source)?;
        entry.write_tables(memory).map_err(boot::BootError::from)?;
        self.vcpus[0].with(move |vcpu| {
            let mut state = vcpu.state()?;
            entry.apply(&mut state);
            vcpu.set_state(&state)
        })??;
        Ok(())
    }

    /// Lets time and the vCPUs go on.
    pub fn resume(&self) {
        self.clock.resume();
        self.control.run();
    }

    /// Stops the vCPUs between two instructions each, then time.
    pub fn pause(&self) -> Result<(), MachineError> {
        if !self.control.pause(PATIENCE) {
            return Err(MachineError::Unresponsive);
        }
        self.clock.pause();
        Ok(())
    }

    /// Waits until the machine ends; nothing when it has not within the limit.
    pub fn wait(&self, limit: Option<Duration>) -> Option<Ending> {
        self.control.wait(limit)
    }

    /// Stops after this many accesses of devices, with [`Ending::Reached`].
    pub fn stop_after_exits(&self, count: u64) {
        self.platform.stop_after(count);
    }

    /// Stops before the instruction at a linear address, whichever vCPU comes there,
    /// with [`Ending::Stopped`]. The machine must be paused.
    pub fn stop_before(&self, address: u64) -> Result<(), MachineError> {
        for thread in &self.vcpus {
            let control = DebugControl { breakpoints: vec![address], ..DebugControl::default() };
            thread.with(move |vcpu| vcpu.set_debug(&control))??;
        }
        Ok(())
    }

    pub fn stopper(&self) -> Stopper {
        Stopper(self.control.clone())
    }

    /// Adds a device before the machine runs. Returns its slot on the PCI bus.
    pub fn add_device(&self, device: Arc<dyn VirtioDevice>) -> Result<u8, MachineError> {
        self.board.expansion().add(device)
    }

    /// Adds a device while the guest runs, and tells it. Returns the slot.
    pub fn plug_device(&self, device: Arc<dyn VirtioDevice>) -> Result<u8, MachineError> {
        self.board.expansion().plug(device)
    }

    /// Asks the guest to let go of a device, and waits. Says whether it has.
    pub fn unplug_device(&self, slot: u8, limit: Duration) -> bool {
        self.board.expansion().unplug(slot, limit)
    }

    /// Asks the guest to have so many bytes of memory in all, as far as they can be added
    /// or taken away.
    pub fn set_memory(&self, bytes: u64) -> Result<(), MachineError> {
        let (least, most) = (self.config.memory, self.config.memory + self.config.addable_memory);
        if !(least..=most).contains(&bytes) {
            let reason = format!("it can have {} to {}", Size(least), Size(most));
            return Err(MachineError::MemorySize { size: bytes, reason });
        }
        if let Some(device) = &self.more_memory {
            device.request(bytes - least);
        }
        Ok(())
    }

    /// How much memory the guest is to have, and how much it has.
    pub fn memory(&self) -> (u64, u64) {
        let (requested, plugged) = self.more_memory.as_ref().map_or((0, 0), |device| device.size());
        (self.config.memory + requested, self.config.memory + plugged)
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.board.press_power_button();
    }

    /// The serial port, for whoever has something to type.
    pub fn serial(&self) -> Arc<Uart> {
        self.board.serial()
    }

    /// How often the guest left for its devices, by reason.
    pub fn exits(&self) -> Vec<(String, u64)> {
        self.platform.counts()
    }

    /// The engine's own counters.
    pub fn engine_statistics(&self) -> Vec<(String, u64)> {
        self.vm.statistics()
    }

    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Guest memory, for backends and for whoever saves it.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// All of the machine except its RAM. It must be paused.
    pub fn save(&self) -> Result<MachineState, MachineError> {
        let mut vcpus = Vec::new();
        for thread in &self.vcpus {
            vcpus.push(thread.with(|vcpu| vcpu.state())??);
        }
        Ok(MachineState {
            version: MachineState::VERSION,
            config: self.config.clone(),
            clock_ns: self.clock.now(),
            vm: self.vm.state()?,
            vcpus,
            board: self.board.state(),
        })
    }

    /// Loads what [`Machine::save`] returned into a machine that was made from the
    /// same configuration and is paused. Its RAM is the caller's business, and comes
    /// first: an IOMMU's tables are in it.
    pub fn restore(&self, state: &MachineState) -> Result<(), MachineError> {
        state.check(&self.config)?;
        self.clock.set(state.clock_ns);
        self.vm.set_state(&state.vm)?;
        // Devices first: their interrupt lines act on the vCPUs' local APICs, whose
        // saved state is the last word.
        self.board.set_state(&state.board)?;
        for (thread, saved) in self.vcpus.iter().zip(&state.vcpus) {
            let saved = saved.clone();
            thread.with(move |vcpu| vcpu.set_state(&saved))??;
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.control.stop();
        for vcpu in &mut self.vcpus {
            vcpu.join();
        }
        self.clock.pause();
        self.platform.ports.clear();
        self.platform.memory.clear();
    }
}

#[cfg(test)]
mod scripted;
#[cfg(test)]
mod tests;
